"""Moves the events of every run of this process: to Redis at once, to Postgres each second or on demand.

Each turn is one pipeline, or one transaction, for all runs that have something due; a fenced run fails alone.
"""

import logging
import time
from collections.abc import Callable

import gevent
from gevent.event import Event as Flag
from gevent.lock import BoundedSemaphore

from app.errors import Behind, Fenced, StoreUnavailable
from app.storage.event_log import Append, Outcome
from app.storage.log_writer import LogWriter
from app.storage.ownership import Ownership
from app.storage.run_store import Checkpoint
from runtail.interrupts import Interrupted
from workers.execution.archiver import Archiver
from workers.execution.interrupts import Cancelled, Lost
from workers.execution.outbox import Outbox
from workers.execution.retry import FIRST_SECONDS, LONGEST_SECONDS

APPEND_EVENTS = 500
"""Most events of one run in one turn."""
ARCHIVE_SECONDS = 1.0
UNCONFIRMED = -1

log = logging.getLogger(__name__)


class Flusher:
    """Two greenlets: one appends, one archives."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership
        self._outboxes: dict[str, Outbox] = {}
        self._to_append: set[Outbox] = set()
        self._to_archive: set[Outbox] = set()
        self._archiver = Archiver(ownership.store, self._archived)
        self._append_flag, self._archive_flag = Flag(), Flag()
        self._appending, self._archiving = BoundedSemaphore(), BoundedSemaphore()
        self._next_tick = 0.0
        self._confirmed = UNCONFIRMED
        """`EventLog.connects` at the time when the epochs were last confirmed in Postgres."""

    def start(self) -> None:
        """Start moving."""
        gevent.spawn(self._forever, self._append_turn)
        gevent.spawn(self._forever, self._archive_turn)

    def open(self, writer: LogWriter, interrupt: Callable[[Interrupted], None]) -> Outbox:
        """Begin to move a run's events."""
        outbox = Outbox(writer, self, interrupt)
        self._outboxes[writer.run_id] = outbox
        return outbox

    def close(self, outbox: Outbox) -> None:
        """Stop moving a run's events; when this returns, its writer belongs to the caller alone."""
        del self._outboxes[outbox.writer.run_id]
        with self._appending, self._archiving:
            self._to_append.discard(outbox)
            self._to_archive.discard(outbox)
            self._archiver.forget(outbox)
        outbox.settle()
        outbox.closed = True
        outbox.moved.set()

    def append_soon(self, outbox: Outbox) -> None:
        """The run has events, or text that falls due, for Redis."""
        self._to_append.add(outbox)
        self._append_flag.set()

    def archive_soon(self, outbox: Outbox) -> None:
        """The run waits for its events to be archived."""
        self._to_archive.add(outbox)
        self._archive_flag.set()

    def _forever(self, turn: Callable[[], None]) -> None:
        pause = FIRST_SECONDS
        while True:
            try:
                turn()
                pause = FIRST_SECONDS
                gevent.sleep(0)  # others wait for the connection that a turn has just given back
                continue
            except StoreUnavailable as error:
                log.warning("%s Trying again in %.2f s.", error.detail, pause)
            except Exception:
                # One run's surprise must not stop the events of all the others.
                log.exception("A turn of the flusher failed.")
            gevent.sleep(pause)
            pause = min(LONGEST_SECONDS, pause * 2)

    # To Redis.

    def _append_turn(self) -> None:
        self._append_flag.wait(self._until_due())
        self._append_flag.clear()
        with self._appending:
            batch = self._due_for_append()
            if not batch:
                return
            try:
                if self._confirmed != self._ownership.log.connects:
                    batch = self._confirm(batch)
                appends = [_append(outbox) for outbox in batch]
                outcomes = self._ownership.log.append_all(appends, confirmed=self._confirmed)
            except BaseException:
                self._confirmed = UNCONFIRMED
                self._retry_append(batch)
                raise
            refused: list[tuple[str, StoreUnavailable]] = []
            for outbox, outcome in zip(batch, outcomes, strict=True):
                try:
                    self._appended(outbox, outcome)
                    outbox.refused.clear()
                except StoreUnavailable as error:  # this run alone waits for its next try
                    outbox.refused.put_off()
                    self._retry_append([outbox])
                    refused.append((outbox.writer.run_id, error))
            if refused:
                run_id, first = refused[0]
                log.warning("Events of %d runs wait, of %s among them. %s", len(refused), run_id, _why(first))

    def _until_due(self) -> float | None:
        due = [
            max(outbox.delta_due or 0.0, outbox.refused.until)
            for outbox in self._to_append
            if outbox.delta_due is not None or outbox.refused.until
        ]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _due_for_append(self) -> list[Outbox]:
        now, later, batch = time.monotonic(), set(), []
        for outbox in self._to_append:
            if outbox.refused.until > now:
                later.add(outbox)
                continue
            if outbox.delta_due is not None:
                if outbox.delta_due <= now:
                    outbox.settle()
                else:
                    later.add(outbox)
            if outbox.writer.appendable():
                batch.append(outbox)
        self._to_append = later
        return batch

    def _confirm(self, batch: list[Outbox]) -> list[Outbox]:
        """Only those that Postgres still calls ours; the others are told that they are lost."""
        connects = self._ownership.log.connects
        outboxes = list(self._outboxes.values())  # others may be opened while Postgres is asked
        owner = outboxes[0].writer.owner if outboxes else ""  # this process's, of all of them
        epochs = {e.writer.run_id: e.writer.epoch for e in outboxes}
        owned = self._ownership.store.owned(epochs, owner or None)
        for outbox in outboxes:
            if outbox.writer.run_id not in owned:
                outbox.interrupt(Lost())
        self._confirmed = connects
        return [outbox for outbox in batch if outbox.writer.run_id in owned]

    def _appended(self, outbox: Outbox, outcome: Outcome) -> None:
        if isinstance(outcome, StoreUnavailable):
            raise outcome
        if isinstance(outcome, Fenced):
            outbox.interrupt(Lost())
            return
        if isinstance(outcome, Behind):
            try:
                self._ownership.level(outbox.writer, outcome.head)
            except Fenced:
                outbox.interrupt(Lost())
                return
        else:
            outbox.writer.mark_appended(outcome)
            outbox.moved.set()
        if outbox.writer.appendable():
            self.append_soon(outbox)

    def _retry_append(self, batch: list[Outbox]) -> None:
        for outbox in batch:
            if outbox.writer.run_id in self._outboxes:
                self.append_soon(outbox)

    # To Postgres.

    def _archive_turn(self) -> None:
        self._archive_flag.wait(max(0.0, self._next_tick - time.monotonic()))
        self._archive_flag.clear()
        tick = time.monotonic() >= self._next_tick
        if tick:
            self._next_tick = time.monotonic() + ARCHIVE_SECONDS
        with self._archiving:
            wanted = set(self._outboxes.values()) if tick else set(self._to_archive)
            self._to_archive.clear()
            try:
                self._archiver.archive([e for e in wanted if e.unarchived and self._may_commit(e)])
            except StoreUnavailable:
                self._to_archive.update(e for e in wanted if e.writer.run_id in self._outboxes)
                self._archive_flag.set()
                raise
            if tick:
                self._archiver.try_again()

    def _may_commit(self, outbox: Outbox) -> bool:
        """Where a connection to Postgres was lost, Redis has to have the run as ours: it is asked once."""
        try:
            self._ownership.look(outbox.writer)
        except Fenced:
            outbox.interrupt(Lost())
            return False
        except StoreUnavailable:
            return False  # with the next tick it is tried again
        return True

    def _archived(self, outbox: Outbox, checkpoint: Checkpoint, outcome: bool | Behind | None) -> None:
        if outcome is None:
            outbox.interrupt(Lost())
        elif isinstance(outcome, Behind):
            self._refill(outbox, outcome.head)
        else:
            outbox.mark_archived(checkpoint)
            self.append_soon(outbox)
            if outcome:
                outbox.interrupt(Cancelled())

    def _refill(self, outbox: Outbox, head: int) -> None:
        """Postgres has lost events of the run. What it has to commit is then tried again with the next tick."""
        try:
            self._ownership.refill(outbox.writer, head)
            self.archive_soon(outbox)
        except Fenced as fenced:
            log.warning("This attempt ends here. %s", fenced.detail)
            outbox.interrupt(Lost())
        except StoreUnavailable as error:
            log.warning("%s waits to get back what Postgres has lost. %s", outbox.writer.run_id, error.detail)


def _append(outbox: Outbox) -> Append:
    writer = outbox.writer
    events = writer.appendable()[:APPEND_EVENTS]
    return Append(writer.run_id, writer.epoch, events, archived=writer.archived, owner=writer.owner)


def _why(error: StoreUnavailable) -> str:
    return f"{error.detail} {error.__cause__ or ''}".strip()
