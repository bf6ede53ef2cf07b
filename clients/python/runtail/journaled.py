"""Calls of a run that has a journal: what was done before is not done again.

Each call takes the next number of its branch (see `runtail.journal`). What a call means is `Run`'s part; where its
events and records go is the log's.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any, NoReturn

from runtail.errors import InvalidEvent, InvalidJson, RuntailError, TooDeep
from runtail.handles import Approval, Question, begun
from runtail.interrupts import Interrupted, Suspended, Wait
from runtail.journal import Journal, fingerprint, stored_arguments
from runtail.ports import Log
from runtail.records import ApprovalRecord, NewApproval, OpRecord
from runtail.values import draw
from runtail.within import OfBranch

LONG_SLEEP_SECONDS = 60.0
"""A sleep of at least so long suspends the run."""


class Journaled:
    """One branch of calls. See `runtail.ports.Calls`.

    :ivar journal: of the run; its branches share it.
    """

    keeps = True

    def __init__(
        self,
        log: Log,
        check: Callable[[], None],
        journal: Journal,
        prefix: str | None = None,
        outside: OfBranch | None = None,
    ) -> None:
        """
        :param check: raises Interrupted once the run has been stopped.
        :param prefix: of the numbers of a branch, which was begun `outside` of it.
        """
        self.places = OfBranch(outside)
        self.journal = journal
        self.host: Log = log
        self._log = log
        self._check = check
        self._prefix = journal.root if prefix is None else prefix
        self._made = 0
        self._suspended: Suspended | None = None

    @property
    def upcoming(self) -> str:
        """The number of the next call."""
        return f"{self._prefix}{self._made + 1}"

    @property
    def run_id(self) -> str:
        """The run."""
        return self._log.run_id

    @property
    def cancelled(self) -> bool:
        """The run has been stopped, for whatever reason."""
        try:
            self._check()
        except Interrupted:
            return True
        return False

    def branch(self, op: str, n: int) -> "Journaled":
        """The n-th branch of call `op`."""
        return Journaled(self._log, self._check, self.journal, f"{op}.{n}.", self.places)

    def key(self, op: str) -> str:
        """Run and number: the same after a crash."""
        return f"{self.run_id}:{op}"

    @contextmanager
    def within(self, op: str) -> Iterator[None]:
        """For the block, calls are made in the one branch of call `op`: they are not made where it is recorded."""
        outside = self._prefix, self._made
        self._prefix, self._made = f"{op}.1.", 0
        try:
            yield
        finally:
            self._prefix, self._made = outside

    def next(self, kind: str, *types: str, records: str | None = None) -> str:
        """The number of the call that is being made, among all calls of its branch.

        :raises NondeterministicAgent: another call was made at that number before.
        """
        self.check()
        self._made += 1
        op = f"{self._prefix}{self._made}"
        self.journal.visit(op, records, types)
        return op

    def check(self) -> None:
        """The cancel point. A branch that has been suspended is so for good."""
        self._check()
        self.journal.check()
        if self._suspended is not None:
            raise self._suspended

    def refuse(self, error: RuntailError) -> None:
        """Raise it."""
        raise error

    def _suspend(self, *waits: Wait) -> NoReturn:
        self._suspended = Suspended(waits)
        raise self._suspended

    def suspended(self, suspended: Suspended) -> NoReturn:
        """A branch of this one waits, and so does this one."""
        self._suspend(*suspended.waits)

    # Events.

    def emit(self, type: str, payload: Mapping[str, Any], op: str) -> None:
        """Emit an event of call `op`, unless an earlier invocation has."""
        self.check()
        if not self.journal.emitted_before(op, type):
            with _at(type, op):
                self._log.emit(type, payload, op)

    def tell(self, type: str, payload: Mapping[str, Any], op: str) -> None:
        """As `emit`, of what has happened."""
        self.check()
        if not self.journal.emitted_before(op, type):
            with _at(type, op):
                self._log.emit(type, payload, op, fact=True)

    # Messages.

    def new_message(self, op: str) -> str:
        """The id of a message that call `op` is about to begin: another one where an earlier one was broken off."""
        earlier = self.journal.count(op, "message.started")
        return f"msg_{op}.{earlier + 1}" if earlier else f"msg_{op}"

    def begin_message(self, message_id: str, role: str, op: str, *, replaces: bool = False) -> None:
        """Emit its start, whatever an earlier invocation did."""
        self.check()
        with _at("message.started", op):
            self._log.emit("message.started", begun(message_id, role, replaces), op)

    def delta(self, message_id: str, text: str, op: str) -> str:
        """Write a piece of clean text, of any length; returns it as it went out."""
        self.check()
        return self._log.delta(message_id, text, op)

    def deltas(self, message_id: str, text: str) -> str:
        """The text as it went out when it was written before."""
        self.check()
        return self._log.deltas(message_id, text)

    def message_text(self, message_id: str) -> str:
        """The text of a message that was completed before."""
        return self._log.message_text(message_id)

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
        """Commit what call `op` came to. See `runtail.ports.Calls.record`.

        :param result: clean JSON.
        """
        self.check()
        stored = stored_arguments(arguments if kept is None else kept)
        record = OpRecord(op, kind, name, stored, fingerprint(kind, name, arguments), failed, result)
        if event is None:
            self._log.record(record)
            return
        try:
            with _at(event[0], op):
                self._log.commit(*event, op, record)
        except Exception as error:
            self.spoil(error)  # it was done, and must not be done again
            raise

    def quietly(self, last: Callable[[], None]) -> None:
        """For a `finally`: a run that has been stopped is closed by whoever ends it."""
        try:
            last()
        except Interrupted:
            return

    def spoil(self, error: Exception) -> None:
        """The run ends with this error, whoever catches it."""
        self.journal.spoil(error)

    def broken(self, why: str) -> NoReturn:
        """The agent has not repeated what it did.

        :raises NondeterministicAgent: always.
        """
        self.journal.broken(why)

    # Waits, and what is different each time it is asked.

    def sleep(self, seconds: float, given: object) -> None:
        """A minute or more costs nothing: the run suspends."""
        op = self.next("", records="sleep")
        if seconds >= LONG_SLEEP_SECONDS:
            self._sleep_until(op, seconds, given)
        elif not self.journal.passed(op):
            self._log.sleep(seconds)

    def _sleep_until(self, op: str, seconds: float, given: object) -> None:
        now = self.journal.time().timestamp()
        record = self.recorded(op, "sleep", "", given)
        end: float = record.result if record else now + seconds
        if record is None:
            self.record(op, "sleep", "", end, arguments=given)
        left = end - now
        if left >= LONG_SLEEP_SECONDS:
            self._suspend(Wait("time", op, datetime.fromtimestamp(end, timezone.utc)))
        if not self.journal.passed(op):
            self._log.sleep(max(0.0, left))

    def approve(self, question: Question, id: str | None) -> Approval:
        """Ask and suspend, or give what was decided. The call's number names the question, whatever `id` says."""
        op = self.next("apr", "approval.")
        approval_id = f"apr_{op}"
        known, expires_at = self.journal.approval(approval_id), self._in(question.seconds)
        payload = question.payload(approval_id, expires_at)
        new = NewApproval(approval_id, question.label, question.requires, question.tool_call_id, expires_at)
        if known is None:
            self.check()
            with _at("approval.required", op):
                self._log.ask(payload, op, lambda outbound: replace(new, label=outbound["label"]))
            self._suspend(Wait("approval", approval_id))
        if known.requires != question.requires or not self._is_label(op, known.label, payload):
            self.broken(f"Call {op} asked for another approval before.")
        return self._outcome(op, known)

    def _is_label(self, op: str, known: str, payload: Mapping[str, Any]) -> bool:
        """Whether a question that was asked has this label: as it went out, or, before that was so, as it was given."""
        if known == payload["label"]:
            return True
        with _at("approval.required", op):
            return bool(known == self._log.asks(payload)["label"])

    def _in(self, seconds: float | None) -> datetime | None:
        return None if seconds is None else self.journal.time() + timedelta(seconds=seconds)

    def _outcome(self, op: str, known: ApprovalRecord) -> Approval:
        if known.decision is None:
            self._suspend(Wait("approval", known.id))
        about = {"approval_id": known.id, "decision": known.decision, "by": known.decided_by, "comment": known.comment}
        self.tell("approval.resolved", about, op)
        return Approval(known.decision, known.decided_by, known.comment)

    def inputs(self, wait: bool) -> list[str]:
        """What the user has sent since the last call; with `wait` the run suspends until there is something."""
        op, journal = self.next("", records="inputs"), self.journal
        record = self.recorded(op, "inputs", "", wait)
        if record is not None:
            recorded: list[str] = record.result["texts"]
            return recorded
        texts, last = self._log.inputs, self._log.inputs_logged
        new = [texts[n] for n in range(journal.inputs_taken + 1, last + 1)]
        if wait and not new:
            self._suspend(Wait("input", f"inp_{journal.inputs_taken + 1}"))
        journal.inputs_taken += len(new)
        self.record(op, "inputs", "", {"texts": new, "upto": journal.inputs_taken}, arguments=wait)
        return new

    def now(self) -> datetime:
        """The time by the journal's clock, as it was when this call was first made."""
        seconds: float = self._value("now", lambda: self.journal.time().timestamp())
        return datetime.fromtimestamp(seconds, timezone.utc)

    def random(self) -> float:
        """A random number, the same whenever this call is made again."""
        number: float = self._value("random", draw)
        return number

    def _value(self, kind: str, fresh: Callable[[], float]) -> Any:
        op = self.next("", records=kind)
        record = self.recorded(op, kind, "")
        if record is not None:
            return record.result
        drawn = fresh()
        self.record(op, kind, "", drawn)
        return drawn


@contextmanager
def _at(type: str, op: str) -> Iterator[None]:
    """What is refused of a payload is said with the call's number."""
    try:
        yield
    except (InvalidEvent, InvalidJson, TooDeep) as error:
        raise error.__class__(f"Call {op}, {type}: {error.detail.removeprefix(f'{type}: ')}") from error
