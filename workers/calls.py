"""The calls of one branch of a run: numbers them, and keeps what was done before from being done again.

Between `RunContext`, which says what a call means, and the outbox and the journal, which say what becomes of it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from app.errors import InvalidEvent, InvalidJson, InvalidOutput, TooDeep
from app.hooks import Hooks, text_of
from app.protocol.events import Outbound, clean, dumps
from app.protocol.reducer import State
from app.storage.run_store import NewApproval, OpRecord
from workers.execution.interrupts import Interrupted, Suspended, Wait
from workers.execution.runner import Outlet
from workers.journal import Journal, fingerprint, stored_arguments

RESULT_CHARS = 2_000_000
"""Of one recorded result as JSON."""


class Calls:
    """One branch of calls. Each method but the first few is a cancel point: it may raise Interrupted.

    :ivar journal: of the run; its branches share it.
    """

    def __init__(
        self, outbox: Outlet, hooks: Hooks, check: Callable[[], None], journal: Journal, prefix: str | None = None
    ) -> None:
        """:param check: raises Interrupted once the run has been stopped."""
        self.journal = journal
        self.outbox = outbox
        self._hooks = hooks
        self._check = check
        self._prefix = journal.root if prefix is None else prefix
        self._made = 0
        self._suspended: Suspended | None = None

    @property
    def state(self) -> State:
        """The fold of the run's log."""
        return self.outbox.writer.state

    @property
    def run_id(self) -> str:
        """The run."""
        return self.outbox.writer.run_id

    def branch(self, prefix: str) -> "Calls":
        """Calls that are made side by side with those of other branches."""
        return Calls(self.outbox, self._hooks, self._check, self.journal, prefix)

    @contextmanager
    def within(self, op: str) -> Iterator[None]:
        """For the block, calls are made in the one branch of call `op`: they are not made where it is recorded."""
        outside = self._prefix, self._made
        self._prefix, self._made = f"{op}.1.", 0
        try:
            yield
        finally:
            self._prefix, self._made = outside

    def next(self, *prefixes: str, records: str | None = None) -> str:
        """The number of the call that is being made.

        :param prefixes: of the types of its events.
        :param records: the kind of its record, if it has one.
        :raises NondeterministicAgent: another call was made at that number before.
        """
        self.check()
        self._made += 1
        op = f"{self._prefix}{self._made}"
        self.journal.visit(op, records, prefixes)
        return op

    def check(self) -> None:
        """The cancel point. A branch that has been suspended is so for good."""
        self._check()
        self.journal.check()
        if self._suspended is not None:
            raise self._suspended

    def suspend(self, *waits: Wait) -> NoReturn:
        """
        :raises Suspended: always.
        """
        self._suspended = Suspended(waits)
        raise self._suspended

    # Events.

    def emit(self, type: str, payload: Mapping[str, Any], op: str) -> None:
        """Emit an event of call `op`, unless an earlier invocation has."""
        self.check()
        if not self.journal.emitted_before(op, type):
            self.outbox.emit(type, self._outbound(type, payload, op), op)

    def tell(self, type: str, payload: Mapping[str, Any], op: str) -> None:
        """As `emit`, of what has happened: a hook that fails withholds its texts."""
        self.check()
        if not self.journal.emitted_before(op, type):
            self.outbox.emit(type, self._outbound(type, payload, op, make=self._hooks.fact), op)

    def emit_anew(self, type: str, payload: Mapping[str, Any], op: str) -> None:
        """Emit an event of call `op`, whatever an earlier invocation did."""
        self.check()
        self.outbox.emit(type, self._outbound(type, payload, op), op)

    def delta(self, message_id: str, text: str, op: str) -> str:
        """Write a piece of clean text, of any length; returns it as it went out."""
        self.check()
        deltas = self._hooks.deltas(message_id, text)
        for delta in deltas:
            self.outbox.delta(delta, op)
        return text_of(deltas)

    def unsaid(self, message_id: str, text: str) -> str:
        """The text as it went out when it was written before."""
        self.check()
        return text_of(self._hooks.deltas(message_id, text))

    # Records.

    def recorded(self, op: str, kind: str, name: str, arguments: object = None) -> OpRecord | None:
        """What call `op` came to, if that is recorded.

        :raises NondeterministicAgent: it was another call.
        """
        if not self.journal:
            return None
        return self.journal.record(op, kind, name, fingerprint(kind, name, arguments))

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
        """Commit what call `op` came to, with the event that tells of it, before the agent gets to know.

        :param result: clean JSON.
        :param kept: what is stored of the arguments; None: these themselves. In either case without secrets.
        """
        self.check()
        stored = stored_arguments(arguments if kept is None else kept)
        record = OpRecord(op, kind, name, stored, fingerprint(kind, name, arguments), failed, result)
        if event is None:
            self.outbox.record(record)
        else:
            try:
                outbound = self._outbound(*event, op, make=self._hooks.fact)
            except Exception as error:
                self.journal.spoil(error)  # it was done, and must not be done again
                raise
            self.outbox.commit(event[0], outbound, op, record=record)

    def ask(self, payload: Mapping[str, Any], asked: Callable[[Outbound], NewApproval], op: str) -> None:
        """Commit a question, with the event that tells of it.

        :param asked: the row of the question, made of the event's payload as it goes out.
        """
        self.check()
        outbound = self.question(payload, op)
        self.outbox.commit("approval.required", outbound, op, approval=asked(outbound))

    def question(self, payload: Mapping[str, Any], op: str) -> Outbound:
        """The payload of a question as it goes out."""
        return self._outbound("approval.required", payload, op)

    def _outbound(
        self,
        type: str,
        payload: Mapping[str, Any],
        op: str,
        make: Callable[[str, Mapping[str, Any]], Outbound] | None = None,
    ) -> Outbound:
        """The payload as it goes out; what is refused of it is said with the call's number."""
        try:
            return (make or self._hooks)(type, payload)
        except (InvalidEvent, InvalidJson, TooDeep) as error:
            raise error.__class__(f"Call {op}, {type}: {error.detail.removeprefix(f'{type}: ')}") from error

    def quietly(self, last: Callable[[], None]) -> None:
        """For a `finally`: a run that has been stopped is closed by whoever ends it."""
        try:
            last()
        except Interrupted:
            return


def as_result(value: object, of: str) -> Any:
    """A result as it can be recorded, and as the agent sees it from the first time on.

    :raises InvalidOutput: it is not JSON, or too large.
    """
    try:
        result = clean(value)
    except (InvalidJson, TooDeep) as error:
        raise InvalidOutput(f"The result of {of} is not JSON: {error.detail}") from error
    if len(dumps(result)) > RESULT_CHARS:
        raise InvalidOutput(f"The result of {of} is larger than {RESULT_CHARS} characters.")
    return result
