"""What runs wait for: approvals, inputs and times. All that wakes a waiting run, but for its cancel.

Responsible for one order of locks, the run's row first and then its approvals or inputs, and for waking a run in the
transaction that holds what it waited for. Not responsible for who may do what (`app.verbs.commands`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from app.storage.run_store.database import Database, rows
from app.storage.run_store.journal import APPROVAL_COLUMNS
from app.storage.run_store.records import RUN_COLUMNS, InputRecord, Principal, RunRecord
from runtail.records import ApprovalRecord

INPUTS_MAX = 1_000
"""Of one run."""
PAGE_BYTES = 1_000_000
"""Of approvals: a writer from outside may give one a label of nearly as much."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WOKEN = "status = 'pending', requeue_reason = 'resumed', enqueued_at = now(), wake_at = NULL"

_LOCK = """
SELECT id, epoch, queue, status, owner, cancel_requested, finished_at, false FROM runs
WHERE id = %s AND tenant_id = %s AND user_id = coalesce(%s, user_id) FOR NO KEY UPDATE
"""
_WAKE = f"""
UPDATE runs SET {_WOKEN} WHERE id = %s AND status = 'waiting'
RETURNING id, epoch, queue, status, owner, cancel_requested, finished_at, true
"""
# By the clock as it is once the run's row is locked: what waited for the lock may have waited past the expiry.
_DECIDE = f"""
UPDATE approvals SET decision = CASE WHEN expires_at <= at THEN 'expired' ELSE %s END,
                     decided_by = CASE WHEN expires_at <= at THEN NULL ELSE %s END,
                     comment = CASE WHEN expires_at <= at THEN NULL ELSE %s END, decided_at = at
FROM (SELECT clock_timestamp() AS at) AS clock
WHERE run_id = %s AND id = %s AND decision IS NULL RETURNING {APPROVAL_COLUMNS}
"""
_ORDER = "created_at DESC, run_id DESC, id DESC"
_TEXTS = "octet_length(label) + coalesce(octet_length(tool_call_id), 0) + coalesce(octet_length(comment), 0)"
_PAGE = f"""
SELECT {APPROVAL_COLUMNS}, found FROM (
    SELECT *, sum({_TEXTS}) OVER newer AS bytes, row_number() OVER newer AS n, count(*) OVER () AS found
    FROM (SELECT {APPROVAL_COLUMNS} FROM approvals WHERE {{where}} ORDER BY {_ORDER} LIMIT %s) AS page
    WINDOW newer AS (ORDER BY {_ORDER})
) AS counted WHERE bytes <= %s OR n = 1 ORDER BY {_ORDER}
"""
# The CTEs are materialized so that LIMIT and the locks are taken once, whatever the planner makes of the rest.
_LOCK_EXPIRING = """
WITH due AS MATERIALIZED (
    SELECT r.id FROM approvals a JOIN runs r ON r.id = a.run_id
    WHERE a.decision IS NULL AND a.expires_at <= now() ORDER BY a.expires_at LIMIT %s
    FOR NO KEY UPDATE OF r SKIP LOCKED
) SELECT DISTINCT id FROM due
"""
_EXPIRE = """
UPDATE approvals SET decision = 'expired', decided_at = now()
WHERE run_id = ANY (%s) AND decision IS NULL AND expires_at <= now()
"""
_WAKE_MANY = f"UPDATE runs SET {_WOKEN} WHERE id = ANY (%s) AND status = 'waiting' RETURNING {RUN_COLUMNS}"
_WAKE_DUE = f"""
WITH due AS MATERIALIZED (
    SELECT id FROM runs WHERE status = 'waiting' AND wake_at <= now() ORDER BY wake_at LIMIT %s
    FOR NO KEY UPDATE SKIP LOCKED
) UPDATE runs SET {_WOKEN} WHERE id IN (SELECT id FROM due) RETURNING {RUN_COLUMNS}
"""


@dataclass(frozen=True, slots=True)
class ToldRun:
    """A run that was told something: little of its row, as it is after that."""

    id: str
    epoch: int
    queue: str
    status: str
    owner: str | None
    cancel_requested: bool
    finished_at: datetime | None
    woken: bool
    """It was waiting, and is pending now: to be enqueued."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What came of a decision. It counts only if the approval now says so: see `made`."""

    run: ToldRun
    approval: ApprovalRecord
    """As it is after that."""
    made: bool
    """This call has decided. False: it was decided or expired before, or the run takes no decisions any more."""


@dataclass(frozen=True, slots=True)
class SentInput:
    """What came of an input."""

    run: ToldRun
    input: InputRecord | None
    """The one that was stored, now or earlier under the same key. None: the run takes no more."""


class Waits:
    """Blunt verbs. Every method may raise StoreUnavailable; one call, one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Approvals.

    def find(self, principal: Principal, run_id: str, approval_id: str) -> ApprovalRecord | None:
        """One approval, if it is of the principal's tenant."""
        sql = f"SELECT {APPROVAL_COLUMNS} FROM approvals WHERE run_id = %s AND id = %s AND tenant_id = %s"
        return next(iter(self._approvals(sql, run_id, approval_id, principal.tenant_id)), None)

    def page(
        self, principal: Principal, status: str | None, run_id: str | None, cursor: str | None, limit: int
    ) -> tuple[list[ApprovalRecord], str | None]:
        """The approvals of the principal's own runs, for an admin of all runs of the tenant; newest first.

        Returns a page, of at most PAGE_BYTES of text but for its first one, and the cursor of the next one (None: this
        is the last).

        :param status: open, approved, denied or expired; None: any.
        :param run_id: only those of this run; None: of any.
        :param cursor: as the page before gave it.
        """
        clauses: list[str] = ["tenant_id = %s"]
        values: list[Any] = [principal.tenant_id]
        for column, value in (("user_id", None if principal.admin else principal.user_id), ("run_id", run_id)):
            if value is not None:
                clauses.append(f"{column} = %s")
                values.append(value)
        if status is not None:
            clauses.append("decision IS NULL" if status == "open" else "decision = %s")
            values += [] if status == "open" else [status]
        if cursor is not None:
            clauses.append("(created_at, run_id, id) < (%s, %s, %s)")
            values += _position(cursor)
        sql = _PAGE.format(where=" AND ".join(clauses))
        with self._database.session() as db:
            found = db.execute_sql(sql, (*values, limit + 1, PAGE_BYTES)).fetchall()
        page = [ApprovalRecord(*row) for *row, _ in found[:limit]]
        return page, _cursor(page[-1]) if found and found[0][-1] > len(page) else None

    def decide(
        self, principal: Principal, run_id: str, approval_id: str, decision: str, comment: str | None
    ) -> Decision | None:
        """Decide an open approval and wake its run; one whose time is over expires instead. None: there is none.

        :param principal: who decides, and is known to be allowed to.
        :param decision: approved or denied.
        """
        with self._database.session(atomic=True) as db:
            run = _lock(db, run_id, principal.tenant_id, None)
            if run is None:
                return None
            decided = None
            if run.finished_at is None and not run.cancel_requested:
                values = (decision, principal.user_id, comment, run_id, approval_id)
                decided = next(iter(_records(db, _DECIDE, values)), None)
            if decided is not None:
                return Decision(_woken(db, run), decided, decided.decision == decision)
            sql = f"SELECT {APPROVAL_COLUMNS} FROM approvals WHERE run_id = %s AND id = %s"
            found = _records(db, sql, (run_id, approval_id))
            return Decision(run, found[0], made=False) if found else None

    # Inputs.

    def add_input(self, principal: Principal, run_id: str, text: str, idempotency_key: str | None) -> SentInput | None:
        """Store the run's next input and wake the run. None: the principal has no such run.

        An input is refused by a run that has ended or is being cancelled, and beyond INPUTS_MAX; the same key again
        stores nothing.
        """
        with self._database.session(atomic=True) as db:
            run = _lock(db, run_id, principal.tenant_id, principal.user_id)
            if run is None:
                return None
            if earlier := _sent_before(db, run_id, idempotency_key):
                return SentInput(run, earlier)
            if run.finished_at is not None or run.cancel_requested:
                return SentInput(run, None)
            sql = """INSERT INTO run_inputs (run_id, n, text, idempotency_key)
                     SELECT %s, n, %s, %s FROM (
                         SELECT coalesce(max(n), 0) + 1 AS n FROM run_inputs WHERE run_id = %s
                     ) AS next WHERE n <= %s RETURNING run_id, n, text"""
            added = db.execute_sql(sql, (run_id, text, idempotency_key, run_id, INPUTS_MAX)).fetchone()
            return SentInput(_woken(db, run), InputRecord(*added)) if added else SentInput(run, None)

    def inputs(self, run_id: str, after: int, limit: int) -> list[InputRecord]:
        """The inputs of a run that follow its `after`-th, in order, at most `limit`."""
        sql = "SELECT run_id, n, text FROM run_inputs WHERE run_id = %s AND n > %s ORDER BY n LIMIT %s"
        with self._database.session() as db:
            return [InputRecord(*row) for row in db.execute_sql(sql, (run_id, after, limit)).fetchall()]

    # What the janitor does. Rows that somebody else has locked are left for the next time.

    def expire_due(self, limit: int) -> list[RunRecord]:
        """Expire approvals whose time is over, at most `limit` at once. Returns the runs that this has woken."""
        with self._database.session(atomic=True) as db:
            run_ids = [run_id for (run_id,) in db.execute_sql(_LOCK_EXPIRING, (limit,)).fetchall()]
            if not run_ids:
                return []
            db.execute_sql(_EXPIRE, (run_ids,))
            return [RunRecord(*row) for row in db.execute_sql(_WAKE_MANY, (run_ids,)).fetchall()]

    def wake_due(self, limit: int) -> list[RunRecord]:
        """Wake the runs whose `wake_at` has come, at most `limit`, and return them."""
        with self._database.session() as db:
            return [RunRecord(*row) for row in db.execute_sql(_WAKE_DUE, (limit,)).fetchall()]

    def wake(self, run_ids: Sequence[str]) -> list[RunRecord]:
        """Wake those of these runs that wait, and return them."""
        with self._database.session() as db:
            return [RunRecord(*row) for row in db.execute_sql(_WAKE_MANY, (list(run_ids),)).fetchall()]

    def _approvals(self, sql: str, *values: Any) -> list[ApprovalRecord]:
        with self._database.session() as db:
            return _records(db, sql, values)


def _cursor(approval: ApprovalRecord) -> str:
    """Where an approval stands among all; `_position` reads it."""
    return f"{(approval.created_at - _EPOCH) // timedelta(microseconds=1)}:{approval.run_id}:{approval.id}"


def _position(cursor: str) -> tuple[datetime, str, str]:
    microseconds, run_id, approval_id = cursor.split(":", 2)
    return _EPOCH + timedelta(microseconds=int(microseconds)), run_id, approval_id


def _records(db: Any, sql: str, values: Sequence[Any]) -> list[ApprovalRecord]:
    return [ApprovalRecord(**row) for row in rows(db.execute_sql(sql, values))]


def _lock(db: Any, run_id: str, tenant_id: str, user_id: str | None) -> ToldRun | None:
    """The run with its row locked, if it is that tenant's and that user's; None as the user: any user's."""
    row = db.execute_sql(_LOCK, (run_id, tenant_id, user_id)).fetchone()
    return ToldRun(*row) if row else None


def _woken(db: Any, run: ToldRun) -> ToldRun:
    """The run, which is locked, after it was woken if it was waiting."""
    if run.status != "waiting":
        return run
    return ToldRun(*db.execute_sql(_WAKE, (run.id,)).fetchone())


def _sent_before(db: Any, run_id: str, idempotency_key: str | None) -> InputRecord | None:
    if idempotency_key is None:
        return None
    sql = "SELECT run_id, n, text FROM run_inputs WHERE run_id = %s AND idempotency_key = %s"
    row = db.execute_sql(sql, (run_id, idempotency_key)).fetchone()
    return InputRecord(*row) if row else None
