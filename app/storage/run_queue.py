"""The RQ queue that tells workers which runs are pending. A job is only a hint: the claim in Postgres decides.

RQ has a connection pool of its own, because its workers change their pool's socket timeout.
"""

import redis
from rq import Queue

from app.errors import StoreUnavailable
from app.storage.event_log import connect

QUEUE = "runs"
"""Of agents that share a process."""
ISOLATED_QUEUE = "isolated"
"""Of agents that get a process of their own for each run."""
JOB = "workers.executor.execute"
"""Dotted path, so that the web process never imports worker code."""
NO_TIMEOUT = -1


def queue_of(isolation: str) -> str:
    """The queue whose workers execute agents of that isolation, `gevent` or `process`."""
    return ISOLATED_QUEUE if isolation == "process" else QUEUE


class RunQueue:
    """Enqueue runs by id."""

    def __init__(self, url: str, *, max_connections: int) -> None:
        self.redis = connect(url, max_connections)
        self._queues = {name: Queue(name, connection=self.redis) for name in (QUEUE, ISOLATED_QUEUE)}

    def enqueue(self, run_id: str, epoch: int, queue: str) -> None:
        """Tell the workers that the run is pending. A second hint for the same epoch is harmless.

        :raises StoreUnavailable: Redis cannot be reached.
        """
        try:
            self._queues[queue].enqueue(
                JOB,
                run_id,
                job_id=f"{run_id}-{epoch}",
                job_timeout=NO_TIMEOUT,
                result_ttl=0,
                failure_ttl=60,
                description=run_id,
            )
        except redis.RedisError as error:
            raise StoreUnavailable("Redis cannot be reached.") from error

    def waiting(self) -> set[str]:
        """Ids of the runs that have a job in one of the queues.

        :raises StoreUnavailable: Redis cannot be reached.
        """
        try:
            return {job_id.rpartition("-")[0] for queue in self._queues.values() for job_id in queue.job_ids}
        except redis.RedisError as error:
            raise StoreUnavailable("Redis cannot be reached.") from error

    def close(self) -> None:
        """Close every connection."""
        self.redis.close()
        self.redis.connection_pool.disconnect()
