"""A PostgreSQL that comes back without its last transactions, as after a failover to a replica that was behind."""

from contextlib import closing
from typing import Any

import psycopg2
from redis import Redis

from app.storage.event_log import meta_key, stream_key
from tests.harness import eventually

TABLES = ("runs", "run_events", "run_ops", "approvals", "run_inputs", "writers", "workers", "early_cancels")


class PostgresImage:
    """What the database holds, to go back to; all connections to it are cut at that moment."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._rows: dict[str, list[tuple[Any, ...]]] = {}
        with closing(psycopg2.connect(url)) as db, db.cursor() as cursor:
            for table in TABLES:
                cursor.execute(f"SELECT t::text FROM {table} t")
                self._rows[table] = cursor.fetchall()

    def restore(self) -> None:
        """Lose every transaction since."""
        with closing(psycopg2.connect(self._url)) as db, db.cursor() as cursor:
            cursor.execute(f"TRUNCATE {', '.join(TABLES)}")
            for table, rows in self._rows.items():
                for (row,) in rows:
                    cursor.execute(f"INSERT INTO {table} SELECT (%s::{table}).*", (row,))
            db.commit()
            others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            cursor.execute(f"SELECT pg_terminate_backend(pid) {others}")
            eventually(lambda: not _found(cursor, f"SELECT 1 {others}"), what="all connections are cut")


def _found(cursor: Any, sql: str) -> bool:
    cursor.execute("SELECT pg_stat_clear_snapshot()")
    cursor.execute(sql)
    return cursor.fetchone() is not None


def lose_events(url: str, run_id: str, after: int) -> None:
    """Delete the archived events of one run, and no other row."""
    with closing(psycopg2.connect(url)) as db, db.cursor() as cursor:
        cursor.execute("DELETE FROM run_events WHERE run_id = %s AND seq > %s", (run_id, after))
        db.commit()


def evict(redis_url: str, run_id: str, *, meta: bool = False, stream: bool = False) -> None:
    """Redis throws keys of a run away, as by an eviction policy."""
    with Redis.from_url(redis_url) as redis:
        for key, gone in ((meta_key(run_id), meta), (stream_key(run_id), stream)):
            if gone:
                redis.delete(key)
