"""Postgres: the only package that imports peewee. Rows in, records out."""

from app.storage.run_store.batches import (
    BYTES,
    CONTAINERS,
    KEPT_BYTES_MAX,
    KEPT_CONTAINERS_MAX,
    KEPT_MAX,
    Batch,
    BatchResult,
    BatchStore,
)
from app.storage.run_store.beats import Beats
from app.storage.run_store.commands import Decision, SentInput, ToldRun, Waits
from app.storage.run_store.database import Database
from app.storage.run_store.early_cancels import EarlyCancels
from app.storage.run_store.external import (
    ENDING_SECONDS,
    EXTERNAL,
    ExternalStore,
    Hashes,
    WriterBeat,
    ending_seconds,
)
from app.storage.run_store.journal import JournalStore
from app.storage.run_store.migrating import migrate
from app.storage.run_store.records import (
    Checkpoint,
    InputRecord,
    ListedRun,
    NewRun,
    OwnedRun,
    OwnerBeat,
    Principal,
    RunPosition,
    RunRecord,
)
from app.storage.run_store.registry import AgentRecord, Registry, hash_key
from app.storage.run_store.retention import Leftovers, RetentionStore, Tally
from app.storage.run_store.runs import RunStore
from runtail.records import ApprovalRecord, NewApproval, OpRecord, Recorded

__all__ = [
    "BYTES",
    "CONTAINERS",
    "ENDING_SECONDS",
    "EXTERNAL",
    "KEPT_BYTES_MAX",
    "KEPT_CONTAINERS_MAX",
    "KEPT_MAX",
    "AgentRecord",
    "ApprovalRecord",
    "Batch",
    "BatchResult",
    "BatchStore",
    "Beats",
    "Checkpoint",
    "Database",
    "Decision",
    "EarlyCancels",
    "ExternalStore",
    "Hashes",
    "InputRecord",
    "JournalStore",
    "Leftovers",
    "ListedRun",
    "NewApproval",
    "NewRun",
    "OpRecord",
    "OwnedRun",
    "OwnerBeat",
    "Principal",
    "Recorded",
    "Registry",
    "RetentionStore",
    "RunPosition",
    "RunRecord",
    "RunStore",
    "SentInput",
    "Tally",
    "ToldRun",
    "Waits",
    "WriterBeat",
    "ending_seconds",
    "hash_key",
    "migrate",
]
