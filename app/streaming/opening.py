"""The windows of one web process: opens them, accounts for them, and ends them when the process is to end."""

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from gevent import monkey

from app import metrics
from app.errors import StoreUnavailable
from app.protocol.events import control
from app.storage.history import History
from app.storage.run_store import RunPosition, RunRecord
from app.streaming.admission import Admission, Ticket
from app.streaming.handover import Taken
from app.streaming.hub import TailHub
from app.streaming.tail import Tail
from app.streaming.windows.base import Closing, Limits, Window
from app.streaming.windows.iterated import IteratedWindow, cut
from app.streaming.windows.multi import MultiWindow
from app.streaming.windows.playback import PlaybackWindow
from app.streaming.windows.socket import SocketWindow, tune
from app.streaming.windows.websocket import CarryOut, WebSocketWindow
from app.streaming.wire import Format, wire

DRAIN_RETRY_MS = (100, 1_000)
"""When the clients of a process that ends come back: not all at the same moment."""
DRAIN_SECONDS = 1.0
"""Time that windows get to take their last bytes; then they are reset."""
POLL_SECONDS = 0.02
WATCH_SECONDS = 0.1
"""Between two looks whether the process is to end. Most processes do nothing else most of the time."""
KEYS_SECONDS = 3.0
"""Between two looks whether the keys of the open windows still open doors. A window that does not end in order at the
first is cut off at the second."""
REVOKED_RETRY_MS = 1_000

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Opening:
    """A window that may be opened: the client is authorised and admitted."""

    run: RunPosition | RunRecord
    cursor: int | None
    """Seq of the last event that the client has; None: begin with a snapshot at the head."""
    format: Format
    ticket: Ticket
    posted_at: float | None = None
    """`time.monotonic()` when the run was asked for, where the window is the answer to that."""
    speed: float | None = None
    """Play the run, which has ended, back: so many times as fast as it was. The cursor is a seq then."""
    parts: bool = False
    """Snapshots come in parts."""


GoodKeys = Callable[[Collection[str]], Set[str]]


class Ending(Protocol):
    """What every window has that ends before its time."""

    ticket: Ticket
    closing: tuple[Closing, bytes] | None

    def say_closing(self, why: Closing, retry_ms: int) -> None:
        """End in order."""

    def close(self, why: Closing) -> None:
        """Close at once."""


def _never() -> bool:
    return False


class Windows:
    """Opens windows; runs the hub and the admission."""

    def __init__(
        self, hub: TailHub, admission: Admission, history: History, limits: Limits, good_keys: GoodKeys
    ) -> None:
        """
        :param history: reads for windows that the hub does not serve.
        :param good_keys: of ids of keys, which still open doors. May raise StoreUnavailable.
        """
        self.draining: Callable[[], bool] = _never
        """Set by the server: true once this process is to end."""
        self.admission = admission
        self.limits = limits
        self._hub = hub
        self._history = history
        self._started = threading.Lock()
        self._good_keys = good_keys
        self._connections: dict[Ending, socket.socket | None] = {}
        """Of the windows that are iterated over: who sends one may be held up by its client."""

    def __len__(self) -> int:
        return len(self._hub.windows())

    def start(self) -> None:
        """Begin to serve. Where gevent has not patched the process there is no hub: each window looks for itself."""
        if not self._started.acquire(blocking=False):
            return
        if monkey.is_module_patched("socket"):
            self._hub.start()
        for duty in (self.admission.run, self._drain, self._look_after_keys):
            threading.Thread(target=duty, daemon=True).start()  # a greenlet, where there is gevent

    def open_on(self, taken: Taken, opening: Opening) -> None:
        """Open a window on a connection that is ours. Never blocks."""
        self._on_socket(SocketWindow, taken, opening)

    def open_websocket_on(self, taken: Taken, heard: bytes, opening: Opening, carry_out: CarryOut) -> None:
        """As `open_on`.

        :param heard: what the client has sent already.
        :param carry_out: called in a greenlet for each command.
        """
        frames = taken._replace(chunked=False)  # some versions of gunicorn would have them in chunks
        window = self._on_socket(partial(WebSocketWindow, carry_out=carry_out), frames, opening)
        if heard:
            window.listen(heard)

    def _on_socket(self, make: Callable[..., SocketWindow], taken: Taken, opening: Opening) -> SocketWindow:
        window = make(
            taken.socket,
            self._tail(opening),
            wire(opening.format, chunked=taken.chunked, parts=opening.parts),
            opening.cursor,
            self.limits,
            opening.ticket,
            read_for=self._hub.read_for,
            leave=self._left,
        )
        window.posted_at = opening.posted_at
        self._hub.enter(window)
        window.open(taken.head)
        tune(taken.socket, self.limits)  # not before: the head is to get behind what the client has not read yet
        return window

    def iterate(self, opening: Opening, sock: socket.socket | None) -> IteratedWindow:
        """Open a window as an iterator of bytes, which whoever sends them closes.

        :param sock: what they are sent on, where that is known.
        """
        window = self._iterated(opening, sock)
        window.posted_at = opening.posted_at
        self.begin(window, sock)
        self._hub.enter(window)
        return window

    def _iterated(self, opening: Opening, sock: socket.socket | None) -> IteratedWindow:
        make: Callable[..., IteratedWindow] = IteratedWindow
        if opening.speed is not None:
            make = partial(PlaybackWindow, speed=opening.speed, connection=sock)
        return make(
            self._tail(opening),
            wire(opening.format, chunked=False, parts=opening.parts),
            opening.cursor,
            self.limits,
            opening.ticket,
            history=self._history,
            leave=self._left,
            watched=lambda: self._hub.running,
        )

    def iterate_several(self, openings: Sequence[Opening], sock: socket.socket | None) -> MultiWindow:
        """As `iterate`, for one window onto several runs.

        :param openings: one for each run, with the same format, ticket and `parts`.
        """
        window = MultiWindow(
            wire(openings[0].format, chunked=False, parts=openings[0].parts),
            self.limits,
            openings[0].ticket,
            history=self._history,
            leave=self._left_several,
            watched=lambda: self._hub.running,
            connection=sock,
        )
        self.begin(window, sock)
        for opening in openings:
            member = window.add(self._tail(opening), opening.cursor, leave=lambda member, _: self._hub.leave(member))
            self._hub.enter(member)
        return window

    def begin(self, window: Ending, sock: socket.socket | None) -> None:
        """A window that is iterated over begins. Call `end` once it is closed.

        :param sock: what it is sent on, where that is known.
        """
        if sock is not None:
            tune(sock, self.limits)
        self._connections[window] = sock

    def end(self, window: Ending) -> None:
        """Nothing of the window is sent any more."""
        self._connections.pop(window, None)

    def _tail(self, opening: Opening) -> Tail:
        run = opening.run
        if run.terminal:
            return Tail(run.id, head=run.state_seq, ready=True, ended=True)
        return self._hub.tail(run.id) if self._hub.running else Tail(run.id)

    def _left(self, window: Window, why: Closing) -> None:
        self._hub.leave(window)
        self.end(window)
        self.admission.release(window.ticket, before_the_end=why is Closing.LEFT)
        if why is Closing.ROTATED:
            metrics.ROTATIONS.inc()
        log.debug("A window of %s was closed at %s: %s.", window.tail.run_id, window.cursor, why.value)

    def _left_several(self, window: MultiWindow, why: Closing) -> None:
        self.end(window)
        self.admission.release(window.ticket, before_the_end=why is Closing.LEFT, ended=window.ended)
        if why is Closing.ROTATED:
            metrics.ROTATIONS.inc()

    # The end of a key.

    def _look_after_keys(self) -> None:
        while not self.draining():
            time.sleep(KEYS_SECONDS)
            try:
                self.end_revoked()
            except StoreUnavailable as error:
                log.warning("Whether keys were removed is not known. %s", error.detail)
            except Exception:
                log.exception("The keys of the open windows could not be looked after.")

    def end_revoked(self) -> None:
        """End the windows whose key was removed or has expired; cut off those that should have ended the last time.

        :raises StoreUnavailable: whose, is not known.
        """
        followed, iterated = self._hub.windows(), list(self._connections)
        by_key: dict[str, list[Ending]] = {}
        for window in (*followed, *iterated):
            if window.ticket.key_id is not None:
                by_key.setdefault(window.ticket.key_id, []).append(window)
        for key_id in by_key.keys() - self._good_keys(by_key) if by_key else ():
            for window in by_key[key_id]:
                self._end_revoked(window)

    def _end_revoked(self, window: Ending) -> None:
        if window.closing is None:
            window.say_closing(Closing.REVOKED, REVOKED_RETRY_MS)
        elif (connection := self._connections.get(window)) is not None:
            cut(connection)
        else:
            window.close(Closing.REVOKED)

    # The end of the process.

    def _drain(self) -> None:
        """Wait until the process is to end; then end every window in order, also those that still come."""
        while not self.draining():
            time.sleep(WATCH_SECONDS)
        deadline = time.monotonic() + DRAIN_SECONDS
        while (windows := self._hub.windows()) or self._connections:
            if time.monotonic() >= deadline:
                for connection in list(self._connections.values()):
                    if connection is not None:
                        cut(connection)
            for window in windows:
                if window.closing is None:
                    window.say_closing(Closing.DRAINED, random.randint(*DRAIN_RETRY_MS))
                elif time.monotonic() >= deadline:
                    window.close(Closing.DRAINED)
                else:
                    window.wake()
            time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Wait, within DRAIN_SECONDS, for the last windows to end; hand back the leases."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._hub.windows() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self.admission.close()
        self._hub.close()


def rejection(format: Format, run_id: str, code: str, retry_ms: int) -> bytes:
    """The whole body of a window that is not opened: when to come back, and why."""
    text = control(run_id, "stream.rejected", {"code": code, "retry_ms": retry_ms})
    return format.retry(retry_ms) + format.control("stream.rejected", text.encode(), None)
