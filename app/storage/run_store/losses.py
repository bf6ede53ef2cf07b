"""What a lost worker costs its runs: who is charged with it, and who runs in a process of its own from then on.

Charged is a run that is known to have ended its worker. Where nobody is known nobody is charged; a run that has lost
its worker ALONE_AFTER times in a row is executed alone, so that the next loss would be its own.
"""

from typing import Any

from app.storage.run_store.records import ALONE_AFTER, RUN_COLUMNS, OwnerBeat, RunRecord

ISOLATED_SECONDS = 10
"""A worker for isolated runs whose last heartbeat is not older than that is there."""

_OWNER_BEATS = """
SELECT DISTINCT r.owner, w.beats, w.losses FROM runs r LEFT JOIN workers w ON w.id = r.owner
WHERE r.status = 'running' AND r.owner IS NOT NULL
"""
_CONDEMN = """
UPDATE workers SET losses = losses + 1 WHERE id = (
    SELECT id FROM workers WHERE id = %s AND beats = %s AND losses = %s FOR NO KEY UPDATE SKIP LOCKED
) RETURNING isolated, culprit
"""  # Whoever holds the row's lock is most likely the next heartbeat.
_HAS_ROW = "SELECT FROM workers WHERE id = %s"
_LOCK_RUNS = """
SELECT id FROM runs WHERE owner = %s AND status = 'running' AND epoch = coalesce(%s, epoch) AND id = coalesce(%s, id)
ORDER BY id FOR NO KEY UPDATE
"""  # A statement of its own: what is counted must be read under the lock.
_ISOLATED_THERE = f"""
EXISTS (SELECT FROM workers WHERE isolated AND seen_at > now() - interval '{ISOLATED_SECONDS} seconds')
"""
_RECORDED = "EXISTS (SELECT FROM run_ops o WHERE o.run_id = runs.id AND o.epoch > crashed_epoch)"
_RELEASE = f"""
WITH counted AS (
    SELECT id, CASE WHEN {_RECORDED} THEN 1 ELSE attempt END AS attempt,
           CASE WHEN {_RECORDED} THEN 0 ELSE losses END AS losses
    FROM runs WHERE id = ANY (%(ids)s)
), judged AS (
    SELECT *, coalesce(id = %(culprit)s, false) OR (%(isolated)s AND losses >= {ALONE_AFTER}) AS charged FROM counted
)
UPDATE runs SET status = 'pending', owner = NULL, requeue_reason = 'worker_lost', enqueued_at = now(),
    crashed_epoch = runs.epoch, attempt = judged.attempt + judged.charged::integer,
    losses = CASE WHEN NOT charged THEN judged.losses + 1
                  WHEN {_ISOLATED_THERE} THEN greatest(judged.losses, {ALONE_AFTER}) ELSE judged.losses END
FROM judged WHERE runs.id = judged.id RETURNING {RUN_COLUMNS}
"""
STILL_LOST = f"CASE WHEN {_RECORDED} THEN 0 ELSE losses END"
"""`losses` of a run that its owner gives back."""
_UNSERVED = f"SELECT NOT {_ISOLATED_THERE} AND EXISTS (SELECT FROM runs WHERE status = 'pending' AND queue = %s)"


def owner_beats(db: Any) -> list[OwnerBeat]:
    """The owners of running runs, each with what its row tells. A run that is written from outside has none."""
    return [OwnerBeat(*row) for row in db.execute_sql(_OWNER_BEATS).fetchall()]


def release_lost(db: Any, seen: OwnerBeat) -> list[RunRecord]:
    """Within a transaction: put back the runs of an owner whose row is still as it was `seen`; else nothing.

    Its row changes, so that nobody else who saw it calls it lost once more.
    """
    if seen.beats is None:
        if db.execute_sql(_HAS_ROW, (seen.owner,)).fetchone() is not None:
            return []
        return _release(db, seen.owner, isolated=False, culprit=None)
    condemned = db.execute_sql(_CONDEMN, (seen.owner, seen.beats, seen.losses)).fetchone()
    if condemned is None:
        return []
    isolated, culprit = condemned
    return _release(db, seen.owner, isolated=isolated, culprit=culprit)


def release_culprit(db: Any, owner: str, run_id: str, epoch: int) -> list[RunRecord]:
    """Within a transaction: put back one run of an owner that lives, and charge it with the end of its process."""
    return _release(db, owner, isolated=True, culprit=run_id, only=(epoch, run_id))


def unserved(db: Any, queue: str) -> bool:
    """Whether runs wait in the queue of isolated ones while no worker for them is there."""
    return bool(db.execute_sql(_UNSERVED, (queue,)).fetchone()[0])


def _release(
    db: Any, owner: str, *, isolated: bool, culprit: str | None, only: tuple[int | None, str | None] = (None, None)
) -> list[RunRecord]:
    ids = [run_id for (run_id,) in db.execute_sql(_LOCK_RUNS, (owner, *only)).fetchall()]
    values = {"ids": ids, "culprit": culprit, "isolated": isolated}
    return [RunRecord(*row) for row in db.execute_sql(_RELEASE, values).fetchall()]
