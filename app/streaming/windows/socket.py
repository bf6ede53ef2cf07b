"""A window on a socket of its own: no request, no greenlet, only a cursor and what the socket did not take.

All methods but `read` run in callbacks of the event loop and never block.
"""

import fcntl
import logging
import socket
import struct
import termios
import time
from _socket import socket as NativeSocket  # what gevent's sockets wrap; itself it is not patched
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import gevent

from app import metrics
from app.errors import StoreUnavailable
from app.storage.history import History
from app.streaming.admission import Ticket
from app.streaming.tail import Send, Tail
from app.streaming.windows.base import HEALING_SECONDS, Closing, Leave, Limits, Place, Window
from app.streaming.wire import Wire

READABLE, WRITABLE = 1, 2
READ_BYTES = 4_096
JUNK_BYTES = 65_536
"""What a client may say on a connection on which it has nothing to say."""
UNSENT_BYTES = 32_768
"""What the kernel may hold unsent for a window; by default it is megabytes, in which a slow reader hides."""
USER_TIMEOUT_MARGIN_SECONDS = 5
"""Past the longest lag: it is we who end a slow window, the kernel only where nothing else did."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing resets the connection, and the kernel keeps nothing for it."""

log = logging.getLogger(__name__)


class SocketWindow(Window):
    """A window that the hub serves by itself."""

    __slots__ = (
        "_awaits_healing",
        "_junk",
        "_leave",
        "_mark",
        "_marked_at",
        "_opening",
        "_read_for",
        "_reading",
        "_rest",
        "_said",
        "_socket",
        "_to_read",
        "_to_write",
        "live",
        "send",
    )

    def __init__(
        self,
        native: NativeSocket,
        tail: Tail,
        wire: Wire,
        cursor: int | None,
        limits: Limits,
        ticket: Ticket,
        *,
        read_for: Callable[["SocketWindow"], None],
        leave: Leave,
    ) -> None:
        """
        :param native: a connected, non-blocking socket on which nothing of the response has been sent.
        :param read_for: called when the window needs to read from storage: have `read` called, in a greenlet.
        :param leave: told when the window is closed.
        """
        super().__init__(tail, wire, cursor, limits, ticket)
        self._socket = native
        self.send: Send = native.send
        self.live = False
        """The tail hands it what comes. Its cursor is the tail's head, and is not kept."""
        self._read_for = read_for
        self._leave = leave
        self._opening = b""
        """Head of the response and what comes first: sent along with what is written next, one call for both."""
        self._rest: memoryview | None = None
        """What the socket has not taken; nothing else may be sent before it."""
        self._reading = False
        self._awaits_healing = False
        self._said = False
        self._junk = 0
        self._mark = 0
        self._marked_at = 0.0
        """By when what: the lag counts from there. 0: it has never been level, so any progress will do."""
        loop = gevent.get_hub().loop
        self._to_read: Any = loop.io(native.fileno(), READABLE)
        self._to_write: Any = None
        self._to_read.start(self._hear)

    # Sending.

    def open(self, head: bytes) -> None:
        """Begin.

        :param head: of the response.
        """
        self._opening = head + self.wire.wrap(self.wire.format.opening)
        self._advance()

    def wake(self) -> None:
        """Go on, unless something is under way that goes on by itself."""
        if not (self.closed or self.live or self._reading or self._rest is not None):
            self._advance()

    def _advance(self) -> None:
        while not self.closed:
            if self.over or self.closing is not None:
                return self._end()
            place = self.place()
            if place is Place.WAITING:
                return self._await_healing()
            if place is Place.LEVEL:
                if not self.tail.ended:
                    return self._join() if self._write_opening() else None
                self.over = True
                continue
            body = self.from_memory()
            if not body:
                if not self._write_opening():
                    return None
                self._reading = True
                return self._read_for(self)
            if not self._write(self.wire.wrap(body)):
                return None
        return None

    def _write_opening(self) -> bool:
        """Have nothing wait for what comes next: that may be long. False: the socket has not taken all of it."""
        return not self._opening or self._write(b"")

    def _await_healing(self) -> None:
        if self.ahead and not self._awaits_healing and self._write_opening():
            self._awaits_healing = True
            gevent.spawn_later(HEALING_SECONDS, self.wake)

    def read(self, history: History) -> None:
        """Read what comes next and send it; in a greenlet, may block."""
        try:
            body = b"" if self.closed else self.from_storage(history)
        except StoreUnavailable as error:
            log.warning("A window of %s waits. %s", self.tail.run_id, error.detail)
            self._reading = False
            return  # the next visit tries again
        self._reading = False
        if self.closed or (body and not self._write(self.wire.wrap(body))):
            return
        if body or self.over:
            self._advance()

    def _join(self) -> None:
        self.levelled()
        self.live = True
        self.tail.join(self)

    def fall_behind(self, rest: memoryview, *, said_all: bool = False) -> None:
        """The socket did not take all of what the tail, whose head has moved on, has handed out.

        :param said_all: with the rest the window has ended.
        """
        self._part()
        self._said = self.over = said_all
        self._keep(rest)

    def _part(self) -> None:
        self.cursor = self._mark = self.tail.head
        self._marked_at = time.monotonic()
        self.quiet_since = self.tail.active_at
        self.live = False
        self.look_at = 0.0
        self.tail.part(self)

    def _write(self, data: bytes) -> bool:
        """Send; False where the socket did not take all of it, or is no more."""
        if self._opening:
            data, self._opening = self._opening + data, b""
        try:
            sent = self.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close(Closing.LEFT)
            return False
        self.quiet_since = time.monotonic()
        if sent == len(data):
            return True
        self._keep(memoryview(data)[sent:])
        return False

    def _keep(self, rest: memoryview) -> None:
        if not self._mark:
            self._marked_at = time.monotonic()
        self._rest = rest
        if self._to_write is None:
            self._to_write = gevent.get_hub().loop.io(self._socket.fileno(), WRITABLE)
        if not self._to_write.active:
            self._to_write.start(self._send_rest)

    def _send_rest(self) -> None:
        """The socket takes more."""
        assert self._rest is not None
        try:
            sent = self.send(self._rest)
        except BlockingIOError:
            return
        except OSError:
            return self.close(Closing.LEFT)
        if sent < len(self._rest):
            return self._keep(self._rest[sent:])
        self._rest = None
        self._to_write.stop()
        self.quiet_since = time.monotonic()
        if self.cursor is None or self.cursor >= self._mark:
            self._mark, self._marked_at = self.tail.head if self._mark else 0, self.quiet_since
        self._advance()

    # Ending.

    def _end(self) -> None:
        """Write the last bytes, once; then close."""
        why, body = self.closing if self.closing and not self.over else (Closing.ENDED, b"")
        if not self._said:
            self._said = True
            last = self._last_bytes(why, body)
            if (last or self._opening) and not self._write(last):
                return
        self.finish(why)

    def _last_bytes(self, why: Closing, body: bytes) -> bytes:
        return (self.wire.wrap(body) if body else b"") + self.wire.end

    def finish(self, why: Closing) -> None:
        """The socket has taken all there is to say."""
        self.close(why)

    def lose(self) -> None:
        """As in `Window`."""
        if self.live:
            self._part()
        super().lose()

    def say_closing(self, why: Closing, retry_ms: int) -> None:
        """As in `Window`."""
        if self.live:
            self._part()
        super().say_closing(why, retry_ms)

    def visit(self, now: float) -> None:
        """As in `Window`; also gives up on a client that reads too slowly."""
        if self._rest is not None and now - self._marked_at > self._limits.max_lag_seconds:
            metrics.LAG_CLOSES.inc()
            return self._give_up()
        if self.live:
            self.quiet_since = max(self.quiet_since, self.tail.active_at)
        if self._rest is None and not self._write_opening():
            return None
        super().visit(now)
        if self.live:
            self.look_at = min(self.expires_at, self.quiet_since + self._limits.heartbeat_seconds)
        return None

    def beat(self, now: float) -> None:
        """As in `Window`."""
        if self._rest is None and not self._reading:
            self._interject(self.wire.wrap(self.wire.format.heartbeat))
            self.wake()

    def _interject(self, data: bytes) -> None:
        """Send what is no event, while nothing else is under way."""
        if not self.live:
            self._write(data)
            return
        self.quiet_since = time.monotonic()
        try:
            sent = self.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return self.close(Closing.LEFT)
        if sent < len(data):
            self.fall_behind(memoryview(data)[sent:])

    def _hear(self) -> None:
        """The client has said something, or has gone: half a connection counts as none."""
        try:
            said = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            said = b""
        if said:
            self.listen(said)
        else:
            self.close(Closing.LEFT)

    def listen(self, said: bytes) -> None:
        """The client has said this, and has nothing to say."""
        self._junk += len(said)
        if self._junk > JUNK_BYTES:
            self.close(Closing.LEFT)

    def _give_up(self) -> None:
        """The client reads too slowly."""
        self.reset(Closing.LAGGED)

    def reset(self, why: Closing) -> None:
        """Close at once; what the kernel still has for the client is dropped."""
        with suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.close(why)

    def close(self, why: Closing) -> None:
        """Close the connection. A second call does nothing."""
        if self.closed:
            return
        self.closed, self._rest = True, None
        for watcher in (self._to_read, self._to_write):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        self._socket.close()
        self.tail.leave(self)
        self._leave(self, why)


def tune(sock: NativeSocket | socket.socket, limits: Limits) -> None:
    """Make a slow reader show: see UNSENT_BYTES. Systems and kinds of socket without the options do without."""
    timeout_ms = int((limits.max_lag_seconds + USER_TIMEOUT_MARGIN_SECONDS) * 1_000)
    with suppress(OSError, AttributeError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)


def untaken(sock: NativeSocket | socket.socket) -> int:
    """Bytes that were sent and that the client's system has not taken. 0 where this system does not tell."""
    try:
        (count,) = struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return 0
    return int(count)


def hand_out(tail: Tail, wire: Wire, chunk: bytes) -> None:
    """Send one chunk to every live window of this wire; the tail's head has moved on already.

    Each socket gets the same bytes with one call. What goes wrong with one window concerns no other.
    """
    size, troubled = len(chunk), []
    for window, send in tail.live[wire].items():
        try:
            sent = send(chunk)
        except BlockingIOError:
            sent = 0
        except Exception:  # whatever it is, the others are to get their bytes
            sent = -1
        if sent != size:
            troubled.append((window, sent))
    for window, sent in troubled:
        if sent < 0:
            window.close(Closing.LEFT)
        else:
            window.fall_behind(memoryview(chunk)[sent:], said_all=tail.ended)
    if tail.ended:
        for window in list(tail.live[wire]):
            window.finish(Closing.ENDED)
