"""A worker whose runs have a process each: RQ's forking worker, one run at a time, on the queue `isolated`.

Nothing here is patched, and there is no event loop: agents are to find Python as it is, and a fork is to inherit none.
"""

import logging
import os
import signal
import time
import uuid
from functools import partial
from threading import Thread
from typing import Any

from redis import RedisError
from rq import Worker
from rq.exceptions import InvalidJobOperation, StopRequested
from rq.job import Job, JobStatus
from rq.queue import Queue

from app.config import Config
from app.errors import StoreUnavailable
from app.storage.run_queue import ISOLATED_QUEUE
from app.wiring import Services
from workers.executor import current
from workers.gevent_worker import JOB_HEARTBEAT_SECONDS, RESTART_SECONDS, WORKER_TTL_SECONDS
from workers.heartbeat import Heartbeat
from workers.horse import Horse
from workers.keeper import Keeper
from workers.lifetime import live_no_longer_than
from workers.process import RECONNECT_SECONDS, connect_rq, leave, new_worker_id
from workers.registry import load_agents
from workers.retry import until_reachable

log = logging.getLogger(__name__)


class IsolatedProcess:
    """Everything that the parent of the work horses runs."""

    def __init__(self, config: Config) -> None:
        self.id = new_worker_id()
        self._services = Services.for_worker(config)
        self._agents = load_agents()
        self._heartbeat = Heartbeat(config.database_url, self.id)
        self._keeper = Keeper(self._services, self.id)
        self._new_horse = partial(Horse, config, self._agents, self.id)
        self._drain_seconds = config.drain_seconds

    def run(self) -> None:
        """Work until a signal asks to stop, then drain."""
        self._heartbeat.start()
        for agent in self._agents.values():
            until_reachable(partial(self._services.registry.put_agent, agent.record()), time.sleep)
        Thread(target=self._heed_commands, daemon=True).start()
        worker = until_reachable(self._connect_rq, time.sleep)
        isolated = sorted(agent.name for agent in self._agents.values() if agent.queue == ISOLATED_QUEUE)
        log.info("Worker %s is ready: %s.", self.id, ", ".join(isolated) or "no agent is isolated")
        worker.run()
        self._heartbeat.stop()
        leave(self._services, self.id)

    def _connect_rq(self) -> "IsolatedWorker":
        return connect_rq(
            lambda: IsolatedWorker(self._services.queue.redis, self._keeper, self._new_horse, self._drain_seconds)
        )

    def _heed_commands(self) -> None:
        """Look at this worker's commands whenever its doorbell rings, and now and then while it cannot."""
        while True:
            try:
                for _ in self._services.log.rings(self.id):
                    self._look()
            except StoreUnavailable as error:
                log.warning("No doorbell. %s", error.detail)
            except Exception:
                log.exception("The doorbell broke.")
            self._look()
            time.sleep(RECONNECT_SECONDS)

    def _look(self) -> None:
        try:
            self._keeper.heed_commands()
        except StoreUnavailable as error:
            log.warning("Commands wait. %s", error.detail)
        except Exception:
            log.exception("Commands could not be heeded.")


class IsolatedWorker(Worker):
    """RQ's worker, with a keeper for its horse."""

    max_connection_wait_time = 2.0
    log_result_lifespan = False

    def __init__(self, connection: Any, keeper: Keeper, new_horse: "partial[Horse]", drain_seconds: float) -> None:
        super().__init__(
            [ISOLATED_QUEUE], connection=connection, worker_ttl=WORKER_TTL_SECONDS, log_job_description=False
        )
        self._keeper = keeper
        self._new_horse = new_horse
        self._drain_seconds = drain_seconds
        self._fetching = False
        self._stopping = False
        self._kept_alive = 0.0
        self._install_signal_handlers()

    def run(self) -> None:
        """Fetch and execute until a signal asks to stop, and the run that is under way has been settled."""
        while not self._stopping:
            try:
                self._fetching = True
                self.work(logging_level="WARNING")
            except StopRequested:
                log.info("The worker ends before it has begun.")
            except Exception:
                log.warning("RQ's loop ended.", exc_info=True)
            self._fetching = False
            if not self._stopping:
                # RQ gives up on some errors of Redis. Its name stays taken until the record expires.
                self.name = uuid.uuid4().hex
                time.sleep(RESTART_SECONDS)

    def execute_job(self, job: Job, queue: Queue) -> None:
        """As RQ's; a signal meanwhile stops the worker afterwards."""
        self._fetching = False
        try:
            super().execute_job(job, queue)
        finally:
            self._fetching = True

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """As RQ's, with a pipe in either direction."""
        words, words_in = os.pipe()
        bell, bell_in = os.pipe()
        os.set_blocking(bell_in, False)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.setpgrp()
            live_no_longer_than(parent)
            os.close(words)
            os.close(bell_in)
            current.set(self._new_horse(words_in, bell))
            self.main_work_horse(job, queue)  # does not return
        os.close(words_in)
        os.close(bell)
        self._horse_pid = pid
        self._keeper.begin(job.args[0], pid, words, bell_in)

    def monitor_work_horse(self, job: Job, queue: Queue) -> None:
        """Wait until the horse has ended and its run is settled; then keep RQ's record of the job."""
        self._kept_alive = time.monotonic()
        code = self._keeper.watch(lambda: self._keep_alive(job))
        self._horse_pid = 0
        if code == 0:
            return
        try:
            if job.get_status() not in (JobStatus.FINISHED, JobStatus.FAILED):
                self.handle_job_failure(job, queue, exc_string=f"The work horse ended with {code}.")
        except InvalidJobOperation:
            return  # it had been concluded
        except RedisError:
            log.warning("RQ could not keep its record of job %s.", job.id, exc_info=True)

    def _keep_alive(self, job: Job) -> None:
        if time.monotonic() - self._kept_alive < JOB_HEARTBEAT_SECONDS:
            return
        self._kept_alive = time.monotonic()
        try:
            self.maintain_heartbeats(job)
        except RedisError:
            log.warning("RQ could not keep its record of job %s.", job.id, exc_info=True)

    def setup_work_horse_signals(self) -> None:
        """The horse leaves signals to its parent, also where a platform sends them to every process of a container.

        By a handler, because what is ignored stays so in the programs that an agent starts.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)

    def _install_signal_handlers(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        """A blocked pop looks at no flag, so it is told by exception."""
        if not self._stopping:
            log.info("The worker drains for up to %d s.", self._drain_seconds)
            self._keeper.drain(self._drain_seconds)
        self._stopping = self._stop_requested = True
        if self._fetching:
            self._fetching = False
            raise StopRequested
