"""What a process needs, built once from its Config and closed once."""

from dataclasses import dataclass

from app.config import Config
from app.hooks import Hooks
from app.storage.breaker import Breaker
from app.storage.erasure import Erasure
from app.storage.event_log import EventLog
from app.storage.history import History
from app.storage.leases import Leases
from app.storage.ownership import Ownership
from app.storage.recovery import Recovery
from app.storage.run_queue import RunQueue
from app.storage.run_store import (
    BatchStore,
    Database,
    EarlyCancels,
    ExternalStore,
    JournalStore,
    Registry,
    RetentionStore,
    RunStore,
    Waits,
)

WEB_LOG_CONNECTIONS = 2_000
"""Each request that waits for the end of a run holds one meanwhile; windows hold none."""
WEB_QUEUE_CONNECTIONS = 8
WORKER_LOG_CONNECTIONS = 2
"""The doorbell's, and one for everything else: appends are pipelined, none of them blocks."""
WORKER_QUEUE_CONNECTIONS = 4
"""RQ's blocking pop, its control channel, and the two that it needs at the end of a job."""


@dataclass(frozen=True, slots=True)
class Services:
    """The storage of one process. Connections are made on first use."""

    config: Config
    database: Database
    store: RunStore
    journal: JournalStore
    waits: Waits
    early_cancels: EarlyCancels
    external: ExternalStore
    batches: BatchStore
    registry: Registry
    log: EventLog
    queue: RunQueue
    ownership: Ownership
    recovery: Recovery
    erasure: Erasure
    history: History
    leases: Leases
    hooks: Hooks

    @classmethod
    def for_web(cls, config: Config) -> "Services":
        """For a process that serves windows."""
        return cls._build(config, WEB_LOG_CONNECTIONS, WEB_QUEUE_CONNECTIONS)

    @classmethod
    def for_worker(cls, config: Config) -> "Services":
        """For a process that executes runs: at most six Redis connections, and one while it watches leases."""
        return cls._build(config, WORKER_LOG_CONNECTIONS, WORKER_QUEUE_CONNECTIONS)

    @classmethod
    def _build(cls, config: Config, log_connections: int, queue_connections: int) -> "Services":
        database = Database(config.database_url, config.db_pool_size)
        store, waits = RunStore(database), Waits(database)
        hooks = Hooks.load()
        log = EventLog(config.events_redis_url, ttl_seconds=config.stream_ttl_seconds, max_connections=log_connections)
        breaker = log.breaker if config.share_redis else Breaker()
        queue = RunQueue(config.redis_url, breaker, max_connections=queue_connections)
        return cls(
            config=config,
            database=database,
            store=store,
            journal=JournalStore(database),
            waits=waits,
            early_cancels=EarlyCancels(database),
            external=ExternalStore(database),
            batches=BatchStore(database),
            registry=Registry(database),
            log=log,
            queue=queue,
            ownership=Ownership(store, log, hooks),
            recovery=Recovery(database, store, waits, log),
            erasure=Erasure(store, RetentionStore(database), log, queue),
            history=History(store, log),
            leases=Leases(config.events_redis_url, log.breaker),
            hooks=hooks,
        )

    def close(self) -> None:
        """Close every connection."""
        self.leases.close()
        self.log.close()
        self.queue.close()
        self.database.close()
