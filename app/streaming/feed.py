"""The feed of a tenant's runs, for its administrators: live from now on, sampled, with an account of what it left out.

Responsible for what one client gets. Not responsible for reading it (`feeds`), or for what writers put into the feed
(`app.storage.feed_log`).
"""

import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable

from app.protocol.events import control
from app.storage.feed_log import Entry, is_shown
from app.streaming.admission import Ticket
from app.streaming.opening import DRAIN_RETRY_MS
from app.streaming.windows.base import ROTATION_RETRY_MS, Closing, Limits, last_words
from app.streaming.windows.iterated import Iterated, has_left
from app.streaming.windows.multi import NO_RUN
from app.streaming.wire import Format, wire

STATUS_SECONDS = 5.0
"""Between two frames that give the account."""
QUEUE_FRAMES = 1_000
"""What waits for a reader; what comes while it is full is dropped."""
QUEUE_BYTES = 8_000_000
"""Likewise: an event may have megabytes."""
SEEN_RUNS = 20_000
"""Runs of which a feed knows how far it has seen them; beyond it the one that was quiet for longest is forgotten."""
TICK_SECONDS = 0.25
"""How often an idle feed looks whether it is to end."""


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
        self.closing: tuple[Closing, bytes] | None = None
        self._limits = limits
        self._leave = leave
        self._draining = draining
        self._connection = connection
        self._expires_at = limits.expiry()
        self._status_at = time.monotonic() + STATUS_SECONDS
        self._account = Account()
        self._queue: deque[bytes] = deque()
        self._queue_bytes = 0
        self._woken = threading.Event()
        self._closed = False

    def offer(self, entry: Entry, frame: Callable[[Format, Entry], bytes]) -> None:
        """One of its tenant's events. Never waits."""
        if not self._account.is_new(entry):
            return
        if not is_shown(entry.run_id, entry.seq, entry.type, self.sample):
            self._account.left_out += 1
        else:
            self._wait_in_line(frame(self.wire.format, entry))

    def _wait_in_line(self, frame: bytes) -> None:
        if len(self._queue) >= QUEUE_FRAMES or self._queue_bytes + len(frame) > QUEUE_BYTES:
            self._account.dropped += 1
            return
        self._queue.append(frame)
        self._queue_bytes += len(frame)
        self._woken.set()

    def lose(self) -> None:
        """Events were lost before they were read."""
        self._account.lose()

    def _next(self) -> bytes:
        """As in `Iterated`."""
        self._woken.clear()
        now = time.monotonic()
        if now >= self._expires_at:
            self._end(Closing.ROTATED, ROTATION_RETRY_MS)
        elif has_left(self._connection):
            self.closing = Closing.LEFT, b""
        elif self._draining():
            self._end(Closing.DRAINED, random.randint(*DRAIN_RETRY_MS))
        elif now >= self._status_at:
            self._status_at = now + STATUS_SECONDS
            return self._take() + self._status()
        elif body := self._take():
            return body
        else:
            self._woken.wait(TICK_SECONDS)
        return b""

    def _end(self, why: Closing, retry_ms: int) -> None:
        rest = self._take()
        self.closing = why, rest + self._status() + last_words(self.wire.format, NO_RUN, why, retry_ms)

    def _take(self) -> bytes:
        frames = [self._queue.popleft() for _ in range(len(self._queue))]
        self._account.sent += len(frames)
        self._queue_bytes -= sum(map(len, frames))
        return b"".join(frames)

    def _status(self) -> bytes:
        account = self._account
        counts = {"sent": account.sent, "left_out": account.left_out, "dropped": account.dropped}
        text = control(NO_RUN, "feed.status", {"sample": self.sample, **counts})
        return self.wire.format.control("feed.status", text.encode(), None)

    def say_closing(self, why: Closing, retry_ms: int) -> None:
        """As in `Window`."""
        self.closing = why, last_words(self.wire.format, NO_RUN, why, retry_ms)
        self._woken.set()

    def close(self, why: Closing = Closing.LEFT) -> None:
        """As in `Iterated`."""
        if not self._closed:
            self._closed = True
            self._leave(self, why)
