"""Removing runs from everywhere. The same for the one run that a user erases and for those that are old.

What Redis holds of a run goes first, while no row is locked and no connection to Postgres is held: whatever fails, or
dies, in between leaves a row, and a run that can be erased again. Then the rows of all tables go in one commit. What
somebody has brought into Redis between the two, of a run that was there still, goes after that.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import StoreUnavailable
from app.storage.event_log import EventLog
from app.storage.run_queue import RunQueue
from app.storage.run_store import EXTERNAL, RetentionStore, RunRecord, RunStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Erasure:
    """Every method may raise StoreUnavailable and may then be called again."""

    store: RunStore
    retention: RetentionStore
    log: EventLog
    queue: RunQueue

    def erase(self, run: RunRecord) -> None:
        """Remove every trace of a run that has ended; nothing of one that has not."""
        if not run.terminal:
            return
        if run.queue != EXTERNAL:  # the hint that it was pending, if it was cancelled before any worker took it
            self.queue.drop(run.id, run.epoch - 1, run.queue)
        self.log.delete(run.id)
        self.store.erase(run.id)
        self._delete_again([run.id])

    def erase_old(self, days: int) -> int:
        """Remove runs that ended more than so many days ago, a batch of them. Returns how many; 0: no more."""
        old = self.retention.old(days)
        if old:
            self.log.delete(*old)
            erased = self.retention.erase(old)
            self._delete_again(old)
            return erased
        return 0

    def _delete_again(self, run_ids: Sequence[str]) -> None:
        try:
            self.log.delete(*run_ids)
        except StoreUnavailable as error:
            log.warning("What was brought into Redis during an erasure stays until it expires. %s", error.detail)
