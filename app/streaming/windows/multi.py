"""One window onto several runs: the events of each in order, those of different runs as they come.

Each run is a member: a window of its own at its own tail, which knows what comes next for it. Responsible for taking
turns between them, and for ids that say where all of them are. It is iterated over, in a greenlet or a thread.
"""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from app.protocol.framing import split_id
from app.storage.history import History
from app.streaming.admission import Ticket
from app.streaming.tail import Tail
from app.streaming.windows.base import Closing, Leave, Limits, Window, last_words
from app.streaming.windows.iterated import POLL_SECONDS, WAIT_SECONDS, Iterated, has_left, look_up
from app.streaming.wire import Wire

NO_RUN: Final = ""
"""The `run_id` of control frames that are not about one run."""


class Member(Window):
    """One run of a window. To the hub it is a window like any other."""

    __slots__ = ("_leave", "_notice", "due")

    def __init__(
        self, tail: Tail, cursor: int | None, whole: "MultiWindow", *, leave: Leave, notice: Callable[["Member"], None]
    ) -> None:
        """
        :param leave: told when the member is closed.
        :param notice: told when something may have become possible.
        """
        super().__init__(tail, whole.wire, cursor, whole.limits, whole.ticket)
        self.expires_at = whole.expires_at
        self.due = False
        """Its turn is to come."""
        self._leave = leave
        self._notice = notice

    def wake(self) -> None:
        """As in `Window`."""
        self._notice(self)

    def beat(self, now: float) -> None:
        """As in `Window`; the window as a whole sees to its heartbeats."""
        self.wake()

    def say_closing(self, why: Closing, retry_ms: int) -> None:
        """As in `Window`, for all members: the first of them that is told ends the window."""
        self.closing = why, last_words(self.wire.format, NO_RUN, why, retry_ms)
        self.wake()

    def close(self, why: Closing) -> None:
        """As in `Window`."""
        if not self.closed:
            self.closed = True
            self.tail.leave(self)
            self._leave(self, why)
            self.wake()


class MultiWindow(Iterated):
    """The window as a whole. `over` once the client has the whole log of every run."""

    def __init__(
        self,
        wire: Wire,
        limits: Limits,
        ticket: Ticket,
        *,
        history: History,
        leave: Callable[["MultiWindow", Closing], None],
        watched: Callable[[], bool],
        connection: socket.socket | None,
    ) -> None:
        """
        :param connection: what the response is sent on, where that is known.
        :param leave: told when the window is closed.
        :param watched: whether a hub moves the tails; where none does, the window looks for itself.
        """
        self.wire = wire
        self.limits = self._limits = limits
        self.ticket = ticket
        self.over = False
        self.closing: tuple[Closing, bytes] | None = None
        self.expires_at = limits.expiry()
        self._history = history
        self._leave = leave
        self._watched = watched
        self._connection = connection
        self._members: list[Member] = []
        self._due: deque[Member] = deque()
        self._woken = threading.Event()
        self._closed = False

    def add(self, tail: Tail, cursor: int | None, leave: Leave) -> Member:
        """One more run, before the first byte. The caller has the hub take the member in."""
        member = Member(tail, cursor, self, leave=leave, notice=self._notice)
        self._members.append(member)
        member.wake()
        return member

    @property
    def ended(self) -> set[str]:
        """The runs of which the client has the whole log."""
        return {member.tail.run_id for member in self._members if member.over}

    def _notice(self, member: Member) -> None:
        if not member.due:
            member.due = True
            self._due.append(member)
        self._woken.set()

    def _next(self) -> bytes:
        """As in `Iterated`: what the member whose turn it is has, or the one after it."""
        self._woken.clear()
        while self._due and not self.over:
            member = self._due.popleft()
            member.due = False
            if member.over:
                continue
            if member.closing or member.closed:
                self.closing = member.closing or (Closing.FAILED, b"")
                return b""
            if body := self._serve(member):
                return body
        if has_left(self._connection):
            self.closing = Closing.LEFT, b""
        elif not self.over:
            self._wait()
        return b""

    def _serve(self, member: Member) -> bytes:
        """The next page of one run. Whoever has been given one waits until the others have had their turn."""
        frames = member.next_frames(self._history)
        if member.over:
            member.close(Closing.ENDED)
            self.over = all(member.over for member in self._members)
        elif frames:
            member.wake()
        return self._addressed(member, frames)

    def _addressed(self, member: Member, frames: list[bytes]) -> bytes:
        """The frames with ids that say where every run is; without any while that is not known of one of them."""
        here = self._members.index(member)
        before, after = _places(self._members[:here]), _places(self._members[here + 1 :])
        body = []
        for seq, rest in map(split_id, frames):
            if seq and before is not None and after is not None:
                places = b",".join([*before, b"%b:%b" % (member.tail.run_id.encode(), seq), *after])
                body.append(b"id: %b\n%b" % (places, rest))
            else:
                body.append(rest)
        return b"".join(body)

    def _wait(self) -> None:
        if self._watched():
            self._woken.wait(WAIT_SECONDS)
            return
        time.sleep(POLL_SECONDS)
        now = time.monotonic()
        for member in self._members:
            if not member.over:
                look_up(member.tail, self._history)
                member.visit(now)

    def say_closing(self, why: Closing, retry_ms: int) -> None:
        """As in `Window`."""
        self.closing = why, last_words(self.wire.format, NO_RUN, why, retry_ms)
        self._woken.set()

    def close(self, why: Closing = Closing.LEFT) -> None:
        """As in `Iterated`."""
        if not self._closed:
            self._closed = True
            for member in self._members:
                member.close(why)
            self._leave(self, why)


def _places(members: list[Member]) -> list[bytes] | None:
    """`run:seq` of each; None while one of them has no place yet. A run that is no more needs none."""
    if any(member.cursor is None and not member.over for member in members):
        return None
    return [f"{member.tail.run_id}:{member.cursor}".encode() for member in members if member.cursor is not None]
