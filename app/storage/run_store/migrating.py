"""Applies migrations beside a running installation: never waits for a lock so long that others queue up behind it.

A migration that changes a table needs a lock that nobody else holds, and while it waits for one, everybody who comes
after it waits too. So it gives up after LOCK_TIMEOUT and tries again later. Indexes on tables that hold rows are built
concurrently: a migration names them in `INDEXES` (name → what follows `ON`, with `UNIQUE ` before the name if need be),
and every call builds those that are missing or were left half built. Not responsible for what a migration does.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playhouse.migrations import Migration, Runner

from app.errors import StoreUnavailable
from app.storage.run_store.database import Database

MIGRATIONS = Path(__file__).parent.parent / "migrations"
MIGRATION_LOCK = 0x52544D47
"""Advisory lock: two releases at once apply each migration once."""
LOCK_TIMEOUT = "1s"
"""Longest time that a migration keeps others waiting before it has its lock."""
INDEX_LOCK_TIMEOUT = "60s"
"""An index that is built concurrently waits for the transactions under way, and keeps nobody waiting meanwhile."""
PAUSE_SECONDS = 2.0
"""Between two attempts, in which those who queued up go on."""
PATIENCE_SECONDS = 300.0
"""After so long in vain `migrate` fails, so that a release does not hang."""
POLL_SECONDS = 0.1

_TRY_AGAIN = ("55P03", "40P01")
"""SQLSTATE: no lock within the timeout, deadlock."""

log = logging.getLogger(__name__)


def migrate(url: str, *, patience_seconds: float = PATIENCE_SECONDS, target: str | None = None) -> list[str]:
    """Apply the pending migrations. Returns their names.

    :param target: the name of the last one to apply; None: all, and every index.
    :raises StoreUnavailable: Postgres cannot be reached, or others held a lock for `patience_seconds`.
    """
    database = Database(url, pool_size=1)
    deadline = time.monotonic() + patience_seconds
    applied: list[str] = []
    try:
        while True:
            try:
                with database.session() as db, _alone(db, deadline):
                    _apply(db, applied, target)
                    return applied
            except StoreUnavailable as error:
                if not _locked_out(error):
                    raise
                if time.monotonic() > deadline:
                    why = "Transactions of others hold what a migration has to lock: see pg_stat_activity."
                    raise StoreUnavailable(f"{why} It was tried for {patience_seconds:.0f} s.") from error
                log.warning("A migration waits for others' transactions. Trying again in %.0f s.", PAUSE_SECONDS)
            time.sleep(PAUSE_SECONDS)
    finally:
        database.close()


@contextmanager
def _alone(db: Any, deadline: float) -> Iterator[None]:
    """For the block no other release migrates. Asks again and again: a statement that waits would hold up an index."""
    while not db.execute_sql("SELECT pg_try_advisory_lock(%s)", (MIGRATION_LOCK,)).fetchone()[0]:
        if time.monotonic() > deadline:
            raise StoreUnavailable("Another release has been migrating the database for too long.")
        time.sleep(POLL_SECONDS)
    yield
    db.execute_sql("SELECT pg_advisory_unlock(%s)", (MIGRATION_LOCK,))  # where the block raised, the session is closed


def _apply(db: Any, applied: list[str], target: str | None) -> None:
    """:param applied: is told of each migration at once, so that a later attempt loses none."""
    runner = Runner(db, str(MIGRATIONS))
    db.execute_sql(f"SET lock_timeout = '{LOCK_TIMEOUT}'")
    for migration in [found for found in runner.status() if found.path is not None]:
        if not migration.applied:
            applied += runner.up(migration.name)
        if migration.name == target:
            return
    db.execute_sql(f"SET lock_timeout = '{INDEX_LOCK_TIMEOUT}'")
    for migration in Migration.load_directory(str(MIGRATIONS)):
        for name, definition in getattr(migration.load(), "INDEXES", {}).items():
            _build_index(db, name, definition)


def _build_index(db: Any, name: str, definition: str) -> None:
    plain = name.removeprefix("UNIQUE ")
    unique = "UNIQUE " if plain != name else ""
    sql = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"
    found = db.execute_sql(sql, (plain,)).fetchone()
    if found == (True,):
        return
    if found is not None:  # an attempt was stopped in the middle
        db.execute_sql(f"DROP INDEX CONCURRENTLY {plain}")
    db.execute_sql(f"CREATE {unique}INDEX CONCURRENTLY {plain} ON {definition}")


def _locked_out(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "pgcode", None) in _TRY_AGAIN:
            return True
        cause = cause.__cause__ or cause.__context__
    return False
