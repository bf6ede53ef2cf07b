"""Migrating beside a running installation: whose locks are waited for, for how long, and who waits meanwhile."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest

from app.errors import StoreUnavailable
from app.storage.run_store import migrate, migrating
from tests.conftest import execute, own_databases
from tests.harness import eventually

INSERT_KEY = """
INSERT INTO api_keys (id, key_hash, tenant_id, user_id) VALUES (gen_random_uuid(), gen_random_uuid(), '', '')
"""
MOST_SECONDS = 3.0
"""A reader may wait for a migration's attempt, which takes one second at most; the rest is the busy machine."""


@pytest.fixture
def before(environment: dict[str, str]) -> Iterator[str]:
    """A database as the migration 0003 has left it."""
    with own_databases(environment, migrated=False) as urls:
        migrate(urls["DATABASE_URL"], target="0003_durable")
        yield urls["DATABASE_URL"]


@contextmanager
def _holding(url: str, sql: str) -> Iterator[None]:
    """A transaction of somebody else, which has done this and goes on."""
    with closing(psycopg2.connect(url)) as connection:
        connection.cursor().execute(sql)
        yield


def _ask(url: str, sql: str, values: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(sql, values)
        return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize(
    ("table", "statement"),
    [
        ("approvals", "SELECT count(*) FROM approvals"),
        ("api_keys", "SELECT count(*) FROM api_keys"),
        ("api_keys", INSERT_KEY),
    ],
)
def test_a_migration_that_waits_for_a_reader_keeps_nobody_else_waiting(
    before: str, table: str, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "PAUSE_SECONDS", 0.3)
    applied: list[str] = []
    release = threading.Thread(target=lambda: applied.extend(migrate(before)))
    with _holding(before, f"SELECT count(*) FROM {table}"):
        release.start()
        waits = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        for _ in range(3):
            eventually(lambda: _ask(before, waits), what="the migration waits for the reader")
            begun = time.monotonic()
            _ask(before, statement)
            assert time.monotonic() - begun < MOST_SECONDS
            eventually(lambda: not _ask(before, waits), what="it lets the others go on")
        assert applied == []
    release.join(30)
    assert "0004_external" in applied


def test_a_migration_gives_up_when_a_lock_is_held_for_too_long(before: str) -> None:
    with _holding(before, "LOCK TABLE approvals"), pytest.raises(StoreUnavailable, match="hold what a migration"):
        migrate(before, patience_seconds=0)
    assert "0004_external" in migrate(before)


def test_indexes_are_built_while_runs_are_written(before: str) -> None:
    """Somebody writes to `runs` the whole time: an ordinary CREATE INDEX would wait for that, and others for it."""
    columns = "(id, tenant_id, user_id, session_id, agent, input, metadata, on_disconnect, status, state, state_seq)"
    insert = f"INSERT INTO runs {columns} VALUES (%s, '', '', '', '', '{{}}', '{{}}', '', 'pending', '{{}}', 0)"
    migrate(
        before, target=max(migration.stem for migration in migrating.MIGRATIONS.glob("0*.py"))
    )  # all but the indexes
    release = threading.Thread(target=migrate, args=(before,))
    with _holding(before, insert.replace("%s", "'run_0'")):
        release.start()
        building = "SELECT 1 FROM pg_stat_progress_create_index"
        eventually(lambda: _ask(before, building), what="an index is being built")
        begun = time.monotonic()
        _ask(before, insert, ("run_1",))
        assert time.monotonic() - begun < MOST_SECONDS
        assert release.is_alive()
    release.join(30)
    assert _indexes(before) >= {("runs_external", True), ("runs_waking", True), ("runs_client_run_id", True)}


def test_an_index_that_was_left_half_built_is_built_again(environment: dict[str, str]) -> None:
    with own_databases(environment) as urls:
        url = urls["DATABASE_URL"]
        execute(url, "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'runs_waking'::regclass")
        execute(url, "DROP INDEX runs_external")
        assert migrate(url) == []
        assert _indexes(url) >= {("runs_external", True), ("runs_waking", True)}


def _indexes(url: str) -> set[tuple[object, ...]]:
    sql = "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 'runs'::regclass"
    return set(_ask(url, sql))
