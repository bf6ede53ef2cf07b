"""Removing runs from everywhere. The same for the one run that a user erases and for those that are old.

What Redis holds of a run goes first, while its row is locked: whatever fails, or dies, in between leaves a row, and a
run that can be erased again. The rows of all tables go in one commit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import redis
from rq import Queue
from rq.job import Job

from app.errors import StoreUnavailable
from app.storage.event_log import EventLog
from app.storage.run_queue import RunQueue
from app.storage.run_store import RetentionStore, RunRecord, RunStore

_DROP_JOB = "if redis.call('LREM', KEYS[1], 0, ARGV[1]) > 0 then redis.call('DEL', KEYS[2]) end"
"""A job that is not in its queue any more is somebody's, who removes it."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """Every method may raise StoreUnavailable and may then be called again."""

    store: RunStore
    retention: RetentionStore
    log: EventLog
    queue: RunQueue

    def erase(self, run: RunRecord) -> None:
        """Remove every trace of a run that has ended."""
        self.store.erase(run.id, partial(self._erase_live, run))

    def erase_old(self, days: int) -> int:
        """Remove runs that ended more than so many days ago, a batch of them. Returns how many; 0: no more."""
        return self.retention.erase_old(days, self._erase_logs)

    def _erase_live(self, run: RunRecord) -> None:
        self._drop_job(run)
        self.log.delete(run.id)

    def _erase_logs(self, run_ids: Sequence[str]) -> None:
        for run_id in run_ids:
            self.log.delete(run_id)

    def _drop_job(self, run: RunRecord) -> None:
        """The hint that a run was pending, if it was cancelled before any worker took it."""
        client = self.queue.redis
        job_id = f"{run.id}-{run.epoch - 1}"
        queue = Queue(run.queue, connection=client)
        try:
            client.eval(_DROP_JOB, 2, queue.key, Job.key_for(job_id), job_id)
        except redis.RedisError as error:
            raise StoreUnavailable("Redis cannot be reached.") from error
