"""A window as the body of a response: where the connection cannot be taken over (TLS, HTTP/2, another server).

The same bytes as on a socket of its own, at the cost of a greenlet, or a thread, for each window. `Iterated` is what
every window that is iterated over has in common.
"""

import logging
import os
import select
import socket
import threading
import time
from _socket import socket as NativeSocket  # which gevent has not patched
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from typing import Any

from gevent import monkey

from app.errors import StoreUnavailable
from app.storage.history import History
from app.streaming.admission import Ticket
from app.streaming.tail import Tail
from app.streaming.windows.base import Closing, Leave, Limits, Window
from app.streaming.wire import Wire

POLL_SECONDS = 0.1
"""Between two looks at the log where no hub runs."""
WAIT_SECONDS = 1.0
GONE: int = getattr(select, "POLLRDHUP", 0)
"""Half a connection counts as none. Linux says so; elsewhere a client that left is noticed at a heartbeat."""

# gevent's own knows nothing of POLLRDHUP. This one is asked without waiting, which blocks nobody.
_poll: Callable[[], Any] = monkey.get_original("select", "poll")

log = logging.getLogger(__name__)


class Iterated:
    """The order in which a body is sent: its opening, what comes next, heartbeats meanwhile, its last bytes."""

    __slots__ = ()

    wire: Wire
    over: bool
    closing: tuple[Closing, bytes] | None
    _limits: Limits

    def _next(self) -> bytes:
        """The next bytes; empty after a wait."""
        raise NotImplementedError

    def close(self, why: Closing = Closing.LEFT) -> None:
        """Whoever sends the response has stopped. A second call does nothing."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[bytes]:
        yield self.wire.format.opening
        quiet_since = time.monotonic()
        while not (self.over or self.closing):
            if body := self._next():
                quiet_since = time.monotonic()
                yield body
            elif time.monotonic() - quiet_since >= self._limits.heartbeat_seconds:
                quiet_since = time.monotonic()
                yield self.wire.format.heartbeat
        why, last = self.closing if self.closing and not self.over else (Closing.ENDED, b"")
        if last:
            yield last
        self.close(why)


class IteratedWindow(Iterated, Window):
    """A window that whoever sends the response iterates over."""

    __slots__ = ("_history", "_leave", "_watched", "_woken")

    def __init__(
        self,
        tail: Tail,
        wire: Wire,
        cursor: int | None,
        limits: Limits,
        ticket: Ticket,
        *,
        history: History,
        leave: Leave,
        watched: Callable[[], bool],
    ) -> None:
        """
        :param leave: told when the window is closed.
        :param watched: whether a hub moves the tail; where none does, the window looks for itself.
        """
        super().__init__(tail, wire, cursor, limits, ticket)
        self._history = history
        self._leave = leave
        self._watched = watched
        self._woken = threading.Event()

    def wake(self) -> None:
        """As in `Window`."""
        self._woken.set()

    def beat(self, now: float) -> None:
        """As in `Window`; the iteration sees to its heartbeats itself."""
        self.wake()

    def _next(self) -> bytes:
        """As in `Iterated`."""
        self._woken.clear()
        if frames := self.next_frames(self._history):
            return b"".join(frames)
        if not self.over:
            self._wait()
        return b""

    def _wait(self) -> None:
        if self._watched():
            self._woken.wait(WAIT_SECONDS)
            return
        time.sleep(POLL_SECONDS)
        look_up(self.tail, self._history)
        now = time.monotonic()
        if now >= self.expires_at:
            self.visit(now)

    def close(self, why: Closing = Closing.LEFT) -> None:
        """Whoever sends the response has stopped, or the hub has given up the window. A second call does nothing."""
        if not self.closed:
            self.closed = True
            self.closing = self.closing or (why, b"")
            self.tail.leave(self)
            self._leave(self, why)
            self.wake()


def has_left(connection: socket.socket | None) -> bool:
    """The client has closed the connection, or its sending side. None: nobody knows."""
    if connection is None:
        return False
    poll = _poll()
    poll.register(connection.fileno(), GONE)
    return bool(poll.poll(0))


def cut(connection: socket.socket) -> None:
    """End the connection, whatever is under way on it: who sends on it is not held up by its client any more."""
    with suppress(OSError), closing(NativeSocket(fileno=os.dup(connection.fileno()))) as native:
        native.shutdown(socket.SHUT_RDWR)  # past TLS, which would first have something to say


def look_up(tail: Tail, history: History) -> None:
    """Where no hub runs: learn how far the run has got."""
    try:
        tail.head, tail.ready = history.head(tail.run_id), True
    except StoreUnavailable as error:
        log.warning("Windows of %s wait. %s", tail.run_id, error.detail)
