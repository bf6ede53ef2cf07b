"""What writers of external runs bring: everything that comes in at the same moment is one transaction.

Responsible for who may append what (the epoch, the number of the batch), for the seqs, and for telling the log of
inputs and decisions. What one batch does wrong fails it alone. Not responsible for payloads: those that are brought
have passed the hooks, and what the log is still to be told is answered, for the caller to bring it past them, because
a hook must not be called while rows are locked.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.errors import (
    InvalidEvent,
    ProducerGap,
    RunEnded,
    RunNotFound,
    RuntailError,
    StaleEpoch,
    StoreUnavailable,
    TooManyApprovals,
    TooManyItems,
)
from app.protocol.events import Event, Outbound, dumps, encode, timestamp
from app.storage.run_store.as_json import event_row, recordset
from app.storage.run_store.database import BEGIN, Database, columns
from app.storage.run_store.journal import insert_approval
from app.storage.run_store.records import InputRecord
from app.storage.run_store.runs import INSERT_EVENTS
from app.turns import give_way
from runtail.records import NewApproval

APPROVALS_MAX = 100
"""That one external run may ask for: every answer holds all that were decided."""
KEPT_MAX = 10_000
"""Of each kind of item that one external run may keep in its state, which is read and written as a whole."""
KEPT_BYTES_MAX = 8_000_000
"""Of the events that its state keeps, as JSON in UTF-8."""
KEPT_CONTAINERS_MAX = 200_000
"""Of lists and objects within them: each is an object of its own while the state is in memory."""
BYTES, CONTAINERS = "bytes", "containers"
"""Their names beside those of the kinds."""
_LIMITS = {BYTES: KEPT_BYTES_MAX, CONTAINERS: KEPT_CONTAINERS_MAX}
INPUTS_AT_ONCE = 100
"""In one answer, and told to the log in one transaction."""
STATE_EVENTS = 1_000
"""So many events after the stored state it is due to be stored anew; a large state is later,"""
STATE_BYTES_PER_EVENT = 100
"""by an event for each so many of its bytes, so that storing it costs no more than its events do."""

Payload = dict[str, Any]
Fact = tuple[str, str]
"""A type, and the id of an input or an approval."""

# One round trip. Three statements all the same: one that had to wait for a lock would see the other tables as they were
# before it waited.
_OPEN = f"""{BEGIN};
SELECT FROM runs WHERE id = ANY (%s) AND queue = 'external' ORDER BY id FOR NO KEY UPDATE;
SELECT r.id, r.epoch, r.finished_at IS NOT NULL OR w.ending IS NOT NULL, r.cancel_requested, r.state_seq,
       pg_column_size(r.state), w.token_hash, w.producer_seq,
       (SELECT coalesce(max(seq), 0) FROM run_events e WHERE e.run_id = r.id), w.inputs_told,
       (SELECT coalesce(max(n), 0) FROM run_inputs i WHERE i.run_id = r.id),
       EXISTS (SELECT FROM approvals a WHERE a.run_id = r.id), w.kept
FROM runs r JOIN writers w ON w.run_id = r.id AND w.epoch = r.epoch WHERE r.id = ANY (%s) AND r.queue = 'external'
"""
_APPROVALS = """
SELECT run_id, id, tool_call_id, label, requires, decision, decided_by, comment, told
FROM approvals WHERE run_id = ANY (%s) ORDER BY decided_at, id
"""
_INPUTS = """
SELECT id, after, run_id, n, text FROM unnest(%s::text[], %s::int[]) AS asked (id, after)
CROSS JOIN LATERAL (SELECT run_id, n, text FROM run_inputs WHERE run_id = asked.id AND n > asked.after
                    ORDER BY n LIMIT %s) AS input ORDER BY id, after, n
"""
_UPDATE_WRITERS = """
UPDATE writers w SET producer_seq = new.producer_seq, head = new.head, inputs_told = new.inputs_told, beats = beats + 1,
                   kept = new.kept::json
FROM unnest(%s::text[], %s::int[], %s::int[], %s::int[], %s::int[], %s::text[])
    AS new (run_id, epoch, producer_seq, head, inputs_told, kept)
WHERE w.run_id = new.run_id AND w.epoch = new.epoch
"""
_TOLD = """
UPDATE approvals a SET told = new.told FROM unnest(%s::text[], %s::text[], %s::bool[]) AS new (run_id, id, told)
WHERE a.run_id = new.run_id AND a.id = new.id
"""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one call of a writer brings."""

    run_id: str
    epoch: int
    """Of the token that it came with."""
    producer_seq: int | None
    """None: a heartbeat, which brings no events."""
    events: Sequence[tuple[str, Outbound]]
    approvals: Sequence[NewApproval]
    """Those that the events ask for."""
    inputs_after: int
    """The writer knows so many inputs."""
    size: int = 0
    """Bytes that came over the wire."""
    facts: Mapping[Fact, Outbound] = field(default_factory=dict)
    """Of inputs and decisions that earlier calls had to leave untold: what the log is to be told of them."""
    token_hash: str | None = None
    """Of the token that it came with; None: it is known to be the epoch's."""
    keeps: Mapping[str, int] = field(default_factory=dict)
    """What the run's state keeps of the events: how many of each kind, BYTES and CONTAINERS."""


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of an approval, as the writer is told."""

    approval_id: str
    decision: str
    by: str | None
    comment: str | None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The answer to a batch that was taken, now or before."""

    head: int
    producer_seq: int
    """Of the last batch that was taken."""
    cancel_requested: bool
    inputs: Sequence[InputRecord]
    decisions: Sequence[Decided]
    repeated: bool
    """It was taken before; nothing is doubled."""
    state_due: bool
    """The run's stored state is to be brought up to date."""
    untold: Mapping[Fact, Payload]
    """Inputs and decisions that the log is to be told of by a next call, once their payloads have passed the hooks."""
    added: Sequence[Event]
    """To the log, by this and the other batches of the run that were taken together; the last of them has them all."""


class _Approval:
    """One that the run has asked for."""

    __slots__ = ("asked", "decided", "told")

    def __init__(self, asked: tuple[Any, ...], decided: Decided | None, told: bool) -> None:
        self.asked = asked
        """Tool call, label, who decides: what somebody has decided on."""
        self.decided = decided
        self.told = told


class LockedRun:
    """A run that the transaction has locked, and what becomes of it."""

    def __init__(self, row: Sequence[Any]) -> None:
        self.run_id, self.epoch, self.ended, self.cancel_requested, self.state_seq, self.state_bytes = row[:6]
        self.token_hash, self.producer_seq, self.head, self.inputs_told, self.inputs, self.has_approvals = row[6:-1]
        self.kept: Counter[str] = Counter(row[-1] or {})
        self.approvals: dict[str, _Approval] = {}
        self.new_approvals: list[NewApproval] = []
        self.told: dict[str, bool] = {}
        """Approvals of which the log has been told now, or is to be told again."""
        self.facts: dict[Fact, Outbound] = {}
        self.untold: dict[Fact, Payload] = {}
        self.events: list[Event] = []
        self.touched = False
        """Its writer has shown that it is there."""

    def refusal(self, batch: Batch) -> RuntailError | None:
        """Why the batch is not taken; None: it is."""
        if self.ended:
            return RunEnded(f"{self.run_id} has ended.")
        other = batch.token_hash not in (None, self.token_hash)  # Postgres may have lost the epoch of that token
        if batch.epoch != self.epoch or other:
            return StaleEpoch(f"{self.run_id} is written under the epoch {self.epoch}.")
        if batch.producer_seq is None or batch.producer_seq <= self.producer_seq:
            return None
        if batch.producer_seq > self.producer_seq + 1:
            return ProducerGap(self.producer_seq + 1)
        return self._refused_approval(batch.approvals) or self._too_much(batch.keeps)

    def _too_much(self, keeps: Mapping[str, int]) -> TooManyItems | None:
        for kind, more in keeps.items():
            if self.kept[kind] + more > (limit := _LIMITS.get(kind, KEPT_MAX)):
                return TooManyItems(f"{kind}: at most {limit:,} in one run, and it has {self.kept[kind]:,}.")
        return None

    def _refused_approval(self, approvals: Sequence[NewApproval]) -> RuntailError | None:
        known = {id: approval.asked for id, approval in self.approvals.items()}
        for new in approvals:
            if known.setdefault(new.id, _asked(new)) != _asked(new):
                return InvalidEvent(f"The approval {new.id!r} was asked for before, as something else.")
        return TooManyApprovals() if len(known) > APPROVALS_MAX else None

    def take(self, batch: Batch, ts: str) -> bool:
        """Take what the batch brings; False: it was taken before, or is a heartbeat."""
        self.touched = True
        self.facts.update(batch.facts)
        if batch.producer_seq is None or batch.producer_seq <= self.producer_seq:
            return False
        self.producer_seq = batch.producer_seq
        self.kept.update(batch.keeps)
        for type, payload in batch.events:
            self._add(type, payload, ts)
            give_way()
        for new in batch.approvals:
            known = self.approvals.get(new.id)
            if known is None:
                self.approvals[new.id] = _Approval(_asked(new), None, told=False)
                self.new_approvals.append(new)
            else:
                known.told = self.told[new.id] = False  # the log has it open again: tell it again
        return True

    def tell(self, inputs: Sequence[InputRecord], ts: str) -> None:
        """Tell the log what the user has said meanwhile, as far as that has passed the hooks; inputs in order."""
        for input in inputs:
            payload: Payload = {"input_id": f"inp_{input.n}", "text": input.text}
            if self._told(("input.received", payload["input_id"]), payload, ts):
                self.inputs_told = input.n
        for approval in self.approvals.values():
            if approval.decided is not None and not approval.told:
                told = approval.decided
                outcome = {"decision": told.decision, "by": told.by, "comment": told.comment}
                payload = {"approval_id": told.approval_id, **outcome}
                if self._told(("approval.resolved", told.approval_id), payload, ts):
                    self.told[told.approval_id] = True

    def _told(self, fact: Fact, payload: Payload, ts: str) -> bool:
        type = fact[0]
        in_order = all(earlier != type for earlier, _ in self.untold)
        if fact in self.facts and in_order:
            self._add(type, self.facts[fact], ts)
            return True
        self.untold[fact] = payload
        return False

    def answer(self, batch: Batch, inputs: Sequence[InputRecord], repeated: bool) -> BatchResult:
        """What the writer is told."""
        return BatchResult(
            self.head,
            self.producer_seq,
            self.cancel_requested,
            [input for input in inputs if input.n <= self.inputs_told],
            [approval.decided for approval in self.approvals.values() if approval.decided is not None],
            repeated,
            self.head - self.state_seq >= STATE_EVENTS + self.state_bytes // STATE_BYTES_PER_EVENT,
            self.untold,
            (),
        )

    def _add(self, type: str, payload: Outbound, ts: str) -> None:
        self.head += 1
        self.events.append(encode(self.run_id, self.head, type, payload, ts))


class BatchStore:
    """Takes batches. May raise StoreUnavailable: whether they were taken is then unknown, and they may be repeated."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, batches: Sequence[Batch], losses: int | None = None) -> list[BatchResult | RuntailError]:
        """Commit batches of any number of runs, those of one run in order.

        Returns for each batch the answer, or why it is not taken.

        :param losses: `Database.losses` when it was last seen to that the archive has all that Redis has. If a
            connection was lost since, nothing is taken and StoreUnavailable raised. None: that does not matter.
        """
        ts = timestamp()
        with self._database.session() as db:  # which begins and commits along with the first and the last query
            if losses not in (None, self._database.losses):
                raise StoreUnavailable("The connection to Postgres was lost.")
            holds = _open(db, sorted({batch.run_id for batch in batches}))
            outcomes = [_judge(holds.get(batch.run_id), batch, ts) for batch in batches]
            touched = [hold for hold in holds.values() if hold.touched]
            inputs = _inputs(db, touched, [b for b, o in zip(batches, outcomes, strict=True) if isinstance(o, bool)])
            for hold in touched:
                hold.tell(inputs.get((hold.run_id, hold.inputs_told), ()), ts)
            _commit(db, touched)
        answers = [_answer(holds, batch, outcome, inputs) for batch, outcome in zip(batches, outcomes, strict=True)]
        _hand_out({hold.run_id: hold.events for hold in touched if hold.events}, batches, answers)
        return answers


def _asked(new: NewApproval) -> tuple[Any, ...]:
    return (new.tool_call_id, new.label, new.requires)


def _open(db: Any, run_ids: Sequence[str]) -> dict[str, LockedRun]:
    """Begin, with the runs locked in the order of their ids: so nobody waits for us whom we wait for."""
    ids = list(run_ids)
    holds = {row[0]: LockedRun(row) for row in db.execute_sql(_OPEN, (ids, ids)).fetchall()}
    if asking := [hold.run_id for hold in holds.values() if hold.has_approvals]:
        for row in db.execute_sql(_APPROVALS, (asking,)).fetchall():
            run_id, id, tool_call_id, label, requires, decision, by, comment, told = row
            decided = Decided(id, decision, by, comment) if decision is not None else None
            holds[run_id].approvals[id] = _Approval((tool_call_id, label, requires), decided, told)
    return holds


def _judge(hold: LockedRun | None, batch: Batch, ts: str) -> RuntailError | bool:
    """Take the batch, or say why not. True: it is new."""
    if hold is None:
        return RunNotFound(f"There is no run {batch.run_id!r}.")
    return hold.refusal(batch) or hold.take(batch, ts)


def _inputs(
    db: Any, holds: Iterable[LockedRun], batches: Iterable[Batch]
) -> Mapping[tuple[str, int], Sequence[InputRecord]]:
    """The inputs that are new to the log or to a writer, by run and what they follow."""
    sent = {hold.run_id: hold.inputs for hold in holds}
    asked = {(hold.run_id, hold.inputs_told) for hold in holds}
    asked |= {(batch.run_id, batch.inputs_after) for batch in batches}
    wanted = [(run_id, after) for run_id, after in asked if after < sent[run_id]]
    found: dict[tuple[str, int], list[InputRecord]] = {}
    if wanted:
        for run_id, after, *input in db.execute_sql(_INPUTS, (*columns(wanted), INPUTS_AT_ONCE)).fetchall():
            found.setdefault((run_id, after), []).append(InputRecord(*input))
    return found


def _commit(db: Any, holds: Sequence[LockedRun]) -> None:
    """Write down what has become of the runs, and commit."""
    for hold in holds:
        for new in hold.new_approvals:
            insert_approval(db, hold.run_id, new)
    if told := [(hold.run_id, id, told) for hold in holds for id, told in hold.told.items()]:
        db.execute_sql(_TOLD, columns(told))
    events = [event_row(hold.run_id, event) for hold in holds for event in hold.events]
    writers = [(h.run_id, h.epoch, h.producer_seq, h.head, h.inputs_told, dumps(h.kept)) for h in holds]
    statements: list[tuple[str, list[Any]]] = [(INSERT_EVENTS, [recordset(events)])] * bool(events)
    statements += [(_UPDATE_WRITERS, columns(writers))] * bool(writers)
    values = [value for _, columns in statements for value in columns]
    db.execute_sql("; ".join([*(sql for sql, _ in statements), "COMMIT"]), values)


def _answer(
    holds: Mapping[str, LockedRun],
    batch: Batch,
    outcome: RuntailError | bool,
    inputs: Mapping[tuple[str, int], Sequence[InputRecord]],
) -> BatchResult | RuntailError:
    if not isinstance(outcome, bool):
        return outcome
    hold = holds[batch.run_id]
    repeated = not outcome and batch.producer_seq is not None
    return hold.answer(batch, inputs.get((batch.run_id, batch.inputs_after), ()), repeated)


def _hand_out(
    added: dict[str, list[Event]], batches: Sequence[Batch], answers: list[BatchResult | RuntailError]
) -> None:
    """Give what was added to each log to the last answer of its run, whose caller brings it into Redis."""
    for index in reversed(range(len(batches))):
        answer = answers[index]
        if isinstance(answer, BatchResult) and (events := added.pop(batches[index].run_id, None)):
            answers[index] = replace(answer, added=events)
