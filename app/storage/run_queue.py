"""The RQ queue that tells workers which runs are pending. A job is only a hint: the claim in Postgres decides.

A job's id is `{run_id}-{epoch}`, and all that a worker reads of it. RQ has a connection pool of its own, because its
workers change their pool's socket timeout.
"""

import re
import zlib
from collections.abc import Sequence
from itertools import chain
from typing import Any

import redis
from rq import Queue
from rq.job import Job, JobStatus
from rq.serializers import DefaultSerializer
from rq.utils import now as utcnow
from rq.utils import utcformat

from app.storage.breaker import Breaker
from app.storage.redis_connections import Command, borrowed, committed, connect, exchange, transaction

QUEUE = "runs"
"""Of agents that share a process."""
ISOLATED_QUEUE = "isolated"
"""Of runs that have a process of their own."""
NO_ISOLATED = "Runs wait for an isolated worker, and there is none: start `python -m workers --isolated`."
JOB = "workers.execution.executor.execute"
"""What workers of the version before call, with the run's id. Nobody else reads it: it can go with the next release."""
NO_TIMEOUT = -1

_DROP_JOB = "if redis.call('LREM', KEYS[1], 0, ARGV[1]) > 0 then redis.call('DEL', KEYS[2]) end"
"""A job that is not in its queue any more is somebody's, who removes it."""
_OWN = ("data", "origin", "description", "created_at", "enqueued_at")
"""Fields that each job has for itself."""
_JOB_ID = re.compile(rb"(run_[0-9A-Z]{26})-[0-9]{1,10}")


def queue_of(isolation: str) -> str:
    """The queue whose workers execute agents of that isolation, `gevent` or `process`."""
    return ISOLATED_QUEUE if isolation == "process" else QUEUE


def run_of(job_id: bytes) -> str | None:
    """The run that a job hints at, by the job's id; None: it is none of ours."""
    match = _JOB_ID.fullmatch(job_id)
    return match[1].decode() if match else None


def _job(client: redis.Redis) -> list[Any]:
    """Fields and values that RQ stores of a job, but for what is each job's own: RQ itself takes long over it."""
    options: dict[str, Any] = {"timeout": NO_TIMEOUT, "result_ttl": 0, "failure_ttl": 60}
    job = Job.create(JOB, connection=client, status=JobStatus.QUEUED, **options).to_dict(include_meta=False)
    return [*chain.from_iterable((name, value) for name, value in job.items() if name not in _OWN)]


class RunQueue:
    """Enqueue runs by id."""

    def __init__(self, url: str, breaker: Breaker, *, max_connections: int) -> None:
        """:param breaker: of the server at that URL."""
        self._breaker = breaker
        self.redis = connect(url, max_connections)
        self._queues = {name: Queue(name, connection=self.redis) for name in (QUEUE, ISOLATED_QUEUE)}
        self._job = _job(self.redis)

    def enqueue(self, run_id: str, epoch: int, queue: str) -> None:
        """Tell the workers that the run is pending. A second hint for the same epoch is harmless.

        :raises StoreUnavailable: Redis cannot be reached.
        """
        self.enqueue_all([(run_id, epoch, queue)])

    def enqueue_all(self, pending: Sequence[tuple[str, int, str]]) -> None:
        """As `enqueue`, of many runs in one round trip.

        :param pending: of each its id, its epoch and its queue.
        """
        with self._breaker.asking(), borrowed(self.redis) as connection:
            *_, done = exchange(connection, self.hints(pending))
            committed(done)

    def hints(self, pending: Sequence[tuple[str, int, str]]) -> list[Command]:
        """The transaction with which `enqueue_all` enqueues."""
        keys = {self._queues[queue].key for _, _, queue in pending}
        commands: list[Command] = [("SADD", Queue.redis_queues_keys, *keys)]
        now = utcformat(utcnow())
        for run_id, epoch, queue in pending:
            job_id = f"{run_id}-{epoch}"
            data = zlib.compress(DefaultSerializer.dumps((JOB, None, (run_id,), {})))
            own = zip(_OWN, (data, queue, run_id, now, now), strict=True)
            commands.append(("HSET", Job.key_for(job_id), *self._job, *chain.from_iterable(own)))
            commands.append(("RPUSH", self._queues[queue].key, job_id))
        return transaction(commands)

    def drop(self, run_id: str, epoch: int, queue: str) -> None:
        """Remove the hint that the run was pending, unless a worker has taken it.

        :raises StoreUnavailable: Redis cannot be reached.
        """
        job_id = f"{run_id}-{epoch}"
        with self._breaker.asking():
            self.redis.eval(_DROP_JOB, 2, self._queues[queue].key, Job.key_for(job_id), job_id)

    def waiting(self) -> set[str]:
        """Ids of the runs that have a job in one of the queues.

        :raises StoreUnavailable: Redis cannot be reached.
        """
        with self._breaker.asking():
            job_ids: list[Any] = [id for queue in self._queues.values() for id in self.redis.lrange(queue.key, 0, -1)]
        return {run_id for job_id in job_ids if (run_id := run_of(job_id)) is not None}

    def close(self) -> None:
        """Close every connection."""
        self.redis.close()
        self.redis.connection_pool.disconnect()
