"""Calls of a run that another process than a worker executes, and of code outside any run: nothing is kept of them.

The server keeps what is emitted; a writer that starts over does everything again.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, NoReturn, TypeVar

from runtail.branches import in_threads
from runtail.errors import InvalidCall, InvalidEvent, InvalidJson, NondeterministicAgent, RuntailError, TooDeep
from runtail.handles import Approval, Question, begun
from runtail.interrupts import Suspended, TimedOut
from runtail.records import OpRecord
from runtail.sinks import Sink
from runtail.values import clean, draw, given
from runtail.within import OfContext, carried

T = TypeVar("T")

EXPIRY_GRACE_SECONDS = 30.0
"""How long after its end the server may take to say that an approval has expired."""
NUMBERED_BY_EPOCH = ("msg", "apr")
"""What is said or asked again by a writer that starts over is new: the earlier one's text, and the decision that was
made on it, stay what they were. A step or a call takes the place of the earlier one."""


class External:
    """The calls of all branches of a run, and their host. Any number of threads may use it."""

    keeps = False

    def __init__(self, sink: Sink) -> None:
        self.places = OfContext()
        self._sink = sink
        self._thread = threading.get_ident()
        self._keys = itertools.count(1)
        self._numbers = {kind: itertools.count(1) for kind in ("step", "call", "msg", "apr")}

    @property
    def host(self) -> "External":
        """Itself."""
        return self

    def key(self, op: str) -> str:
        """The number of the call among those of the thread that the run was begun in: a job that is tried again makes
        these in the same order. In other threads, and without a run, nobody could know a call again.
        """
        if not self.run_id or threading.get_ident() != self._thread:
            return ""
        return f"{self.run_id}:{next(self._keys)}"

    @property
    def run_id(self) -> str:
        """The run; empty outside one."""
        return self._sink.run_id

    @property
    def cancelled(self) -> bool:
        """A cancel was requested."""
        return self._sink.cancelled

    def check(self) -> None:
        """Raise what stops the writer, if there is something."""
        self._sink.check()

    def refuse(self, error: RuntailError) -> None:
        """Raise it, or in a job say it."""
        self._sink.tell(error)

    def suspended(self, suspended: Suspended) -> NoReturn:
        """No branch of such a run ever suspends."""
        raise suspended

    def branch(self, op: str, n: int) -> "External":
        """Itself: branches need no numbers of their own."""
        return self

    @contextmanager
    def within(self, op: str) -> Iterator[None]:
        """Numbers are the same everywhere."""
        yield

    def next(self, kind: str, *types: str, records: str | None = None) -> str:
        """The number of what has an id; empty for the rest."""
        self._sink.check()
        if not kind:
            return ""
        number = next(self._numbers[kind])
        return f"{number}.{self._sink.epoch}" if kind in NUMBERED_BY_EPOCH else str(number)

    # Events.

    def emit(self, type: str, payload: Mapping[str, Any], op: str) -> None:
        """Add an event."""
        self._sink.add(type, cleaned(payload))

    def tell(self, type: str, payload: Mapping[str, Any], op: str) -> None:
        """Add an event, also once the run has been cancelled."""
        self._sink.add(type, cleaned(payload), closes=True)

    def recorded(self, op: str, kind: str, name: str, arguments: object = None) -> OpRecord | None:
        """None: nothing is."""

    def record(
        self,
        op: str,
        kind: str,
        name: str,
        result: Any,
        *,
        arguments: object = None,
        kept: object = None,
        failed: bool = False,
        event: tuple[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Add the event that tells of it."""
        if event is not None:
            self.tell(*event, op)

    def quietly(self, last: Callable[[], None]) -> None:
        """Do it."""
        last()

    def spoil(self, error: Exception) -> None:
        """Nothing keeps the agent from going on."""

    def broken(self, why: str) -> NoReturn:
        """Never called: nothing is recorded.

        :raises NondeterministicAgent: always.
        """
        raise NondeterministicAgent(why)

    # Messages.

    def new_message(self, op: str) -> str:
        """The id of a message."""
        return f"msg_{op}"

    def begin_message(self, message_id: str, role: str, op: str, *, replaces: bool = False) -> None:
        """Add its start."""
        self._sink.add("message.started", begun(message_id, role, replaces))

    def delta(self, message_id: str, text: str, op: str) -> str:
        """Add a piece of text."""
        self._sink.write(message_id, text)
        return text

    def deltas(self, message_id: str, text: str) -> str:
        """The text itself."""
        return text

    def message_text(self, message_id: str) -> str:
        """Never asked: nothing is recorded."""
        return ""

    # Waits.

    def approve(self, question: Question, id: str | None) -> Approval:
        """Ask, and wait for the decision: this thread waits, and the process has to live until then."""
        approval_id, seconds = id or f"apr_{self.next('apr')}", question.seconds
        expires_at = None if seconds is None else datetime.now(timezone.utc) + timedelta(seconds=seconds)
        payload = given(**question.payload(approval_id, expires_at))
        self.emit("approval.required", payload, "")
        decision = self._sink.decision(approval_id, None if seconds is None else seconds + EXPIRY_GRACE_SECONDS)
        if decision is None:
            return Approval("expired", None, None)
        return Approval(decision["decision"], decision["by"], decision["comment"])

    def inputs(self, wait: bool) -> list[str]:
        """What the user has sent since the last call. This asks the server."""
        return self._sink.inputs(wait)

    def now(self) -> datetime:
        """The time by this machine's clock."""
        self._sink.check()
        return datetime.now(timezone.utc)

    def random(self) -> float:
        """A random number."""
        self._sink.check()
        return draw()

    # As a host.

    def give_way(self) -> None:
        """There is nobody to give way to."""

    def sleep(self, seconds: float, given: object = None) -> None:
        """Sleep, and wake up at once when the run is cancelled."""
        self._sink.sleep(seconds)

    def alarm(self, seconds: float, timed_out: TimedOut) -> Callable[[], None]:
        """Nobody could stop a thread.

        :raises InvalidCall: always.
        """
        raise InvalidCall("run.step: timeout_s needs a worker of Runtail, which can stop the code of a step.")

    def side_by_side(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """The results of the functions, in order, each called in a thread of its own."""
        return in_threads([carried(function) for function in functions])


def cleaned(payload: object) -> Any:
    """A copy of a payload as plain JSON.

    :raises InvalidEvent: it has no JSON form.
    """
    try:
        return clean(payload)
    except (InvalidJson, TooDeep) as error:
        raise InvalidEvent(error.detail) from error
