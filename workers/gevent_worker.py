"""An RQ worker that executes many jobs at once, each in a greenlet.

One fetcher pops jobs and hands each to a free slot. RQ keeps one job per worker object, so a slot is a shallow copy
of the worker that keeps the job's bookkeeping to itself; connections are shared.
"""

import copy
import logging
import uuid
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from gevent.pool import Pool
from redis import Redis, RedisError
from rq import SimpleWorker
from rq.exceptions import StopRequested
from rq.job import Job
from rq.queue import Queue
from rq.timeouts import BaseDeathPenalty

from app.storage.run_queue import QUEUE
from workers.executor import Executor, current

WORKER_TTL_SECONDS = 30
"""Of RQ's own record of this worker; its blocking pop returns every WORKER_TTL_SECONDS - 15."""
JOB_HEARTBEAT_SECONDS = 30
"""Well below the time after which RQ calls a started job abandoned."""
RESTART_SECONDS = 1.0

log = logging.getLogger(__name__)


class GeventDeathPenalty(BaseDeathPenalty):
    """RQ's job timeout by gevent's timer: signals and threads do not reach a greenlet."""

    def setup_death_penalty(self) -> None:
        self._timer = gevent.Timeout(self._timeout if self._timeout > 0 else None, self._exception)
        self._timer.start()

    def cancel_death_penalty(self) -> None:
        self._timer.close()


class GeventWorker(SimpleWorker):
    """RQ's work loop as the fetcher of a pool of slots. It pops nothing while every slot is taken."""

    death_penalty_class = GeventDeathPenalty
    max_connection_wait_time = 2.0
    log_result_lifespan = False

    def __init__(self, connection: Redis, executor: Executor, slots: int) -> None:
        super().__init__([QUEUE], connection=connection, worker_ttl=WORKER_TTL_SECONDS, log_job_description=False)
        self._executor = executor
        self._pool = Pool(slots)
        self._jobs: dict[str, tuple[GeventWorker, Job]] = {}
        self._beginning, self._ending = BoundedSemaphore(), BoundedSemaphore()
        self._fetcher: gevent.Greenlet[..., Any] | None = None
        self._stopping = False

    def run(self) -> None:
        """Fetch and execute until `stop` is called. Jobs that still run then are left running."""
        keeper = gevent.spawn(self._keep_jobs_alive)
        while not self._stopping:
            self._fetcher = gevent.spawn(self.work, logging_level="WARNING")
            self._fetcher.join()
            if not self._stopping:
                # RQ's loop gives up on some errors of Redis. Its name stays taken until the record expires.
                self.name = uuid.uuid4().hex
                gevent.sleep(RESTART_SECONDS)
        keeper.kill()

    def stop(self) -> None:
        """Stop fetching. A blocked pop looks at no flag, so its greenlet is told by exception."""
        self._stopping = True
        if self._fetcher is not None:
            self._fetcher.kill(StopRequested, block=False)

    def join(self) -> None:
        """Wait until every slot is free."""
        self._pool.join()

    def dequeue_job_and_maintain_ttl(self, *args: Any, **kwargs: Any) -> Any:
        """As RQ's, once a slot is free: a job that waits here could run elsewhere."""
        self._pool.wait_available()
        return super().dequeue_job_and_maintain_ttl(*args, **kwargs)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Hand the job to a slot."""
        self._pool.spawn(self._execute_in_slot, copy.copy(self), job, queue)

    def _execute_in_slot(self, slot: "GeventWorker", job: Job, queue: Queue) -> None:
        current.set(self._executor)
        self._jobs[job.id] = (slot, job)
        try:
            if self._prepared(slot, job):
                slot.perform_job(job, queue)
            else:
                job.perform()
        except Exception:
            # RQ's bookkeeping failed, not the run: that has an owner and an end of its own.
            log.warning("RQ could not keep its record of job %s.", job.id, exc_info=True)
        finally:
            self._jobs.pop(job.id, None)

    def _prepared(self, slot: "GeventWorker", job: Job) -> bool:
        """Whether RQ has taken down that the job begins. What it is about is done in any case."""
        try:
            with self._beginning:
                slot.prepare_execution(job)
        except RedisError:
            log.warning("RQ could not take down that job %s begins.", job.id, exc_info=True)
            return False
        return True

    # RQ holds one connection while it asks for a second one here: any number of slots at once would use up the pool
    # and wait for one another.

    def handle_job_success(self, *args: Any, **kwargs: Any) -> None:
        """As RQ's, one slot at a time."""
        with self._ending:
            super().handle_job_success(*args, **kwargs)

    def handle_job_failure(self, *args: Any, **kwargs: Any) -> None:
        """As RQ's, one slot at a time."""
        with self._ending:
            super().handle_job_failure(*args, **kwargs)

    def teardown(self) -> None:
        """As RQ's, which leaves its control channel's greenlet and connection behind while Redis is away."""
        control: Any = self.pubsub_thread
        if control is not None:
            control.stop()
        super().teardown()  # type: ignore[no-untyped-call]

    def _keep_jobs_alive(self) -> None:
        while True:
            gevent.sleep(JOB_HEARTBEAT_SECONDS)
            for slot, job in list(self._jobs.values()):
                try:
                    slot.maintain_heartbeats(job)
                except Exception:
                    log.warning("RQ could not keep its record of job %s.", job.id, exc_info=True)

    def _install_signal_handlers(self) -> None:
        """The process has its own."""
