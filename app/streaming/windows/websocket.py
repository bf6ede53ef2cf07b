"""A window as a WebSocket: the same events, as text frames, on a socket of its own; commands in the other direction.

Frames of events are made once and shared, as with the other formats. What is of this window alone (answers, pongs, its
close frame) goes between them, never into them. Not responsible for what a command means (`app.api.socket_commands`).
"""

import logging
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent

from app.protocol.framing import websocket_boundary, websocket_close
from app.storage.history import History
from app.streaming.windows.base import Closing
from app.streaming.windows.socket import SocketWindow, untaken
from app.streaming.windows.websocket_messages import Dialogue, Violation, is_pong
from app.streaming.wire import NORMAL_CLOSURE

CODES = {
    Closing.ENDED: NORMAL_CLOSURE,
    Closing.ROTATED: 1001,
    Closing.DRAINED: 1012,
    Closing.REVOKED: 4001,
    Closing.LAGGED: 4008,
}
"""Of the close frame, by why it is sent."""
CLOSE_SECONDS = 3.0
"""Time that a client gets to hang up after a close frame, longer only while it still takes what was before that."""

CarryOut = Callable[["WebSocketWindow", str], str]
"""Carries out one command, and returns the text of its answer. May block; does not raise."""

log = logging.getLogger(__name__)


class WebSocketWindow(SocketWindow):
    """A window whose client may answer back."""

    __slots__ = ("_carry_out", "_close_by", "_dialogue", "_why")

    def __init__(self, *args: Any, carry_out: CarryOut, **more: Any) -> None:
        """As in `SocketWindow`; commands are carried out one after the other."""
        super().__init__(*args, **more)
        self._carry_out = carry_out
        self._dialogue: Dialogue | None = None
        self._why: Closing | None = None
        """The last frame is on its way, or sent: nothing else is sent, and nothing is heard."""
        self._close_by = 0.0

    @property
    def sent(self) -> int:
        """Seq up to which the client was sent the log; 0: nothing yet."""
        return self.tail.head if self.live else self.cursor or 0

    # Sending.

    def open(self, head: bytes) -> None:
        """As in `SocketWindow`, but the head goes by itself, and whole: behind it there are only frames, between which
        the window can be broken off. A client whose socket takes no more has not read what it was answered before.
        """
        if self._write(head):
            self._advance()
        else:
            self.reset(Closing.LAGGED)

    def wake(self) -> None:
        """As in `Window`."""
        if self._why is None:
            super().wake()

    def read(self, history: History) -> None:
        """As in `SocketWindow`."""
        super().read(history)
        self._speak()

    def _advance(self) -> None:
        if self._why is not None:
            return self.finish(self._why)
        self._speak()
        if self._rest is None:
            super()._advance()
        return None

    def _write(self, data: bytes) -> bool:
        return self._why is None and super()._write(data)

    def _speak(self) -> None:
        """Send pongs and answers, if nothing is under way that they have to wait for."""
        if self._dialogue is None or self._rest is not None or self._reading or self._said or self.closed:
            return
        if frames := self._dialogue.frames():
            self._interject(frames)

    def _join(self) -> None:
        """As in `SocketWindow`; but who waits for an answer gets it before the run's end: that the hub cannot do."""
        if not self._is_obeying():
            return super()._join()
        self.levelled()
        self._mark, self._marked_at = self.tail.head, time.monotonic()
        return None

    def _is_obeying(self) -> bool:
        return self._dialogue is not None and self._dialogue.obeying

    # Ending.

    def _end(self) -> None:
        at_once = self.closing is not None and self.closing[0] in (Closing.DRAINED, Closing.REVOKED)
        if at_once or not self._is_obeying():
            super()._end()

    def _last_bytes(self, why: Closing, body: bytes) -> bytes:
        return body + websocket_close(CODES[why])

    def finish(self, why: Closing) -> None:
        """As in `SocketWindow`; but it is for the client to hang up, or it might lose what it has not read yet."""
        if self.live:
            self._part()
        self._said, self._why = True, why
        self._close_by = self._close_by or time.monotonic() + CLOSE_SECONDS
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def visit(self, now: float) -> None:
        """As in `SocketWindow`."""
        if self._why is None:
            super().visit(now)
        elif now >= self._close_by and not self._is_taking(now):
            done = self._rest is None and self._why is not Closing.LAGGED
            self.close(self._why) if done else self.reset(self._why)

    def _is_taking(self, now: float) -> bool:
        """The client is still at what the kernel has for it, which would be lost if it said something after a close."""
        too_late = self._close_by + self._limits.max_lag_seconds
        told = self._rest is None and self._why is Closing.ENDED
        return told and now < too_late and untaken(self._socket) > 0

    def close(self, why: Closing) -> None:
        """As in `Window`; what its close frame says counts."""
        super().close(self._why or why)

    def _give_up(self) -> None:
        self._break_off(Closing.LAGGED, CODES[Closing.LAGGED])

    def _break_off(self, why: Closing, code: int | None) -> None:
        """Finish the frame that is under way, and send a close frame in place of everything else."""
        if self.live:
            self._part()
        over, self._said, self._why = self._said, True, why
        self._close_by = time.monotonic() + CLOSE_SECONDS
        if self._rest is None:
            if super()._write(websocket_close(code)):
                self.finish(why)
            return
        frames = self._rest.obj
        assert isinstance(frames, bytes)
        position = len(frames) - len(self._rest)
        end = websocket_boundary(frames, position)
        if not (over and end == len(frames)):  # else it is the close frame that is under way
            self._keep(memoryview(frames[position:end] + websocket_close(code)))

    # Hearing.

    def listen(self, said: bytes) -> None:
        """The client has said this."""
        if self._why is not None or (self._dialogue is None and is_pong(said)):
            return
        if self._dialogue is None:
            self._dialogue = Dialogue()
        try:
            self._take(self._dialogue, said)
        except Violation as violation:
            self._break_off(Closing.LEFT, violation.code)
        except Exception:  # of one window; the loop, which calls this, has others to see to
            log.exception("A window of %s failed.", self.tail.run_id)
            self.close(Closing.FAILED)

    def _take(self, dialogue: Dialogue, said: bytes) -> None:
        for goodbye in dialogue.take(said):
            if goodbye is not None:
                return self._break_off(Closing.LEFT, goodbye.code)
            self._speak()
            if dialogue.commands and not dialogue.obeying:
                dialogue.obeying = True
                if self.live:
                    self._part()  # see `_join`
                gevent.spawn(self._obey, dialogue)
            if self.closed:
                return None
        return None

    def _obey(self, dialogue: Dialogue) -> None:
        """Carry out what has been said, in that order, also where nobody waits for the answers any more."""
        while dialogue.commands and self._why is not Closing.REVOKED:
            answer = self._carry_out(self, dialogue.commands[0])
            dialogue.commands.pop(0)
            dialogue.answers.append(answer)
            self._speak()
        dialogue.obeying = False
        self.wake()
