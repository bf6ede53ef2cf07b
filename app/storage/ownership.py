"""Who may write a run: claim it, finish it, bring its log and its archive level. Shared by worker, API and janitor.

Postgres decides, Redis enforces. The rules (checked by exploring their interleavings; keep their order):

1. A claim raises the epoch in Postgres, then in Redis, then levels log and archive; only then may anything be appended.
   Where Redis has that epoch as somebody else's, Postgres has lost a claim: the row is raised above both.
2. Every later write names its epoch. No row, or FENCED: somebody else owns the run, for that run alone.
3. What is a fact (`run.created`, a tool's result, the end) is committed with every event before it, then appended.
   What is archived follows the archive's last event: where Postgres has lost some, they come back from Redis first.
4. Commands are rows first; Redis only rings.
5. A lost owner is observed (`workers.janitor.loop`), never assumed.
"""

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from app.errors import Behind, EpochTaken, Fenced, Refused, StoreUnavailable
from app.hooks import Hooks
from app.pace import dumps_paced, paced
from app.protocol.ending import Ending, closing, terminal_payload
from app.protocol.events import TERMINAL, Event, Outbound
from app.protocol.reducer import ENDED, advance
from app.storage.event_log import Append, EventLog
from app.storage.log_writer import LogWriter
from app.storage.run_store import Checkpoint, RunRecord, RunStore

T = TypeVar("T")

CHUNK = 500
"""Events that are moved between Postgres and Redis at a time."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ownership:
    """The verbs of an owner. Every one may raise StoreUnavailable and may then be called again."""

    store: RunStore
    log: EventLog
    hooks: Hooks

    def claim(self, run_id: str, owner: str) -> tuple[RunRecord, LogWriter] | None:
        """Take a pending or waiting run without executing it: to finish it. None: it is neither.

        :raises Fenced: it was taken over meanwhile.
        """
        run = self.store.claim(run_id, owner, start=False)
        return self.adopt(run) if run else None

    def adopt(self, run: RunRecord) -> tuple[RunRecord, LogWriter]:
        """Make the claimed run's log writable: fence earlier owners, then level the log and its archive.

        Returns the run under the epoch that it now has.

        :raises Fenced: the run was taken over meanwhile, or its log has its end, which its row has lost.
        """
        losses = self.store.losses
        run, head = self.fence(run)
        archived = self.store.archived_head(run.id)
        if head < archived:
            head = self.sync(run.id, run.epoch, head)
        if head != archived:
            archived = self.archive_rest(run, archived)
        writer = self.open_archived(run, archived)
        writer.losses = losses
        if writer.state["status"] in ENDED:
            self.commit_end(writer)
            self.publish(run.id, run.epoch)
            raise Fenced(f"{run.id} had ended: Postgres has lost that, its log has not.")
        return run, writer

    def fence(self, run: RunRecord) -> tuple[RunRecord, int]:
        """Raise the run's epoch in Redis. Returns the run as it is after that, and Redis' head.

        Where Redis has the epoch as another owner's, or a later one, Postgres has lost claims. Where it has none at
        all, it may have lost one: then nobody else shall have this one either.

        :raises Fenced: the run was taken over meanwhile.
        """
        known = True
        while True:
            try:
                return run, self.log.raise_epoch(run.id, run.epoch, run.owner or "", known=known)
            except EpochTaken as taken:
                raised = self.store.raise_epoch(run, taken.epoch)
                if raised is None:
                    raise
                if taken.epoch:
                    log.warning("Epoch %d of %s was taken: Postgres has lost a claim.", run.epoch, run.id)
                run, known = raised, False

    def reopen(self, run: RunRecord) -> tuple[RunRecord, LogWriter]:
        """As `adopt`, for a run that is to end because Postgres refuses what it has recorded.

        Events of it that are in Redis are given up there: whoever has seen them gets a gap and a snapshot.

        :raises Fenced: the run was taken over meanwhile.
        """
        try:
            return self.adopt(run)
        except Refused:
            self.log.delete(run.id)
            return self.adopt(run)

    def open_archived(self, run: RunRecord, archived: int | None = None) -> LogWriter:
        """The log of a run whose epoch is the caller's, without Redis: of a log that is all in the archive.

        :param archived: where the archive ends; None: that is not known.
        """
        later = () if run.state_seq == archived else self._archive_after(run.id, run.state_seq)
        state = advance(run.state, (e.envelope() for e in paced(later)))
        head = state["last_seq"]
        return LogWriter(run.id, run.epoch, state, appended=head, archived=head, owner=run.owner or "")

    def look(self, writer: LogWriter) -> None:
        """After a connection to Postgres was lost: see in Redis that the writer is not fenced.

        Postgres may have lost who has the run, and call it this writer's again.

        :raises Fenced: another owner has the run.
        """
        losses = self.store.losses
        if writer.owner and writer.losses != losses:
            self.log.raise_epoch(writer.run_id, writer.epoch, writer.owner)
            writer.losses = losses

    def confirm(self, run_id: str, epoch: int, owner: str | None = None) -> bool:
        """Ask Postgres whether the run is still ours, because Redis may have lost a later owner's epoch.

        Returns whether its cancel was requested.

        :raises Fenced: the run was taken over meanwhile.
        """
        owned = self.store.owned({run_id: epoch}, owner)
        if run_id not in owned:
            raise Fenced(f"{run_id} is not running under epoch {epoch}.")
        return owned[run_id]

    def level(self, writer: LogWriter, head: int) -> None:
        """Redis' head is not where the writer takes it to be: have the writer go on from where it is.

        Redis has lost events, or has taken some whose answer got lost.

        :raises Fenced: somebody else has the run, or has written to its log.
        """
        self.confirm(writer.run_id, writer.epoch, writer.owner or None)
        head = self.log.raise_epoch(writer.run_id, writer.epoch, writer.owner)
        if head > writer.head:
            raise Fenced(f"Somebody else has written event {head} of {writer.run_id}.")
        if not writer.remembers(head):
            head = self.sync(writer.run_id, writer.epoch, head)
        writer.level(head)

    def refill(self, writer: LogWriter, head: int) -> None:
        """The archive ends with `head`, because Postgres has lost events: bring it to where the writer takes it to be.

        :raises Fenced: somebody else has the run, or nobody has the events any more: the next owner goes on without.
        """
        log.warning("Postgres has lost events of %s after %d.", writer.run_id, head)
        while head < writer.archived:
            events = writer.remembered(head, min(writer.archived, head + CHUNK)) or [
                event for event in self.log.read(writer.run_id, head, CHUNK) if event.seq <= writer.archived
            ]
            if not events or events[0].seq != head + 1:
                raise Fenced(f"Event {head + 1} of {writer.run_id} is lost.")
            head = self._taken_in(writer.run_id, writer.epoch, events)

    def archive(self, writer: LogWriter) -> None:
        """Archive all that the writer holds.

        :raises Fenced: another owner has the run.
        """
        self._following(writer, lambda: self._archive(writer))
        writer.mark_archived(writer.head)

    def _archive(self, writer: LogWriter) -> None:
        last = Checkpoint(writer.run_id, writer.epoch, writer.unarchived(), owner=writer.owner or None)
        outcome = self.store.archive([last], writer.seen_losses).get(writer.run_id)
        if outcome is None:
            raise Fenced(f"{writer.run_id} is not running under epoch {writer.epoch}.")
        if isinstance(outcome, Behind):
            raise outcome

    def end(self, writer: LogWriter, ending: Ending) -> None:
        """Write the end of the run into the writer: close what is open, then the terminal event. Not yet committed.

        :raises Fenced: another owner has the run.
        """
        open_approvals = any(approval["status"] == "open" for approval in writer.state["approvals"])
        decided = {}
        if open_approvals:
            decided = self.store.close_approvals(writer.run_id, writer.epoch, owner=writer.owner or None)
        for type, payload in paced(list(closing(writer.state, ending, decided))):
            writer.add(type, self.hooks.fact(type, payload))
        writer.add(ending.type, self._terminal(writer, ending), commit_first=True)

    def _terminal(self, writer: LogWriter, ending: Ending) -> Outbound:
        payload = terminal_payload(writer.state, ending, paced)
        # The output was past the hooks before it was compared with what was streamed.
        return Outbound(payload) if ending.status == "completed" else self.hooks.fact(ending.type, payload)

    def suspend(
        self, writer: LogWriter, approval_ids: Sequence[str], inputs_seen: int, wake_at: datetime | None
    ) -> bool:
        """Let the run wait with all that its writer holds, as `RunStore.suspend` does; False: it goes on, stays ours.

        :raises Fenced: another owner has the run, as it has when an earlier call was carried out although its answer
            was lost and what the run waits for has come since.
        """
        state, owner = dumps_paced(writer.state), writer.owner or None
        last = Checkpoint(writer.run_id, writer.epoch, writer.unarchived(), state, writer.head, owner=owner)

        def commit() -> bool:
            return self.store.suspend(last, approval_ids, inputs_seen, wake_at, losses=writer.seen_losses)

        try:
            waits = self._following(writer, commit)
        except Fenced:
            run = self.store.get(last.run_id)
            if run is None or (run.epoch, run.status) != (last.epoch, "waiting"):
                raise
            waits = True
        writer.mark_archived(writer.head)
        return waits

    def commit_end(self, writer: LogWriter) -> None:
        """Commit what `end` wrote.

        :raises Fenced: another owner has the run, or has finished it.
        """
        try:
            self._following(writer, lambda: self._finish(writer))
        except Fenced:
            run = self.store.get(writer.run_id)
            if run is None or (run.epoch, run.digest) != (writer.epoch, writer.state["digest"]):
                raise
            # An earlier call was carried out although its answer was lost.
        writer.mark_archived(writer.head)

    def _following(self, writer: LogWriter, commit: Callable[[], T]) -> T:
        """The result of the commit, which is made once the archive is where the writer takes it to be."""
        again = False
        while True:
            self.look(writer)
            try:
                return commit()
            except Behind as behind:
                self.refill(writer, behind.head)
            except StoreUnavailable:
                if again or writer.losses == self.store.losses:
                    raise
                again = True  # the connection was replaced in this very call

    def _finish(self, writer: LogWriter) -> None:
        of, state, owner = (writer.run_id, writer.epoch), writer.state, writer.owner or None
        events, losses = writer.unarchived(), writer.seen_losses
        self.store.finish(*of, state["status"], state, events, owner=owner, losses=losses)

    def end_unowned(self, run: RunRecord) -> None:
        """End a run whose cancel was requested, if nobody has it; one that is running is its owner's to end."""
        try:
            claimed = self.claim(run.id, f"cancel-{secrets.token_hex(4)}")
            if claimed is not None:
                self.finish(claimed[1], Ending.cancelled(claimed[0].cancel_reason or "requested"))
        except Fenced:
            log.info("%s was claimed by somebody else, who sees the request.", run.id)

    def publish(self, run_id: str, epoch: int, rest: Sequence[Event] = ()) -> None:
        """Append what is left of a finished run, the terminal event last.

        :param rest: its last events, if they are known: they need not be read then.
        """
        try:
            head = self._append_rest(run_id, epoch, rest) if rest else self.sync(run_id, epoch)
        except EpochTaken as taken:
            # Only a claim raises the epoch, and nobody can claim a finished run: another one was erased, or Postgres
            # has lost that claim.
            run = self.store.get(run_id)
            if run is None or not run.terminal:
                return
            head = self.sync(run_id, taken.epoch)
        if not self.store.mark_published(run_id, head):
            self.log.delete(run_id)  # it was erased while its last events were on their way

    def finish(self, writer: LogWriter, ending: Ending) -> None:
        """`end`, `commit_end` and `publish`.

        :raises Fenced: another owner has the run, or has finished it.
        """
        self.end(writer, ending)
        self.commit_end(writer)
        self.publish(writer.run_id, writer.epoch, writer.appendable())

    def _append_rest(self, run_id: str, epoch: int, rest: Sequence[Event]) -> int:
        try:
            return self.log.append(Append(run_id, epoch, rest, archived=rest[-1].seq))
        except Behind as behind:
            return self.sync(run_id, epoch, behind.head)

    def sync(self, run_id: str, epoch: int, head: int | None = None) -> int:
        """Append the archived events above Redis' head. Returns the head.

        :param head: where it is; None: that is not known.
        :raises Fenced: a later epoch owns the run.
        """
        if head is None:
            head = self.log.head(run_id)
        while events := self.store.events(run_id, head, CHUNK):
            if events[0].seq != head + 1:
                log.error("Events %d to %d of %s are lost.", head + 1, events[0].seq - 1, run_id)
                break
            try:
                head = self.log.append(Append(run_id, epoch, events, archived=events[-1].seq))
            except Behind as behind:  # somebody else is bringing the same events, or Redis lost its own
                head = behind.head
            if events[-1].type in TERMINAL and head == events[-1].seq:
                break  # none follows
        return head

    def archive_rest(self, run: RunRecord, archived: int) -> int:
        """Archive what Redis holds beyond the archive: the earlier owner's last events, or what Postgres has lost.

        :param archived: where the archive ends. Returns where it ends then.
        :raises Fenced: the run was taken over meanwhile.
        """
        while events := self.log.read(run.id, archived, CHUNK):
            if events[0].seq != archived + 1:
                log.error("Events %d to %d of %s are lost.", archived + 1, events[0].seq - 1, run.id)
                self.log.raise_epoch(run.id, run.epoch, run.owner or "", anew=True)
                self.sync(run.id, run.epoch)
                break
            archived = self._taken_in(run.id, run.epoch, events)
        return archived

    def _taken_in(self, run_id: str, epoch: int, events: Sequence[Event]) -> int:
        head = self.store.take_in(run_id, events, epoch=epoch)
        if head is None:
            raise Fenced(f"{run_id} is not running under epoch {epoch}.")
        return head

    def _archive_after(self, run_id: str, seq: int) -> Iterator[Event]:
        while events := self.store.events(run_id, seq, CHUNK):
            yield from events
            seq = events[-1].seq
