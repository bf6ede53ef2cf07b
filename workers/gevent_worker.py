"""An RQ worker that executes many runs at once, each in a greenlet: RQ's loop is the fetcher of a pool."""

import logging
import uuid
from contextlib import suppress
from typing import Any

import gevent
from gevent.pool import Pool
from redis import Redis, RedisError
from rq.exceptions import StopRequested

from app.errors import StoreUnavailable
from app.storage.run_queue import QUEUE
from workers.execution.executor import Executor
from workers.heartbeat import SILENCE_SECONDS
from workers.hints import RECORD_SECONDS, RESTART_SECONDS, HintQueue, HintWorker

log = logging.getLogger(__name__)


class GeventWorker(HintWorker):
    """RQ's work loop as the fetcher of a pool of slots. It pops nothing while every slot is taken."""

    def __init__(self, connection: Redis, executor: Executor, slots: int) -> None:
        super().__init__(connection, QUEUE)
        (queue,) = self.queues
        assert isinstance(queue, HintQueue)
        self._queue = queue
        self._executor = executor
        self._pool = Pool(slots)
        self._fetcher: gevent.Greenlet[..., Any] | None = None
        self._stopping = False

    def run(self) -> None:
        """Fetch and execute until `stop` is called. Runs that are still executed then go on."""
        while not self._stopping:
            self._fetcher = gevent.spawn(self.work, logging_level="WARNING")
            self._fetcher.join()
            with suppress(RedisError):  # else a janitor finds them
                self._queue.put_back()
            if not self._stopping:
                # RQ's loop gives up on some errors of Redis. Its name stays taken until the record expires.
                self.name = uuid.uuid4().hex
                gevent.sleep(RESTART_SECONDS)

    def stop(self) -> None:
        """Stop fetching. A blocked pop looks at no flag, so its greenlet is told by exception."""
        self._stopping = True
        if self._fetcher is not None:
            self._fetcher.kill(StopRequested, block=False)

    def join(self) -> None:
        """Wait until every slot is free."""
        self._pool.join()

    def dequeue_job_and_maintain_ttl(self, *args: Any, **kwargs: Any) -> Any:
        """As RQ's, once a slot is free and runs may be claimed: a job that waits here could run elsewhere."""
        while self._pool.full():
            self._pool.wait_available(RECORD_SECONDS)
            self.keep_record()
        while not self._executor.gets_through():
            gevent.sleep(SILENCE_SECONDS)
        self._queue.room = self._pool.free_count()
        return super().dequeue_job_and_maintain_ttl(*args, **kwargs)

    def execute_run(self, run_id: str) -> None:
        """Have the run executed in a slot."""
        self._pool.spawn(self._execute, run_id)

    def _execute(self, run_id: str) -> None:
        try:
            self._executor.execute(run_id)
        except StoreUnavailable as error:
            log.warning("%s was not claimed; a janitor will have it tried again. %s", run_id, error.detail)
        except Exception:
            log.exception("%s could not be executed.", run_id)

    def _install_signal_handlers(self) -> None:
        """The process has its own."""
