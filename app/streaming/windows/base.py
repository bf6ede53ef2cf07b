"""One window: what its client has, and what it gets next. Replay and live are the same cursor.

Responsible for order, snapshots and gaps. Not responsible for connections (`socket_window`, `iterated_window`) or for
when something is new (`hub`). The caller has authorised the client; a window never changes the run.
"""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from app import metrics
from app.errors import StoreUnavailable
from app.pace import paced
from app.protocol.events import TERMINAL, control
from app.storage.history import History
from app.streaming.admission import Ticket
from app.streaming.tail import Tail
from app.streaming.wire import Format, Wire

HEALING_SECONDS = 5.0
"""How long a cursor beyond the head of a live run waits for the log to catch up."""
PAGE_EVENTS = 1_000
PAGE_BYTES = 128_000
"""What a window reads at a time; so much it holds for a client that does not read."""
JITTER = 0.1
"""Of a window's longest time: windows that were opened together do not all come back together."""
ROTATION_RETRY_MS = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of every window of a process. Seconds, events, bytes; 0 = no limit, but for the first two."""

    heartbeat_seconds: float
    max_lag_seconds: float
    max_seconds: float
    replay_max_events: int
    replay_max_bytes: int

    def expiry(self) -> float:
        """When a window that is opened now is to end, by `time.monotonic()`."""
        longest = self.max_seconds * random.uniform(1 - JITTER, 1 + JITTER)
        return time.monotonic() + longest if longest else float("inf")


class Place(Enum):
    """Where a window is in relation to its tail."""

    LEVEL = auto()
    BEHIND = auto()
    WAITING = auto()
    """The tail does not know its head yet, or the window's cursor is ahead of it."""


class Closing(Enum):
    """Why a window was closed."""

    ENDED = "its run has ended"
    LEFT = "its client has left"
    LAGGED = "its client has read too slowly"
    ROTATED = "it was open for its longest time"
    DRAINED = "the process ends"
    FAILED = "it failed"
    REVOKED = "its key opens no doors any more"


class Window:
    """The part that does not depend on the connection."""

    __slots__ = (
        "_ahead_since",
        "_limits",
        "_presumed",
        "_replayed",
        "closed",
        "closing",
        "cursor",
        "expires_at",
        "gap",
        "look_at",
        "over",
        "posted_at",
        "quiet_since",
        "tail",
        "ticket",
        "wire",
    )

    def __init__(self, tail: Tail, wire: Wire, cursor: int | None, limits: Limits, ticket: Ticket) -> None:
        """
        :param cursor: seq of the last event that the client has; None: it begins with a snapshot at the head.
        """
        now = time.monotonic()
        self.tail = tail
        self.wire = wire
        self.cursor = cursor
        self.ticket = ticket
        self.gap: int | None = None
        """The cursor that the log has lost."""
        self._presumed = False
        """That it is lost is concluded from its absence, which both stores have yet to confirm."""
        self.over = False
        """The client has the whole log."""
        self.closing: tuple[Closing, bytes] | None = None
        """Why the window ends before its run does, and its last bytes."""
        self.closed = False
        self.quiet_since = now
        self.posted_at: float | None = None
        """When the run was asked for, where this window is the answer to that."""
        self.expires_at = limits.expiry()
        self.look_at = 0.0
        """Before that moment nothing is due. A window that is not live is looked at each time."""
        self._limits = limits
        self._ahead_since: float | None = None
        self._replayed = 0

    def wake(self) -> None:
        """Something may have become possible: the tail has moved, time has passed, or `closing` was set."""
        raise NotImplementedError

    def place(self) -> Place:
        """Where the window is. A cursor that stays ahead for HEALING_SECONDS is a gap."""
        if self.cursor is None or self.gap is not None:
            return Place.BEHIND
        if not self.tail.ready:
            return Place.WAITING
        if self.cursor <= self.tail.head:
            self._ahead_since = None
            return Place.LEVEL if self.cursor == self.tail.head else Place.BEHIND
        now = time.monotonic()
        if self._ahead_since is None or self.tail.uncertain:
            self._ahead_since = now
        if now - self._ahead_since < HEALING_SECONDS:
            return Place.WAITING
        self.gap, self._presumed = self.cursor, True
        return Place.BEHIND

    @property
    def ahead(self) -> bool:
        """The client has events that the log, as it is known here, has not."""
        return self._ahead_since is not None

    def lose(self) -> None:
        """The log has lost events that the client has, or is about to get."""
        self.gap, self._presumed = self.cursor, False
        self.wake()

    def levelled(self) -> None:
        """The window is level: what it will have missed from here on is counted anew."""
        self._replayed = 0

    def next_frames(self, history: History) -> list[bytes]:
        """What comes next, frame by frame, as far as it is there. May block. For windows that nothing is handed to."""
        place = self.place()
        if place is Place.LEVEL:
            self.levelled()
            self.over = self.tail.ended
        if place is not Place.BEHIND:
            return []
        try:
            return self._frames_in_memory() or self._frames_in_storage(history)
        except StoreUnavailable as error:
            log.warning("A window of %s waits. %s", self.tail.run_id, error.detail)
            return []

    def from_memory(self) -> bytes:
        """What follows the cursor, as far as it is in the ring; empty: ask storage. Moves the cursor."""
        return b"".join(self._frames_in_memory())

    def from_storage(self, history: History) -> bytes:
        """What follows the cursor: a page of events, or a snapshot. Moves the cursor. Empty: there is nothing (yet).

        :raises StoreUnavailable: it cannot be read now; the cursor is where it was.
        """
        return b"".join(self._frames_in_storage(history))

    def _frames_in_memory(self) -> list[bytes]:
        ring = self.tail.rings.get(self.wire.format)
        if ring is None or self.cursor is None or self.gap is not None or self._beyond_cap():
            return []
        frames = ring.after(self.cursor)
        self.cursor += len(frames)
        self.over = self.tail.ended and self.cursor == self.tail.head
        return self._counted(frames)

    def _frames_in_storage(self, history: History) -> list[bytes]:
        if self.gap is not None:
            return [] if self.tail.uncertain else self._gap(history)
        if self.cursor is None:
            return self._snapshot(history, "latest")
        if self._beyond_cap():
            return self._snapshot(history, "replay_cap")
        events = history.after(self.tail.run_id, self.cursor, PAGE_EVENTS, PAGE_BYTES)
        if not events:
            self.over = history.is_over(self.tail.run_id, self.cursor)
            return []
        if events[0].seq != self.cursor + 1:
            return self._snapshot(history, "gap")
        self.cursor = events[-1].seq
        self.over = events[-1].type in TERMINAL
        return self._counted(list(map(self.wire.format.event, events)))

    def _counted(self, frames: list[bytes]) -> list[bytes]:
        if not frames:
            return frames
        if not self._replayed:
            metrics.REPLAYS.inc()
        if self.posted_at is not None:
            metrics.FIRST_EVENT.observe(time.monotonic() - self.posted_at)
            self.posted_at = None
        self._replayed += sum(map(len, frames))
        return frames

    def _beyond_cap(self) -> bool:
        limits = self._limits
        if not self.wire.format.capped or self.cursor is None:
            return False
        missed = self.tail.head - self.cursor
        too_many = 0 < limits.replay_max_events < missed
        return too_many or (missed > 0 and 0 < limits.replay_max_bytes <= self._replayed)

    def _gap(self, history: History) -> list[bytes]:
        run_id, lost = self.tail.run_id, self.gap
        head = history.head(run_id)
        if self._presumed and lost is not None and head >= lost:
            self.gap = self._ahead_since = None  # the archive has it, and could not be asked before
            return []
        text = control(run_id, "stream.gap", {"requested": lost, "earliest": 1, "head": head})
        return [self.wire.format.control("stream.gap", text.encode(), None), *self._snapshot(history, "gap")]

    def _snapshot(self, history: History, reason: str) -> list[bytes]:
        run = history.store.get(self.tail.run_id)
        if run is None:
            self.over = True
            return []
        seq, ended, text = history.snapshot(run)
        if self.gap is None and self.cursor is not None and seq <= self.cursor:
            return []  # Redis is away, and the archive has nothing that the client has not: later
        self.cursor = seq
        self.gap = self._ahead_since = None
        self.over = ended
        self._replayed = 0
        metrics.SNAPSHOTS.labels(reason).inc()
        return list(paced(self.wire.snapshot(run.id, seq, text)))

    def visit(self, now: float) -> None:
        """Now and then: end what has been open for too long, keep what is quiet alive."""
        if now >= self.expires_at and self.closing is None:
            self.say_closing(Closing.ROTATED, ROTATION_RETRY_MS)
        elif now - self.quiet_since >= self._limits.heartbeat_seconds:
            self.beat(now)
        else:
            self.wake()

    def beat(self, now: float) -> None:
        """Send a heartbeat if nothing else is on its way."""
        raise NotImplementedError

    def close(self, why: Closing) -> None:
        """Close at once. A second call does nothing."""
        raise NotImplementedError

    def say_closing(self, why: Closing, retry_ms: int) -> None:
        """End in order, at the next boundary between events; the client comes back after `retry_ms`."""
        self.closing = why, last_words(self.wire.format, self.tail.run_id, why, retry_ms)
        self.wake()


def last_words(format: Format, run_id: str, why: Closing, retry_ms: int) -> bytes:
    """The last bytes of a window that ends before its run does. `run_id`: empty where it is not about one run."""
    retry = format.retry(retry_ms)
    if why is not Closing.ROTATED:
        return retry
    text = control(run_id, "stream.expired", {})
    return format.control("stream.expired", text.encode(), None) + retry


Leave = Callable[[Window, Closing], None]
"""What a window that has been closed tells its hub."""
