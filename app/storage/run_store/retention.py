"""What is removed: runs with all that belongs to them, and rows that have outlived their use.

Not responsible for what Redis holds of a run (`app.storage.erasure`), which goes first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.storage.run_store.database import Database
from app.storage.run_store.early_cancels import REMEMBERED_HOURS

DAYS_MAX = 1_000_000
"""More days than Postgres' calendar has come to; whoever keeps runs for longer keeps them for ever."""
RUNS_MAX = 200
EVENTS_MAX = 20_000
"""Of one transaction, so that it takes well below a second: it keeps others waiting."""
WORKER_DAYS = 1
"""A worker's row without a heartbeat for so long, and without a run, is of a worker that is gone."""

_TABLES = ("run_events", "run_ops", "approvals", "run_inputs", "writers")
"""Of a run's rows, besides the one in `runs`."""

_OLD = "finished_at < now() - make_interval(days => %s)"
# As many as come to EVENTS_MAX, and one at least.
_FIND_OLD = f"""
WITH old AS (
    SELECT id, finished_at, state_seq FROM runs WHERE {_OLD} ORDER BY finished_at, id LIMIT %s
), counted AS (
    SELECT id, sum(state_seq) OVER (ORDER BY finished_at, id) - state_seq AS events_before FROM old
) SELECT id FROM counted WHERE events_before < %s
"""
_LOCK = """
SELECT id FROM runs WHERE id = ANY (%s) AND finished_at IS NOT NULL ORDER BY id FOR UPDATE SKIP LOCKED
"""
_TALLY = f"""
SELECT status, count(*), sum(e.n), sum(o.n), sum(a.n), sum(i.n), sum(e.bytes)
FROM runs r
CROSS JOIN LATERAL (SELECT count(*) AS n, coalesce(sum(octet_length(e)), 0) AS bytes
                    FROM run_events WHERE run_id = r.id) AS e
CROSS JOIN LATERAL (SELECT count(*) AS n FROM run_ops WHERE run_id = r.id) AS o
CROSS JOIN LATERAL (SELECT count(*) AS n FROM approvals WHERE run_id = r.id) AS a
CROSS JOIN LATERAL (SELECT count(*) AS n FROM run_inputs WHERE run_id = r.id) AS i
WHERE {_OLD} GROUP BY status ORDER BY status
"""
_GONE_WORKERS = f"""
workers w WHERE seen_at < now() - interval '{WORKER_DAYS} days'
AND NOT EXISTS (SELECT FROM runs r WHERE r.owner = w.id AND r.status = 'running')
"""
_FORGOTTEN_CANCELS = f"early_cancels WHERE created_at < now() - interval '{REMEMBERED_HOURS} hours'"


@dataclass(frozen=True, slots=True)
class Tally:
    """How much there is to remove of the runs that ended in one status."""

    status: str
    runs: int
    events: int
    ops: int
    approvals: int
    inputs: int
    bytes: int
    """Of the text of the events."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Rows that refer to nothing any more."""

    workers: int
    early_cancels: int


class RetentionStore:
    """Every method may raise StoreUnavailable; one call, one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def tally(self, days: int) -> list[Tally]:
        """What `erase_old` would remove, by status."""
        with self._database.session() as db:
            found = db.execute_sql(_TALLY, (min(days, DAYS_MAX),)).fetchall()
        return [Tally(status, *map(int, numbers)) for status, *numbers in found]

    def old(self, days: int) -> list[str]:
        """Runs that ended more than so many days ago, oldest first: as many as are erased in one transaction."""
        values = (min(days, DAYS_MAX), RUNS_MAX, EVENTS_MAX)
        with self._database.session() as db:
            return [run_id for (run_id,) in db.execute_sql(_FIND_OLD, values).fetchall()]

    def erase(self, run_ids: Sequence[str]) -> int:
        """Delete every row of these runs, which have ended. Returns of how many: others may be erasing some of them."""
        with self._database.session(atomic=True) as db:
            locked = [run_id for (run_id,) in db.execute_sql(_LOCK, (list(run_ids),)).fetchall()]
            erase_runs(db, locked)
            return len(locked)

    def leftovers(self) -> Leftovers:
        """What `remove_leftovers` would remove."""
        with self._database.session() as db:
            sql = f"SELECT (SELECT count(*) FROM {_GONE_WORKERS}), (SELECT count(*) FROM {_FORGOTTEN_CANCELS})"
            return Leftovers(*db.execute_sql(sql).fetchone())

    def remove_leftovers(self) -> Leftovers:
        """Remove the rows of workers that are gone, and of cancels whose run did not come."""
        with self._database.session(atomic=True) as db:
            tables = (_GONE_WORKERS, _FORGOTTEN_CANCELS)
            return Leftovers(*(db.execute_sql(f"DELETE FROM {table}").rowcount for table in tables))


def erase_runs(db: Any, run_ids: Sequence[str]) -> None:
    """Within a transaction that has locked these runs: remove every row of theirs."""
    for table in _TABLES:
        db.execute_sql(f"DELETE FROM {table} WHERE run_id = ANY (%s)", (list(run_ids),))
    db.execute_sql("DELETE FROM runs WHERE id = ANY (%s)", (list(run_ids),))
