"""The events of one run while its agent runs: coalesces deltas, commits facts, holds the agent back.

Responsible for when an event is made and how long the agent waits. Moving events to Redis and Postgres is the
`workers.execution.flusher`'s part, for all runs of the process together.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import gevent
from gevent.event import Event as Flag

from app.pace import dumps_paced
from app.protocol.events import Outbound
from app.protocol.reducer import still
from app.storage.log_writer import LogWriter
from app.storage.run_store import Checkpoint, NewApproval, OpRecord
from runtail.deltas import Deltas
from runtail.interrupts import Interrupted, TimedOut
from workers.execution.branches import in_greenlets
from workers.execution.interrupts import Lost
from workers.execution.retry import Backoff

T = TypeVar("T")

UNAPPENDED_BYTES = 262_144
"""A run whose events that are not in Redis come to more blocks its agent until some are."""
UNARCHIVED_BYTES = 8_388_608
"""The same for Postgres, which takes them a second later, and may be away for a while."""
STATE_SECONDS = 3.0
STATE_BYTES_PER_SECOND = 200_000
"""A state is rewritten at most so often, a large one less often: whoever reads it folds what came since."""
SLICE_SECONDS = 0.005
"""An agent that emits without pause lets the others run this often."""
PAUSE_SECONDS = 0.000_1
"""Not 0: gevent comes back from that up to 50 times before it looks at a socket, and a cancel arrives on one."""


class Mover(Protocol):
    """Who moves the events of an outbox."""

    def append_soon(self, outbox: "Outbox") -> None:
        """The run has events, or text that falls due, for Redis."""

    def archive_soon(self, outbox: "Outbox") -> None:
        """The run waits for its events to be archived."""


class Outbox:
    """The events of one run while its agent runs. `interrupt` is told Cancelled or Lost, as often as it is noticed."""

    def __init__(self, writer: LogWriter, mover: Mover, interrupt: Callable[[Interrupted], None]) -> None:
        self.writer = writer
        self.interrupt = interrupt
        self.delta_due: float | None = None
        self.refused = Backoff()
        """Redis has refused events of this run alone, or could not be asked where it has the run's log."""
        self.state_due = 0.0
        self.moved = Flag()
        """Set whenever Redis or Postgres has taken events of this run."""
        self.closed = False
        self.unstorable = False
        """Postgres refuses for good what is to be committed."""
        self.inputs: dict[int, str] = {}
        """What the user has sent, by number, as it was sent: the log has it as it went out."""
        self._mover = mover
        self._deltas = Deltas()
        self._slice_end = time.monotonic() + SLICE_SECONDS
        self._ops: list[OpRecord] = []
        self._approvals: list[NewApproval] = []
        self._ops_made = self._ops_archived = 0

    @property
    def unarchived(self) -> bool:
        """Something is to be committed, and can be."""
        return not self.unstorable and (self.writer.archived < self.writer.head or bool(self._ops))

    def emit(self, type: str, payload: Outbound, op: str) -> None:
        """Add an event; it is on its way to Redis when this returns. Blocks while too much is in memory only."""
        self._must_be_open()
        self.settle()
        if type == "message.started":
            self._deltas.begin(payload["message_id"])
        self.writer.add(type, payload, op=op)
        self._mover.append_soon(self)
        self.give_way()

    def hear(self, n: int, text: str, payload: Outbound) -> None:
        """Take the user's n-th input, which may be known, without ever blocking. Nothing once the agent has ended.

        :param text: as it was sent, for the agent; the payload is that of `input.received`.
        """
        if not self.closed and n == len(self.writer.state["inputs"]) + 1:
            self.inputs[n] = text
            self.settle()
            self.writer.add("input.received", payload)
            self._mover.append_soon(self)

    def commit(
        self,
        type: str,
        payload: Outbound,
        op: str,
        *,
        record: OpRecord | None = None,
        approval: NewApproval | None = None,
    ) -> None:
        """Add an event that is a fact: this returns once it is archived, and only then it goes to Redis.

        :param record, approval: committed with it.
        """
        self._must_be_open()
        self.settle()
        seq = self.writer.add(type, payload, op=op, commit_first=True).seq
        if record is not None:
            self._add_op(record)
        if approval is not None:
            self._approvals.append(approval)
        self._mover.archive_soon(self)
        while self.writer.archived < seq:
            self._wait_moved()

    def record(self, record: OpRecord) -> None:
        """Commit what a call came to, which no event tells of."""
        self._must_be_open()
        n = self._add_op(record)
        self._mover.archive_soon(self)
        while self._ops_archived < n:
            self._wait_moved()

    def _add_op(self, record: OpRecord) -> int:
        self._ops.append(record)
        self._ops_made += 1
        return self._ops_made

    def delta(self, payload: Outbound, op: str) -> None:
        """Add text to a message. What comes in quick succession becomes one event.

        :param payload: of a `message.delta`.
        """
        self._must_be_open()
        message_id, about = payload["message_id"], {key: payload[key] for key in payload if key != "text"}
        if self._deltas.has_other(message_id, (about, op)):
            self.settle()
        if self._deltas.write(message_id, payload["text"], (about, op)):
            self.settle()
            self._mover.append_soon(self)
        elif self.delta_due is None:
            self.delta_due = self._deltas.due_at
            self._mover.append_soon(self)
        self.give_way()

    def settle(self) -> None:
        """Make an event of the text that was held back."""
        self.delta_due = None
        for _, text, (about, op) in self._deltas.take() if self._deltas else ():
            self.writer.add("message.delta", Outbound({**about, "text": text}), op=op)

    def checkpoint(self) -> Checkpoint:
        """What is not archived yet, with the state where that is due."""
        writer, now, state = self.writer, time.monotonic(), None
        if now >= self.state_due:
            state = still(writer.state)
        head, unarchived = writer.head, writer.unarchived()
        ops, approvals = tuple(self._ops), tuple(self._approvals)
        text = None if state is None else dumps_paced(state)  # meanwhile the agent may go on
        if text is not None:
            self.state_due = now + max(STATE_SECONDS, len(text) / STATE_BYTES_PER_SECOND)
        return Checkpoint(writer.run_id, writer.epoch, unarchived, text, head, ops, approvals, writer.owner or None)

    def mark_archived(self, checkpoint: Checkpoint) -> None:
        """Postgres has taken this checkpoint."""
        self.writer.mark_archived(checkpoint.state_seq)
        del self._ops[: len(checkpoint.ops)]
        del self._approvals[: len(checkpoint.approvals)]
        self._ops_archived += len(checkpoint.ops)
        self.moved.set()

    def give_way(self) -> None:
        """Wait while too much is in memory only; let the others run once this run's slice of time is over."""
        while self.writer.unappended_bytes > UNAPPENDED_BYTES or self.writer.unarchived_bytes > UNARCHIVED_BYTES:
            self._wait_moved()
        if time.monotonic() >= self._slice_end:
            gevent.sleep(PAUSE_SECONDS)
            self._slice_end = time.monotonic() + SLICE_SECONDS

    def sleep(self, seconds: float) -> None:
        """Let the others run for so long; the end of the run wakes the sleeper."""
        gevent.sleep(seconds)

    def alarm(self, seconds: float, timed_out: TimedOut) -> Callable[[], None]:
        """Stop the run in so many seconds, unless what is returned is called before."""
        timer = gevent.spawn_later(seconds, self.interrupt, timed_out)
        return lambda: timer.kill(block=False)

    def side_by_side(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """The results of the functions, in order, each called in a greenlet of its own."""
        return in_greenlets(functions)

    def _wait_moved(self) -> None:
        self.moved.clear()
        self.moved.wait()
        self._must_be_open()

    def _must_be_open(self) -> None:
        if self.closed:
            raise Lost  # an agent, or a greenlet of its, that outlived the run
