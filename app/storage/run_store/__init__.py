"""Postgres: the only package that imports peewee. Rows in, records out."""

from app.storage.run_store.database import Database, migrate
from app.storage.run_store.records import Checkpoint, NewRun, OwnedRun, OwnerBeat, Principal, RunPosition, RunRecord
from app.storage.run_store.registry import AgentRecord, Registry, hash_key
from app.storage.run_store.store import RunStore

__all__ = [
    "AgentRecord",
    "Checkpoint",
    "Database",
    "NewRun",
    "OwnedRun",
    "OwnerBeat",
    "Principal",
    "Registry",
    "RunPosition",
    "RunRecord",
    "RunStore",
    "hash_key",
    "migrate",
]
