"""One worker process: puts its parts together, starts them, and ends in order on SIGTERM or SIGINT."""

import logging
import secrets
import signal
import socket
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import gevent
from redis import RedisError
from rq.worker import BaseWorker

from app.config import Config
from app.errors import StoreUnavailable
from app.storage.run_store import Beats
from app.turns import collect_little
from app.wiring import Services
from workers import seal
from workers.coroner import Coroner
from workers.execution.executor import Executor
from workers.execution.flusher import Flusher
from workers.execution.retry import until_reachable
from workers.gevent_worker import GeventWorker
from workers.heartbeat import Heartbeat
from workers.janitor.abandoned import Abandoned
from workers.janitor.loop import Janitor
from workers.janitor.lost_writers import LostWriters
from workers.janitor.retention import Retention
from workers.loading import Loaded, load_agents, record_of
from workers.watchdog import Watchdog

W = TypeVar("W", bound=BaseWorker)

RECONNECT_SECONDS = 0.5

log = logging.getLogger(__name__)


class WorkerProcess:
    """Everything that one worker process runs."""

    def __init__(self, config: Config, coroner: Coroner) -> None:
        self._coroner = coroner
        self.id = new_worker_id()
        self._config = config
        self._services = services = Services.for_worker(config)
        self._loaded = load_agents(demo=config.demo_agents)
        self._agents = self._loaded.agents
        self._flusher = Flusher(services.ownership)
        self._heartbeat = Heartbeat(Beats(config.database_url, self.id))
        alive = self._heartbeat.gets_through
        self._watchdog = Watchdog(Beats(config.database_url, self.id).blame)
        unwatched = Abandoned(services.ownership, services.leases, config.on_disconnect_grace_seconds)
        retention = Retention(services.erasure, config.run_retention_days)
        lost_writers = LostWriters(services, alive)
        show = partial(services.registry.show_janitor, self.id)
        duties = show, unwatched.cancel, retention.purge
        self._janitor = Janitor(services, *duties, apart=[lost_writers.end], worker_id=self.id, gets_through=alive)
        self._executor = Executor(services, self._flusher, self._agents, self.id, gets_through=alive)

    def run(self) -> None:
        """Work until a signal asks to stop, then drain."""
        self._heartbeat.start()
        self._watchdog.start()
        register(self._services, self.id, self._loaded)
        self._flusher.start()
        collect_little()
        helpers = [gevent.spawn(self._janitor.run), gevent.spawn(self._check_commands)]
        worker = until_reachable(self._connect_rq)
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, worker.stop)
        self._coroner.attend(self._config.database_url, self.id)
        seal.close()
        log.info("Worker %s is ready: %s.", self.id, ", ".join(sorted(self._agents)))
        worker.run()
        log.info("Worker %s drains for up to %d s.", self.id, self._config.drain_seconds)
        self._executor.drain(self._config.drain_seconds)
        worker.join()
        gevent.killall(helpers)
        self._watchdog.stop()
        self._heartbeat.stop()
        leave(self._services, self.id)

    def _connect_rq(self) -> GeventWorker:
        worker = partial(GeventWorker, self._services.queue.redis, self._executor, self._config.worker_concurrency)
        return connect_rq(worker)

    def _check_commands(self) -> None:
        """Look at this worker's commands whenever its doorbell rings."""
        while True:
            try:
                for _ in self._services.log.rings(self.id):
                    self._look()
            except StoreUnavailable as error:
                log.warning("No doorbell. %s", error.detail)
                gevent.sleep(RECONNECT_SECONDS)
            except Exception:
                log.exception("Commands could not be heeded.")
                gevent.sleep(RECONNECT_SECONDS)

    def _look(self) -> None:
        try:
            self._executor.check_commands()
        except StoreUnavailable as error:
            # Of Postgres: the doorbell's connection is kept, because a new one to Redis would hold every run up until
            # its epoch is confirmed.
            log.warning("Commands wait. %s", error.detail)


def new_worker_id() -> str:
    """Of a process that executes runs: the owner of those that it has."""
    return f"{socket.gethostname()}-{secrets.token_hex(4)}"


def register(
    services: Services, worker_id: str, loaded: Loaded, sleep: Callable[[float], object] = gevent.sleep
) -> None:
    """Tell which agents this worker has, and which ones it could not load. Waits for Postgres."""
    for agent in loaded.agents.values():
        until_reachable(partial(services.registry.put_agent, record_of(agent)), sleep)
    until_reachable(partial(services.registry.put_broken, worker_id, loaded.broken), sleep)


def connect_rq(worker: Callable[[], W]) -> W:
    """An RQ worker, which looks at its Redis when it is made.

    :raises StoreUnavailable: Redis cannot be reached.
    """
    try:
        return worker()
    except RedisError as error:
        raise StoreUnavailable("Redis cannot be reached.") from error


def leave(services: Services, worker_id: str) -> None:
    """The last thing that a worker does in order."""
    try:
        services.registry.remove_worker(worker_id)
    except StoreUnavailable:
        log.warning("The worker's row stays behind; nothing refers to it.")
    services.close()
