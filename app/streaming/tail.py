"""The end of one run's log as this process has it: what has arrived lately, framed once, and who is level with it.

Pure memory. Not responsible for reading (`hub`) or for what a window behind the tail gets (`window`).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from app.protocol.events import TERMINAL, Event
from app.streaming.wire import Format, Wire

if TYPE_CHECKING:
    from app.streaming.windows.base import Window
    from app.streaming.windows.socket import SocketWindow

Send = Callable[[bytes | memoryview], int]

RING_EVENTS = 256
RING_BYTES = 128_000
"""What a ring keeps of its run, in one format; a window further behind reads from storage."""


class Ring:
    """The last events of a run, framed in one format: those after `base`, without a gap."""

    __slots__ = ("base", "frames", "size")

    def __init__(self, base: int) -> None:
        self.base = base
        self.frames: list[bytes] = []
        self.size = 0

    def add(self, frames: list[bytes]) -> None:
        """Add the next frames, and forget the oldest where there are too many."""
        self.frames += frames
        self.size += sum(map(len, frames))
        if len(self.frames) > RING_EVENTS or self.size > RING_BYTES:
            self._forget(len(self.frames) // 2)

    def after(self, cursor: int) -> list[bytes]:
        """The frames of the events after the cursor; empty where it does not have them all."""
        return self.frames[cursor - self.base :] if cursor >= self.base else []

    def _forget(self, count: int) -> None:
        self.base += count
        self.size -= sum(map(len, self.frames[:count]))
        del self.frames[:count]


class Tail:
    """A run that is watched here. `head` is the seq up to which its live windows have been served."""

    __slots__ = (
        "active_at",
        "chars",
        "count",
        "doubted_at",
        "ended",
        "head",
        "live",
        "mark",
        "others",
        "ready",
        "rings",
        "run_id",
        "uncertain",
    )

    def __init__(self, run_id: str, *, head: int = 0, ready: bool = False, ended: bool = False) -> None:
        self.run_id = run_id
        self.head = head
        self.ready = ready
        """The head is known: it was read after the doorbell was heard."""
        self.ended = ended
        """The event at the head is the terminal one."""
        self.uncertain = False
        """Redis is away: the run may have gone further than is known here."""
        self.chars = 0
        """Of an event, on average, as far as was seen lately: what comes next is most likely of that size."""
        self.mark: int | None = None
        """`mark_of` the event at the head, where that is known."""
        self.count = 0
        """Its windows."""
        self.active_at = self.doubted_at = time.monotonic()
        """When it was last looked up in the archive, or begun."""
        self.rings: dict[Format, Ring] = {}
        self.live: dict[Wire, dict[SocketWindow, Send]] = {}
        """With what sends to each, so that handing out a chunk touches nothing else."""
        self.others: set[Window] = set()
        """Every window that is not live."""

    def windows(self) -> Iterator["Window"]:
        """Every window, live or not; a copy."""
        return iter([*(window for group in self.live.values() for window in group), *self.others])

    def enter(self, window: "Window") -> None:
        """A window begins; it is not live yet."""
        self.count += 1
        self.others.add(window)

    def join(self, window: "SocketWindow") -> None:
        """The window has every event up to the head: from now on it is handed what comes."""
        self.others.discard(window)
        self.live.setdefault(window.wire, {})[window] = window.send

    def part(self, window: "SocketWindow") -> None:
        """The window is live no more."""
        del self.live[window.wire][window]
        self.others.add(window)

    def leave(self, window: "Window") -> None:
        """The window is closed."""
        self.count -= 1
        self.others.discard(window)
        if group := self.live.get(window.wire):
            group.pop(window, None)  # type: ignore[call-overload]  # the other kind of window is never in it

    def accept(self, events: Sequence[Event], now: float) -> dict[Format, list[bytes]] | None:
        """Take in events, those that are known already left out: the frames of the others, by format.

        None: nothing new, or the first is not head + 1, which somebody else has to bring.
        """
        if events and events[0].seq <= self.head:
            events = [event for event in events if event.seq > self.head]
        if not events or events[0].seq != self.head + 1:
            return None
        framed: dict[Format, list[bytes]] = {}
        for format in self._formats():
            framed[format] = frames = list(map(format.event, events))
            ring = self.rings.get(format)
            if ring is None or ring.base + len(ring.frames) != self.head:  # nobody had this format for a while
                ring = self.rings[format] = Ring(self.head)
            ring.add(frames)
        self._stand_at(events[-1])
        self.chars = sum(len(event.text) for event in events) // len(events)
        self.active_at = now
        return framed

    def begin(self, events: Sequence[Event]) -> None:
        """These are the run's last events, consecutive ones; empty: it has none.

        Windows that wait for them have them from memory, as far as they are small, until `cool`.
        """
        self._stand_at(events[-1] if events else None)
        self.rings.clear()
        least = self.least_cursor()
        sizes = accumulate(len(event.text) for event in reversed(events))
        fitting = sum(size <= RING_BYTES for size in sizes)
        wanted = events[-fitting:] if fitting and least is not None and self.head - fitting <= least < self.head else ()
        for format in self._formats() if wanted else ():
            ring = self.rings[format] = Ring(self.head - fitting)
            ring.add(list(map(format.event, wanted)))

    def least_cursor(self) -> int | None:
        """Of the windows that wait, but for those that begin with a snapshot; None: there are none."""
        return min((window.cursor for window in self.others if window.cursor is not None), default=None)

    def _stand_at(self, event: Event | None) -> None:
        self.head, self.mark = (event.seq, mark_of(event)) if event else (0, None)
        self.chars = len(event.text) if event else 0
        self.ended = event is not None and event.type in TERMINAL

    def _formats(self) -> set[Format]:
        formats = {wire.format for wire, group in self.live.items() if group}
        if self.others:
            formats.update(window.wire.format for window in self.others)
        return formats

    @property
    def size(self) -> int:
        """Bytes in its rings."""
        return sum(ring.size for ring in self.rings.values()) if self.rings else 0

    def cool(self) -> None:
        """Forget what nobody has asked for lately."""
        self.rings.clear()


def mark_of(event: Event) -> int:
    """Tells events of the same seq apart, which there can be where a log was lost and written anew."""
    return hash(event.text)
