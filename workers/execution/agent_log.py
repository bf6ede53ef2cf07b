"""The log of a run as its agent's calls see it: the server's door before the outbox. See `runtail.ports.Log`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from app.hooks import Hooks, text_of
from runtail.interrupts import TimedOut
from runtail.records import NewApproval, OpRecord
from workers.execution.named import call_named
from workers.execution.runner import Outlet

T = TypeVar("T")


class AgentLog:
    """Of one run, for one invocation."""

    def __init__(self, outlet: Outlet, hooks: Hooks) -> None:
        self._outlet = outlet
        self._hooks = hooks

    @property
    def run_id(self) -> str:
        """The run."""
        return self._outlet.writer.run_id

    @property
    def inputs(self) -> Mapping[int, str]:
        """What the user has sent, by number, as it was sent."""
        return self._outlet.inputs

    @property
    def inputs_logged(self) -> int:
        """How many of them the log holds."""
        return len(self._outlet.writer.state["inputs"])

    def emit(self, type: str, payload: Mapping[str, Any], op: str, *, fact: bool = False) -> None:
        """Add an event."""
        self._outlet.emit(type, (self._hooks.fact if fact else self._hooks)(type, payload), op)

    def commit(self, type: str, payload: Mapping[str, Any], op: str, record: OpRecord) -> None:
        """Add an event that is a fact, with the record of its call."""
        self._outlet.commit(type, self._hooks.fact(type, payload), op, record=record)

    def ask(self, payload: Mapping[str, Any], op: str, asked: Callable[[Mapping[str, Any]], NewApproval]) -> None:
        """Add a question."""
        outbound = self._hooks("approval.required", payload)
        self._outlet.commit("approval.required", outbound, op, approval=asked(outbound))

    def asks(self, payload: Mapping[str, Any]) -> Mapping[str, Any]:
        """The payload of a question as it would go out."""
        return self._hooks("approval.required", payload)

    def record(self, record: OpRecord) -> None:
        """Commit what a call came to."""
        self._outlet.record(record)

    def delta(self, message_id: str, text: str, op: str) -> str:
        """Add text to a message; returns it as it went out."""
        deltas = self._hooks.deltas(message_id, text)
        for delta in deltas:
            self._outlet.delta(delta, op)
        return text_of(deltas)

    def deltas(self, message_id: str, text: str) -> str:
        """The text as it would go out."""
        return text_of(self._hooks.deltas(message_id, text))

    def message_text(self, message_id: str) -> str:
        """The text of a message, as the log has it."""
        message = self._outlet.writer.message(message_id)
        return "" if message is None else str(message["text"])

    # As a host.

    def give_way(self) -> None:
        """Wait while too much is in memory only, and let others run."""
        self._outlet.give_way()

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        self._outlet.sleep(seconds)

    def alarm(self, seconds: float, timed_out: TimedOut) -> Callable[[], None]:
        """Stop the run in so many seconds, unless what is returned is called before."""
        return self._outlet.alarm(seconds, timed_out)

    def side_by_side(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """The results of the functions, in order."""
        return self._outlet.side_by_side([partial(call_named, self.run_id, function) for function in functions])
