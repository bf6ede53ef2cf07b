"""The open feeds of a web process, and the one reader that all of them share, while there are any.

Responsible for whose events a feed is offered. Nothing here holds up a run or an ordinary window.
"""

import logging
import socket
import threading
import time
from collections.abc import Sequence, Set
from typing import Protocol

from app import metrics
from app.errors import StoreUnavailable
from app.storage.feed_log import Entry, FeedReader
from app.streaming.admission import Ticket
from app.streaming.feed import Feed
from app.streaming.opening import Windows
from app.streaming.windows.base import Closing
from app.streaming.wire import Format
from app.turns import PAUSE_SECONDS

TENANTS = 10_000
"""Runs whose tenant is remembered; beyond it one that was quiet for long is forgotten. More than a read brings."""
ENTRIES_PER_READ = 200
"""While they are handed out, ordinary windows wait."""
PACE_SECONDS = 0.2
"""Between two reads, unless there is more: a read for each event would cost more than the windows that show it."""
BLOCK_MS = 250
"""Longest wait of a read: a wish that has just come up waits for it to end."""
RENEW_SECONDS = 2.0
RETRY_SECONDS = 0.25

log = logging.getLogger(__name__)


class Tenants(Protocol):
    """Where a run's tenant is looked up: a RunStore."""

    def tenants(self, run_ids: Sequence[str]) -> dict[str, str]:
        """Of each run its tenant, where there is such a run."""


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
        self._windows.begin(feed, sock)
        with self._changing:
            self._feeds.add(feed)
            if not self._reading:
                self._reading = True
                threading.Thread(target=self._read, daemon=True).start()  # a greenlet, where there is gevent
        return feed

    def _left(self, feed: Feed, why: Closing) -> None:
        with self._changing:
            self._feeds.discard(feed)
        self._windows.end(feed)
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
            full, self._entries = len(self._entries) == ENTRIES_PER_READ, []
            # Also where there is more: what the feeds have got is sent before their queues are filled further.
            time.sleep(PAUSE_SECONDS if full else PACE_SECONDS)

    def _lose(self, rest: Sequence[Entry] = ()) -> None:
        """Events were lost; `rest` are those that are still to be handed out."""
        self._entries = list(rest)
        for feed in list(self._feeds):
            feed.lose()

    def _look_up(self, run_ids: Set[str]) -> None:
        unknown = [run_id for run_id in run_ids if run_id not in self._tenants]
        if not unknown:
            return
        found = self._store.tenants(unknown)
        for run_id in run_ids & self._tenants.keys():
            found[run_id] = self._tenants.pop(run_id)  # at the end of the dict: it is not forgotten now
        self._tenants.update(found)
        while len(self._tenants) > TENANTS:
            del self._tenants[next(iter(self._tenants))]

    def _hand_out(self) -> None:
        framed: dict[tuple[Format, str, int], bytes] = {}

        def frame(format: Format, entry: Entry) -> bytes:
            """An event is framed once for each format: without an id, for there is no coming back."""
            key = (format, entry.run_id, entry.seq)
            if key not in framed:
                framed[key] = format.control(entry.type, entry.text.encode(), None)
            return framed[key]

        for feed in list(self._feeds):
            for entry in self._entries:
                if self._tenants.get(entry.run_id) == feed.tenant_id:
                    feed.offer(entry, frame)
