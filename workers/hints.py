"""What workers take from RQ: the ids of jobs, and nothing else.

Whoever can write to Redis could otherwise decide what a worker executes: RQ imports and calls whatever a job's hash
names (function, callbacks, webhooks), unpickles what it holds, and takes commands over a channel. Here a job is a hint
that a run is pending. The run's id is in the job's id, the rest of the hash is never read, and the claim in Postgres
decides.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from redis import Redis, RedisError
from rq import worker_registration
from rq.job import Job
from rq.queue import Queue
from rq.utils import now
from rq.worker import BaseWorker

from app.storage.run_queue import run_of

WORKER_TTL_SECONDS = 30
"""Of RQ's own record of a worker; its blocking pop returns every WORKER_TTL_SECONDS - 15."""
RECORD_SECONDS = 10.0
"""RQ's loop writes its record several times for each job; here so often. Without jobs: after each blocking pop."""
SUSPENSION_SECONDS = 1.0
"""Likewise how often it asks whether somebody has suspended all workers."""
HINTS_PER_TAKE = 10
"""Most hints that are taken at a time: others' slots may be free too."""
RESTART_SECONDS = 1.0
SHOWN_CHARS = 100
"""Of an id that is no run's, in the log."""

_TAKE = """
local ids = ARGV[2] ~= '0' and redis.call('LPOP', KEYS[1], ARGV[2]) or {}
for _, id in ipairs(ids) do redis.call('DEL', ARGV[1] .. id) end
if ARGV[3] then redis.call('DEL', ARGV[1] .. ARGV[3]) end
return ids
"""
"""ARGV: what the keys of jobs begin with, how many to take, the id of a job that was taken before."""

log = logging.getLogger(__name__)


class HintQueue(Queue):
    """RQ's queue, of which a worker reads ids only."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.room = 1
        """How many hints there are slots for."""
        self._taken: deque[bytes] = deque()
        self._has_more = False

    def take(self, timeout: int | None) -> bytes | None:
        """The next id. What it leaves in Redis is deleted.

        If this process dies now, a janitor enqueues the run again.

        :raises DequeueTimeout: there was none for so many seconds.
        """
        room = min(self.room, HINTS_PER_TAKE)
        if not self._taken and self._has_more:
            self._take(room)
        if self._taken:
            return self._taken.popleft()
        popped: tuple[bytes, bytes] | None = self.lpop([self.key], timeout, self.connection)
        if popped is None:
            return None
        self._take(room - 1, popped[1])
        return popped[1]

    def put_back(self) -> None:
        """Leave to others what was taken and not given out."""
        if self._taken:
            self.connection.lpush(self.key, *reversed(self._taken))
            self._taken.clear()

    def _take(self, count: int, *before: bytes) -> None:
        """:param before: the id that was popped before, if one was."""
        ids = self.connection.eval(_TAKE, 1, self.key, Job.redis_job_namespace_prefix, count, *before)
        self._taken.extend(ids)
        self._has_more = 0 < count == len(ids)

    @classmethod
    def dequeue_any(
        cls, queues: Iterable[Queue], timeout: int | None, connection: Redis, *_: Any, **__: Any
    ) -> tuple[Job, Queue] | None:
        """The next hint, and its queue. An id that is no run's is dropped. The job is made here, not fetched.

        :raises DequeueTimeout: there was none for so many seconds.
        """
        queue = next(iter(queues))
        assert isinstance(queue, HintQueue)
        while (job_id := queue.take(timeout)) is not None:
            if run_of(job_id) is not None:
                return Job(job_id.decode(), connection), queue
            log.warning("Dropped a job of the queue %r: %r is no run's.", queue.name, job_id[:SHOWN_CHARS])
        return None


class HintWorker(BaseWorker):
    """RQ's work loop without all that acts on what is in Redis."""

    queue_class = HintQueue
    max_connection_wait_time = 2.0

    def __init__(self, connection: Redis, queue: str) -> None:
        super().__init__([queue], connection=connection, worker_ttl=WORKER_TTL_SECONDS, log_job_description=False)
        self._done_at: dict[str, float] = {}

    def execute_run(self, run_id: str) -> None:
        """Execute a run that is pending, or have it executed."""
        raise NotImplementedError

    def execute_job(self, job: Job, queue: Queue) -> None:
        """What RQ's loop calls with what HintQueue has given it."""
        self.execute_run(job.id.rpartition("-")[0])

    def _is_due(self, what: str, seconds: float) -> bool:
        """Whether it was not done for so long; it then counts as done."""
        now = time.monotonic()
        due = now - self._done_at.get(what, -math.inf) >= seconds
        if due:
            self._done_at[what] = now
        return due

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """As RQ's, every RECORD_SECONDS, and with the state."""
        if self._is_due("heartbeat", RECORD_SECONDS):
            super().heartbeat(timeout, pipeline)
            super().set_state(self.get_state(), pipeline)

    def keep_record(self) -> None:
        """Keep RQ's record of this worker, which decides nothing, from expiring while nothing is fetched."""
        try:
            self.heartbeat()
        except RedisError:
            log.warning("RQ could not keep its record of this worker.", exc_info=True)

    def set_state(self, state: str, pipeline: Any = None) -> None:
        """As RQ's, where it is another one."""
        if state != self.get_state():
            super().set_state(state, pipeline)

    def check_for_suspension(self, burst: bool) -> None:
        """As RQ's, every SUSPENSION_SECONDS."""
        if self._is_due("suspension", SUSPENSION_SECONDS):
            super().check_for_suspension(burst)

    def subscribe(self) -> None:
        """Not: anybody who can publish could stop this worker."""

    def run_maintenance_tasks(self) -> None:
        """Forget the names of workers that are gone. RQ also fetches abandoned jobs, and calls their callbacks."""
        self.last_cleaned_at = now()  # type: ignore[assignment]
        for queue in self.queues:
            with suppress(UnicodeDecodeError):  # a name that no worker has
                worker_registration.clean_worker_registry(queue)
