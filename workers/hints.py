"""What workers take from RQ: the ids of jobs, and nothing else.

Whoever can write to Redis could otherwise decide what a worker executes: RQ imports and calls whatever a job's hash
names (function, callbacks, webhooks), unpickles what it holds, and takes commands over a channel. Here a job is a hint
that a run is pending. The run's id is in the job's id, the rest of the hash is never read, and the claim in Postgres
decides.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from redis import Redis
from rq import worker_registration
from rq.job import Job
from rq.queue import Queue
from rq.utils import now
from rq.worker import BaseWorker

from app.storage.run_queue import run_of

WORKER_TTL_SECONDS = 30
"""Of RQ's own record of a worker; its blocking pop returns every WORKER_TTL_SECONDS - 15."""
HEARTBEAT_SECONDS = 30
"""How often a worker that fetches nothing keeps its record from expiring."""
RESTART_SECONDS = 1.0
SHOWN_CHARS = 100
"""Of an id that is no run's, in the log."""

log = logging.getLogger(__name__)


class HintQueue(Queue):
    """RQ's queue, of which a worker reads ids only."""

    @classmethod
    def dequeue_any(
        cls, queues: Iterable[Queue], timeout: int | None, connection: Redis, *_: Any, **__: Any
    ) -> tuple[Job, Queue] | None:
        """The next hint, and its queue; what it leaves in Redis is deleted. An id that is no run's is dropped.

        The job is made here, not fetched. If this process dies now, a janitor enqueues the run again.

        :raises DequeueTimeout: there was none for so many seconds.
        """
        queue = next(iter(queues))
        while (taken := cls.lpop([queue.key], timeout, connection)) is not None:
            job_id = taken[1]
            if run_of(job_id) is not None:
                connection.delete(Job.key_for(job_id.decode()))
                return Job(job_id.decode(), connection), queue
            log.warning("Dropped a job of the queue %r: %r is no run's.", queue.name, job_id[:SHOWN_CHARS])
        return None


class HintWorker(BaseWorker):
    """RQ's work loop without all that acts on what is in Redis."""

    queue_class = HintQueue
    max_connection_wait_time = 2.0

    def __init__(self, connection: Redis, queue: str) -> None:
        super().__init__([queue], connection=connection, worker_ttl=WORKER_TTL_SECONDS, log_job_description=False)

    def execute_run(self, run_id: str) -> None:
        """Execute a run that is pending, or have it executed."""
        raise NotImplementedError

    def execute_job(self, job: Job, queue: Queue) -> None:
        """What RQ's loop calls with what HintQueue has given it."""
        self.execute_run(job.id.rpartition("-")[0])

    def subscribe(self) -> None:
        """Not: anybody who can publish could stop this worker."""

    def run_maintenance_tasks(self) -> None:
        """Forget the names of workers that are gone. RQ also fetches abandoned jobs, and calls their callbacks."""
        self.last_cleaned_at = now()  # type: ignore[assignment]
        for queue in self.queues:
            with suppress(UnicodeDecodeError):  # a name that no worker has
                worker_registration.clean_worker_registry(queue)
