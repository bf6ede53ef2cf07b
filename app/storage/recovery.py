"""Runs that nobody claims, after Postgres came back without its last transactions: those that others write, and those
that wait. Whoever claims a run looks for itself (`app.storage.ownership`).

A process that has lost a connection to Postgres may meet one with less behind the next one, and so may one that begins.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from app.errors import StoreUnavailable
from app.storage.event_log import EventLog
from app.storage.run_store import Database, RunRecord, RunStore, Waits

PAGE = 500
"""Events, or waiting runs, that are read at a time."""
LEVEL_MAX = 10_000
"""Runs of which it is remembered that they were looked at; beyond it the first one is forgotten."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovery:
    """Of one process. Every method may raise StoreUnavailable for Postgres, and may then be called again."""

    database: Database
    store: RunStore
    waits: Waits
    log: EventLog
    _level_at: dict[str, int] = field(default_factory=dict)
    """Of a run that was looked at: `Database.losses` at that time."""

    def level(self, run_ids: Iterable[str]) -> int:
        """Archive what Redis holds of these external runs beyond the archive, where that was not looked at since.

        Returns `Database.losses` from before. Without Redis nothing is done, and it is looked at the next time.
        """
        losses = self.database.losses
        todo = [run_id for run_id in dict.fromkeys(run_ids) if self._level_at.get(run_id) != losses]
        if todo:
            try:
                heads = self.log.heads(todo)  # before the archive's: whatever is in Redis was committed
            except StoreUnavailable:
                return losses
            archived = self.store.archived_heads(todo)
            for run_id, head, end in zip(todo, heads, archived, strict=True):
                if head <= end or self._take_in(run_id, end):
                    self._remember(run_id, losses)
        return losses

    def _take_in(self, run_id: str, archived: int) -> bool:
        """False: Redis cannot be asked any more."""
        log.warning("Postgres has lost events of %s after %d.", run_id, archived)
        while True:
            try:
                batch, events = self.log.batch(run_id), self.log.read(run_id, archived, PAGE)
            except StoreUnavailable:
                return False
            head = self.store.take_in(run_id, events, batch=batch) if events else None
            if head is None or head == archived:
                return True
            archived = head

    def _remember(self, run_id: str, losses: int) -> None:
        self._level_at.pop(run_id, None)
        while len(self._level_at) >= LEVEL_MAX:
            del self._level_at[next(iter(self._level_at))]
        self._level_at[run_id] = losses

    def wake_lost(self) -> Sequence[RunRecord]:
        """Wake the waiting runs whose log goes on in Redis: that they did is lost. Returns them; they are pending.

        :raises StoreUnavailable: also for Redis.
        """
        woken: list[RunRecord] = []
        after = ""
        while waiting := self.store.waiting(after, PAGE):
            heads = self.log.heads([run_id for run_id, _ in waiting])
            ahead = [run_id for (run_id, seq), head in zip(waiting, heads, strict=True) if head > seq]
            if ahead:
                log.warning("Postgres has lost that %d runs went on, %s among them.", len(ahead), ahead[0])
                woken += self.waits.wake(ahead)
            after = waiting[-1][0]
        return woken
