"""The feed of a tenant's runs, for its administrators: live from now on, sampled, with an account of what it left out.

One reader for all feeds of the process, while there are any. Responsible for who gets which event and for the account;
not for what writers put into the feed (`app.storage.feed_log`). Nothing here holds up a run or an ordinary window.
"""

import logging
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from app import metrics
from app.errors import StoreUnavailable
from app.protocol.events import control
from app.storage.feed_log import Entry, FeedReader, is_shown
from app.streaming.admission import Ticket
from app.streaming.iterated_window import Iterated, has_left
from app.streaming.multi_window import NO_RUN
from app.streaming.socket_window import tune
from app.streaming.window import ROTATION_RETRY_MS, Closing, Limits, last_words
from app.streaming.windows import DRAIN_RETRY_MS, Windows
from app.streaming.wire import Format, wire

STATUS_SECONDS = 5.0
"""Between two frames that give the account."""
QUEUE_FRAMES = 1_000
"""What waits for a reader; what comes while it is full is dropped."""
SEEN_RUNS = 20_000
"""Runs of which a feed knows how far it has seen them; beyond it the one that was quiet for longest is forgotten."""
TENANTS = 10_000
"""Runs whose tenant is remembered."""
ENTRIES_PER_READ = 500
BLOCK_MS = 250
"""Longest wait of a read: a wish that has just come up waits for it to end."""
RENEW_SECONDS = 2.0
RETRY_SECONDS = 0.25
TICK_SECONDS = 0.25
"""How often an idle feed looks whether it is to end."""

log = logging.getLogger(__name__)


class Tenants(Protocol):
    """Where a run's tenant is looked up: a RunStore."""

    def tenants(self, run_ids: Sequence[str]) -> dict[str, str]:
        """Of each run its tenant, where there is such a run."""


class Account:
    """What a feed's client did not get of the runs that it has seen: every seq is in one of the numbers.

    The seqs of a run have no gaps: one between two events that were seen was left out, or, after a loss, dropped.
    """

    def __init__(self) -> None:
        self.sent = self.left_out = self.dropped = 0
        self._seen: dict[str, int] = {}
        self._doubted: set[str] = set()
        """Runs whose next gap may be of events that were lost."""

    def lose(self) -> None:
        """Events were lost, of whichever runs."""
        self._doubted = set(self._seen)

    def is_new(self, entry: Entry) -> bool:
        """Take note of the event and of the gap before it. False: it is one that was told before."""
        last = self._seen.pop(entry.run_id, entry.seq - 1)
        self._seen[entry.run_id] = max(last, entry.seq)  # at the end of the dict: it was heard of last
        if entry.seq <= last:
            return False
        missed = entry.seq - last - 1
        if entry.run_id in self._doubted:
            self._doubted.discard(entry.run_id)
            self.dropped += missed
        else:
            self.left_out += missed
        if len(self._seen) > SEEN_RUNS:
            del self._seen[next(iter(self._seen))]
        return True


class Feed(Iterated):
    """One administrator's feed, which whoever sends the response iterates over."""

    def __init__(
        self,
        tenant_id: str,
        sample: float,
        format: Format,
        limits: Limits,
        ticket: Ticket,
        *,
        leave: Callable[["Feed", Closing], None],
        draining: Callable[[], bool],
        connection: socket.socket | None,
    ) -> None:
        """
        :param sample: the share of its tenant's events that it shows, in (0, 1].
        :param leave: told when the feed is closed.
        :param connection: what the response is sent on, where that is known.
        """
        self.tenant_id = tenant_id
        self.sample = sample
        self.ticket = ticket
        self.wire = wire(format, chunked=False)
        self.over = False
        self.farewell: tuple[Closing, bytes] | None = None
        self._limits = limits
        self._leave = leave
        self._draining = draining
        self._connection = connection
        self._expires_at = limits.expiry()
        self._status_at = time.monotonic() + STATUS_SECONDS
        self._account = Account()
        self._queue: deque[bytes] = deque()
        self._stirred = threading.Event()
        self._closed = False

    def offer(self, entry: Entry, frame: Callable[[Format, Entry], bytes]) -> None:
        """One of its tenant's events. Never waits."""
        if not self._account.is_new(entry):
            return
        if not is_shown(entry.run_id, entry.seq, entry.type, self.sample):
            self._account.left_out += 1
        elif len(self._queue) >= QUEUE_FRAMES:
            self._account.dropped += 1
        else:
            self._queue.append(frame(self.wire.format, entry))
            self._stirred.set()

    def lose(self) -> None:
        """Events were lost before they were read."""
        self._account.lose()

    def _next(self) -> bytes:
        """As in `Iterated`."""
        self._stirred.clear()
        now = time.monotonic()
        if now >= self._expires_at:
            self._end(Closing.ROTATED, ROTATION_RETRY_MS)
        elif has_left(self._connection):
            self.farewell = Closing.LEFT, b""
        elif self._draining():
            self._end(Closing.DRAINED, random.randint(*DRAIN_RETRY_MS))
        elif now >= self._status_at:
            self._status_at = now + STATUS_SECONDS
            return self._take() + self._status()
        elif body := self._take():
            return body
        else:
            self._stirred.wait(TICK_SECONDS)
        return b""

    def _end(self, why: Closing, retry_ms: int) -> None:
        rest = self._take()
        self.farewell = why, rest + self._status() + last_words(self.wire.format, NO_RUN, why, retry_ms)

    def _take(self) -> bytes:
        frames = [self._queue.popleft() for _ in range(len(self._queue))]
        self._account.sent += len(frames)
        return b"".join(frames)

    def _status(self) -> bytes:
        account = self._account
        counts = {"sent": account.sent, "left_out": account.left_out, "dropped": account.dropped}
        text = control(NO_RUN, "feed.status", {"sample": self.sample, **counts})
        return self.wire.format.control("feed.status", text, None)

    def close(self, why: Closing = Closing.LEFT) -> None:
        """As in `Iterated`."""
        if not self._closed:
            self._closed = True
            self._leave(self, why)


class Feeds:
    """The open feeds of one process, and what reads for them."""

    def __init__(self, reader: FeedReader, store: Tenants, windows: Windows) -> None:
        """
        :param windows: among which feeds count, with the same limits.
        """
        self._reader = reader
        self._store = store
        self._windows = windows
        self._feeds: set[Feed] = set()
        self._reading = False
        self._changing = threading.Lock()
        self._tenants: dict[str, str] = {}
        self._entries: list[Entry] = []
        """Read, and not handed out yet."""
        self._wanted, self._renew_at = 0.0, 0.0
        self._complained = False

    def open(self, tenant_id: str, sample: float, format: Format, ticket: Ticket, sock: socket.socket | None) -> Feed:
        """Open a feed, which whoever sends its bytes closes.

        :param sock: what they are sent on, where that is known.
        """
        if sock is not None:
            tune(sock, self._windows.limits)
        feed = Feed(
            tenant_id,
            sample,
            format,
            self._windows.limits,
            ticket,
            leave=self._left,
            draining=self._windows.draining,
            connection=sock,
        )
        with self._changing:
            self._feeds.add(feed)
            if not self._reading:
                self._reading = True
                threading.Thread(target=self._read, daemon=True).start()  # a greenlet, where there is gevent
        return feed

    def _left(self, feed: Feed, why: Closing) -> None:
        with self._changing:
            self._feeds.discard(feed)
        self._windows.admission.release(feed.ticket, before_the_end=False)
        if why is Closing.ROTATED:
            metrics.ROTATIONS.inc()

    # The reader.

    def _read(self) -> None:
        """Read for as long as there are feeds. Whatever happens: they all depend on it."""
        started = False
        while self._is_needed():
            try:
                self._renew()
                if not started:
                    self._reader.start()
                    started = True
                self._turn()
                self._complained = False
            except StoreUnavailable as error:
                if not self._complained:
                    log.warning("The feeds wait. %s", error.detail)
                self._complained = True
                time.sleep(RETRY_SECONDS)
            except Exception:
                log.exception("The feeds failed at a turn.")
                self._lose()
                time.sleep(RETRY_SECONDS)

    def _is_needed(self) -> bool:
        with self._changing:
            self._reading = bool(self._feeds)
            if not self._reading:
                self._entries, self._wanted = [], 0.0
                self._reader.close()
            return self._reading

    def _renew(self) -> None:
        """Tell the writers what is wanted."""
        now, sample = time.monotonic(), max((feed.sample for feed in list(self._feeds)), default=0.0)
        if sample and (sample != self._wanted or now >= self._renew_at):
            self._reader.want(sample)
            self._wanted, self._renew_at = sample, now + RENEW_SECONDS

    def _turn(self) -> None:
        if not self._entries:
            self._entries, lost = self._reader.read(ENTRIES_PER_READ, BLOCK_MS)
            if lost:
                log.warning("The feeds have missed events.")
                self._lose(self._entries)
        if self._entries:
            self._look_up({entry.run_id for entry in self._entries})
            self._hand_out()
            self._entries = []

    def _lose(self, rest: Sequence[Entry] = ()) -> None:
        """Events were lost; `rest` are those that are still to be handed out."""
        self._entries = list(rest)
        for feed in list(self._feeds):
            feed.lose()

    def _look_up(self, run_ids: Iterable[str]) -> None:
        unknown = [run_id for run_id in run_ids if run_id not in self._tenants]
        if not unknown:
            return
        self._tenants.update(self._store.tenants(unknown))
        while len(self._tenants) > TENANTS:
            del self._tenants[next(iter(self._tenants))]

    def _hand_out(self) -> None:
        framed: dict[tuple[Format, str, int], bytes] = {}

        def frame(format: Format, entry: Entry) -> bytes:
            """An event is framed once for each format: without an id, for there is no coming back."""
            key = (format, entry.run_id, entry.seq)
            if key not in framed:
                framed[key] = format.control(entry.type, entry.text, None)
            return framed[key]

        for feed in list(self._feeds):
            for entry in self._entries:
                if self._tenants.get(entry.run_id) == feed.tenant_id:
                    feed.offer(entry, frame)
