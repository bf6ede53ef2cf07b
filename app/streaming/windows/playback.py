"""A finished run as a window again, with the pauses that it had, shorter or longer.

Responsible for when an event is sent. What is sent are the bytes of any other window; there is no replay cap.
It has a greenlet, or a thread, of its own: there is no live tail that could serve it.
"""

import logging
import socket
import time
from collections import deque
from collections.abc import Callable

from app.errors import StoreUnavailable
from app.protocol.events import TERMINAL, Event
from app.protocol.timing import Timing
from app.storage.history import History
from app.streaming.admission import Ticket
from app.streaming.tail import Tail
from app.streaming.windows.base import Closing, Leave, Limits
from app.streaming.windows.iterated import WAIT_SECONDS, IteratedWindow, has_left
from app.streaming.wire import Wire

PAGE = 50
"""Events of one read. The next ones are read when these have been sent."""

log = logging.getLogger(__name__)


class PlaybackWindow(IteratedWindow):
    """Begins at once with the event after the cursor; each other event comes when it is due from there."""

    __slots__ = ("_began", "_coming", "_connection", "_timing")

    def __init__(
        self,
        tail: Tail,
        wire: Wire,
        cursor: int,
        limits: Limits,
        ticket: Ticket,
        *,
        speed: float,
        connection: socket.socket | None,
        history: History,
        leave: Leave,
        watched: Callable[[], bool],
    ) -> None:
        """
        :param tail: of a run that has ended.
        :param speed: how many times as fast as it was.
        :param connection: what the response is sent on, where that is known.
        """
        super().__init__(tail, wire, cursor, limits, ticket, history=history, leave=leave, watched=watched)
        self._timing = Timing(speed)
        self._began: float | None = None
        """When the first event was there."""
        self._coming: deque[tuple[float, Event]] = deque()
        """What was read and not sent, each event with the moment at which it is due."""
        self._connection = connection

    def _next(self) -> bytes:
        self._woken.clear()
        if time.monotonic() >= self.expires_at:
            self.visit(time.monotonic())
        elif has_left(self._connection):
            self.closing = Closing.LEFT, b""
        if self.closing:
            return b""
        if body := self._due() or (b"" if self._coming else self._read() or self._due()):
            return body
        self._pause()
        return b""

    def _read(self) -> bytes:
        """Read the next page. Empty, but for the snapshot that stands where the log has a gap, as in `Window`."""
        assert self.cursor is not None
        run_id = self.tail.run_id
        try:
            events = self._history.after(run_id, self.cursor, PAGE)
            if events and events[0].seq != self.cursor + 1:
                return b"".join(self._snapshot(self._history, "gap"))
            self.over = not events and self._history.is_over(run_id, self.cursor)
        except StoreUnavailable as error:
            log.warning("A playback of %s waits. %s", run_id, error.detail)
            return b""
        if self._began is None:
            self._began = time.monotonic()
        for event in events:
            self._coming.append((self._began + self._timing.due(event.envelope()["ts"]), event))
        return b""

    def _due(self) -> bytes:
        """All that is due by now. Moves the cursor."""
        now, frames = time.monotonic(), []
        while self._coming and self._coming[0][0] <= now:
            _, event = self._coming.popleft()
            frames.append(self.wire.format.event(event))
            self.cursor = event.seq
            self.over = event.type in TERMINAL
        return b"".join(frames)

    def _pause(self) -> None:
        """Wait for the next event, or for something else to be done."""
        if self.over:
            return
        pause = self._coming[0][0] - time.monotonic() if self._coming else WAIT_SECONDS
        self._woken.wait(min(max(pause, 0.0), WAIT_SECONDS))
