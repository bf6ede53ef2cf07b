"""A worker on real stores that does one step at a time: what `workers` does between two of its calls to a store.

Its agent makes call 1, a tool, and call 2, which asks for an approval. Everything else is the real code's.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from app.errors import Behind, Fenced
from app.protocol.ending import Ending
from app.storage.event_log import Append
from app.storage.log_writer import LogWriter
from app.storage.run_store import ApprovalRecord, Checkpoint, NewApproval, OpRecord, Recorded, RunRecord
from app.wiring import Services

APPROVAL = "apr_2"
TOOL = OpRecord("1", "tool", "charge", [], "f", False, {"ok": True})

Steps = Iterator[str]


class SlowWorker:
    """`step` makes the next one; `crash` makes none any more."""

    def __init__(self, services: Services, run_id: str, name: str, execute: Callable[[int], None], expired: bool):
        """:param execute: what the tool does, told the epoch.
        :param expired: nobody has time to decide.
        """
        self.services = services
        self.run_id = run_id
        self.name = name
        self.epoch = 0
        self.writer: LogWriter | None = None
        self.confirmed = True
        """Redis has not been lost since Postgres last confirmed the epoch."""
        self.alive = True
        self.interruptible = False
        self._execute = execute
        self._expires_at = datetime.now(UTC) - timedelta(seconds=1) if expired else None
        self._life = self._live()

    def step(self) -> str:
        """Make the next step. Its name; "over" after the last."""
        try:
            return next(self._life)
        except StopIteration:
            done = "over"
        except Fenced:
            done = "fenced"
        self.alive = False
        return done

    def crash(self) -> None:
        """The process is gone."""
        self._life.close()
        self.alive = False

    def hand_back(self) -> None:
        """The process is to end: Drained."""
        self.crash()
        self.services.store.release(self.run_id, self.epoch, "deploy")

    def _live(self) -> Steps:
        run = self.services.store.claim(self.run_id, self.name, start=True)
        if run is None:
            return
        self.epoch = run.epoch
        yield "claim"
        run, _ = self.services.ownership.fence(run)
        self.epoch = run.epoch
        yield "fence"
        run, self.writer = self.services.ownership.adopt(run)
        writer, self.epoch = self.writer, run.epoch
        yield "adopt"
        reason = run.requeue_reason
        while True:
            self.interruptible = True
            ending = yield from self._invocation(run, writer, reason)
            self.interruptible = False
            if ending is not None:
                break
            if self._suspend(writer):
                yield "suspend"
                self.services.ownership.sync(run.id, run.epoch)
                return
            yield "suspend: go on"
            reason = "resumed"
        yield from self._finish(writer, ending)

    def _invocation(self, run: RunRecord, writer: LogWriter, reason: str | None) -> Iterator[str]:
        recorded = self.services.journal.recorded(run.id)
        yield "read the journal"
        if self.services.ownership.confirm(run.id, run.epoch):
            return Ending.cancelled("requested")
        yield "confirm"
        self._announce(run, writer, reason)
        yield from self._append(writer)
        for sent in self.services.waits.inputs(run.id, len(writer.state["inputs"]), 100):
            writer.add("input.received", {"input_id": f"inp_{sent.n}", "text": sent.text})
        yield from self._append(writer)
        if not recorded.ops:
            cancelled = yield from self._call_tool(writer, recorded)
            if cancelled:
                return Ending.cancelled("requested")
        return (yield from self._approve(writer, recorded))

    def _announce(self, run: RunRecord, writer: LogWriter, reason: str | None) -> None:
        if reason is None:
            writer.add("run.started", {"attempt": run.attempt, "worker": self.name})
        elif reason == "resumed":
            writer.add("run.resumed", {"attempt": run.attempt})
        else:
            writer.add("run.step", {"attempt": run.attempt, "reason": reason, "restart": False})

    def _call_tool(self, writer: LogWriter, recorded: Recorded) -> Iterator[str]:
        if not recorded.events.get(("1", "tool.started")):
            about = {"tool_call_id": "call_1", "name": "charge", "label": "Charge", "summary": ""}
            writer.add("tool.started", about, op="1")
            yield from self._append(writer)
        self._execute(self.epoch)
        yield "EXECUTE"
        about = {"tool_call_id": "call_1", "preview": "", "truncated": False, "bytes": 2, "duration_ms": 1}
        writer.add("tool.completed", about, op="1", commit_first=True)
        yield from self._append(writer)
        cancelled = self._commit(writer, ops=(TOOL,))
        yield "commit the call"
        yield from self._append(writer)
        return cancelled

    def _approve(self, writer: LogWriter, recorded: Recorded) -> Iterator[str]:
        """None: it is to wait."""
        known: ApprovalRecord | None = next(iter(recorded.approvals), None)
        if known is None:
            new = NewApproval(APPROVAL, "Charge?", "owner", None, self._expires_at)
            about = {"approval_id": APPROVAL, "label": new.label, "requires": "owner", "tool_call_id": None}
            writer.add("approval.required", {**about, "expires_at": None}, op="2", commit_first=True)
            cancelled = self._commit(writer, approvals=(new,))
            yield "commit the question"
            yield from self._append(writer)
            return Ending.cancelled("requested") if cancelled else None
        if known.decision is None:
            return None
        if not recorded.events.get(("2", "approval.resolved")):
            about = {"approval_id": APPROVAL, "decision": known.decision, "by": known.decided_by, "comment": None}
            writer.add("approval.resolved", about, op="2")
            yield from self._append(writer)
        return Ending.completed(known.decision)

    def _commit(
        self, writer: LogWriter, ops: tuple[OpRecord, ...] = (), approvals: tuple[NewApproval, ...] = ()
    ) -> bool:
        """Commit what is not archived. Returns whether the run is to be cancelled."""
        last = Checkpoint(writer.run_id, writer.epoch, writer.unarchived(), ops=ops, approvals=approvals)
        owned = self.services.store.archive([last])
        if writer.run_id not in owned:
            raise Fenced
        writer.mark_archived(writer.head)
        return owned[writer.run_id]

    def _append(self, writer: LogWriter) -> Steps:
        """As the flusher does: until Redis has what it may have."""
        while events := writer.appendable():
            if not self.confirmed:
                self.services.ownership.confirm(writer.run_id, writer.epoch)
                self.confirmed = True
                yield "confirm again"
                continue
            try:
                append = Append(writer.run_id, writer.epoch, events, archived=writer.archived)
                writer.mark_appended(self.services.log.append(append))
            except Behind as behind:
                yield from self._level(writer, behind.head)
            yield "append"

    def _level(self, writer: LogWriter, head: int) -> Steps:
        yield "behind"
        self.services.ownership.level(writer, head)

    def _suspend(self, writer: LogWriter) -> bool:
        writer.add("run.waiting", {"on": "approval", "ids": [APPROVAL]}, commit_first=True)
        return self.services.ownership.suspend(writer, [APPROVAL], len(writer.state["inputs"]), None)

    def _finish(self, writer: LogWriter, ending: Ending) -> Steps:
        self.services.ownership.end(writer, ending)
        yield "write the end"
        self.services.ownership.commit_end(writer)
        yield "COMMIT the end"
        self.services.ownership.publish(writer.run_id, writer.epoch)
