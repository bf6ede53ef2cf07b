"""A worker whose runs have a process each: RQ's loop, which forks for one run at a time, on the queue `isolated`.

Nothing here is patched, and there is no event loop: agents are to find Python as it is, and a fork is to inherit none.
"""

import logging
import os
import random
import signal
import time
import uuid
from collections.abc import Callable
from functools import partial
from threading import Thread
from typing import Any, NoReturn

from rq.exceptions import StopRequested

from app.config import Config
from app.errors import StoreUnavailable
from app.storage.run_queue import ISOLATED_QUEUE
from app.storage.run_store import Beats
from app.wiring import Services
from runtail.lifetime import adopt_orphans, children_of, live_no_longer_than
from workers.execution.retry import until_reachable
from workers.heartbeat import SILENCE_SECONDS, Heartbeat
from workers.hints import RECORD_SECONDS, RESTART_SECONDS, HintWorker
from workers.isolated.child import Child
from workers.isolated.parent import Parent
from workers.loading import load_agents, queue_of_agent
from workers.process import RECONNECT_SECONDS, connect_rq, leave, new_worker_id, register

log = logging.getLogger(__name__)


class IsolatedProcess:
    """Everything that the parent of the work children runs."""

    def __init__(self, config: Config) -> None:
        self.id = new_worker_id()
        self._services = Services.for_worker(config)
        self._loaded = load_agents(demo=config.demo_agents)
        self._agents = self._loaded.agents
        self._heartbeat = Heartbeat(Beats(config.database_url, self.id, isolated=True))
        self._parent = Parent(self._services, self.id)
        self._new_child = partial(Child, config, self._agents, self.id)
        self._drain_seconds = config.drain_seconds
        self._leaving = False

    def run(self) -> None:
        """Work until a signal asks to stop, then drain."""
        adopt_orphans()  # of the children
        self._heartbeat.start()
        register(self._services, self.id, self._loaded, time.sleep)
        Thread(target=self._check_commands, daemon=True).start()
        worker = until_reachable(self._connect_rq, time.sleep)
        isolated = sorted(agent.name for agent in self._agents.values() if queue_of_agent(agent) == ISOLATED_QUEUE)
        log.info("Worker %s is ready: %s.", self.id, ", ".join(isolated) or "no agent is isolated")
        worker.run()
        self._leaving = True
        self._heartbeat.stop()
        leave(self._services, self.id)

    def _connect_rq(self) -> "IsolatedWorker":
        redis, alive = self._services.queue.redis, self._heartbeat.gets_through
        return connect_rq(lambda: IsolatedWorker(redis, self._parent, self._new_child, self._drain_seconds, alive))

    def _check_commands(self) -> None:
        """Look at this worker's commands whenever its doorbell rings, and now and then while it cannot."""
        while True:
            try:
                for _ in self._services.log.rings(self.id):
                    self._look()
            except StoreUnavailable as error:
                log.warning("No doorbell. %s", error.detail)
            except Exception:
                if self._leaving:
                    return  # the connection was closed under it
                log.exception("The doorbell broke.")
            self._look()
            time.sleep(RECONNECT_SECONDS)

    def _look(self) -> None:
        try:
            self._parent.check_commands()
        except StoreUnavailable as error:
            log.warning("Commands wait. %s", error.detail)
        except Exception:
            log.exception("Commands could not be heeded.")


class IsolatedWorker(HintWorker):
    """RQ's work loop, with a parent for the child that it forks for each run."""

    def __init__(
        self,
        connection: Any,
        parent: Parent,
        new_child: "partial[Child]",
        drain_seconds: float,
        gets_through: Callable[[], bool],
    ) -> None:
        """:param gets_through: whether this worker's heartbeat does; nothing is begun while it does not."""
        super().__init__(connection, ISOLATED_QUEUE)
        self._parent = parent
        self._new_child = new_child
        self._drain_seconds = drain_seconds
        self._gets_through = gets_through
        self._fetching = False
        self._stopping = False
        self._recording = Thread()
        """Keeps RQ's record of this worker."""
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

    def dequeue_job_and_maintain_ttl(self, *args: Any, **kwargs: Any) -> Any:
        """As RQ's, once runs may be claimed: a job that waits here could run elsewhere."""
        self._wait_for_heartbeat()
        return super().dequeue_job_and_maintain_ttl(*args, **kwargs)

    def _wait_for_heartbeat(self) -> None:
        while not self._gets_through():
            time.sleep(SILENCE_SECONDS)

    def execute_run(self, run_id: str) -> None:
        """Fork a child for the run, and wait until it has ended and the run is settled.

        A signal meanwhile stops the worker afterwards.
        """
        self._wait_for_heartbeat()  # the pop may have taken long
        self._fetching = False
        try:
            self._fork(run_id)
            self._parent.watch(self._keep_record)
        finally:
            self._fetching = True

    def _fork(self, run_id: str) -> None:
        """With a pipe in either direction."""
        words, words_in = os.pipe()
        bell, bell_in = os.pipe()
        os.set_blocking(bell_in, False)
        parent = os.getpid()
        older = children_of(parent)
        pid = os.fork()
        if pid == 0:
            os.setpgrp()
            live_no_longer_than(parent)
            os.close(words)
            os.close(bell_in)
            self._be_child(run_id, words_in, bell)  # does not return
        os.close(words_in)
        os.close(bell)
        self._parent.begin(run_id, pid, words, bell_in, older)

    def _be_child(self, run_id: str, words: int, bell: int) -> NoReturn:
        """In the fork."""
        code = 1
        try:
            random.seed()
            _leave_signals_to_the_parent()
            self._new_child(words, bell).execute(run_id)
            code = 0
        except BaseException:  # SystemExit among them: this is not the worker
            log.exception("%s could not be executed.", run_id)
        finally:
            os._exit(code)

    def _keep_record(self) -> None:
        """In a thread: where Redis hangs, a command of RQ's takes longer than the child can be left alone."""
        if self._is_due("record", RECORD_SECONDS) and not self._recording.is_alive():
            self._recording = Thread(target=self.keep_record, daemon=True)
            self._recording.start()

    def _install_signal_handlers(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, *_: object) -> None:
        """A blocked pop looks at no flag, so it is told by exception."""
        if not self._stopping:
            log.info("The worker drains for up to %d s.", self._drain_seconds)
            self._parent.drain(self._drain_seconds)
        self._stopping = self._stop_requested = True
        if self._fetching:
            self._fetching = False
            raise StopRequested


def _leave_signals_to_the_parent() -> None:
    """Also where a platform sends them to every process of a container.

    By a handler, because what is ignored stays so in the programs that an agent starts.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
