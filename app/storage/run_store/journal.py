"""The journal of a run in Postgres: what its calls came to, and what is known of the calls that its log holds."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from app.protocol.events import dumps
from app.storage.run_store.database import Database, columns, rows
from app.storage.run_store.records import Checkpoint
from runtail.records import ApprovalRecord, NewApproval, OpRecord, Recorded

_INSERT_OPS = """
INSERT INTO run_ops (run_id, op, epoch, kind, name, arguments, fingerprint, failed, result)
SELECT run_id, op, epoch, kind, name, arguments::json, fingerprint, failed, result::json
FROM unnest(%s::text[], %s::text[], %s::int[], %s::text[], %s::text[], %s::text[], %s::text[], %s::bool[], %s::text[])
    AS t (run_id, op, epoch, kind, name, arguments, fingerprint, failed, result)
ON CONFLICT DO NOTHING
"""  # As with events, a conflict is a commit that was repeated because its outcome was unknown.
_INSERT_APPROVAL = """
INSERT INTO approvals (run_id, id, tenant_id, user_id, agent, tool_call_id, label, requires, expires_at)
SELECT id, %s, tenant_id, user_id, agent, %s, %s, %s, %s FROM runs WHERE id = %s
ON CONFLICT DO NOTHING
"""
APPROVAL_COLUMNS = ", ".join(field.name for field in fields(ApprovalRecord))
"""Named, as those of a run are."""
_NOW = "SELECT now(), (SELECT coalesce(max(seq), 0) FROM run_events WHERE run_id = %s)"
_APPROVALS = f"SELECT {APPROVAL_COLUMNS} FROM approvals WHERE run_id = %s ORDER BY created_at"


class JournalStore:
    """Reads the journal; it is written by `RunStore`, together with the events that tell of it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def recorded(self, run_id: str) -> Recorded:
        """What a run's next invocation has to know; its log must be archived.

        :raises StoreUnavailable: Postgres cannot be reached.
        """
        ops = """SELECT op, kind, name, arguments, fingerprint, failed, result FROM run_ops WHERE run_id = %s"""
        events = "SELECT op, type, count(*) FROM run_events WHERE run_id = %s AND op <> '' GROUP BY op, type"
        with self._database.session() as db:
            return Recorded(
                [OpRecord(**row) for row in rows(db.execute_sql(ops, (run_id,)))],
                [ApprovalRecord(*row) for row in db.execute_sql(_APPROVALS, (run_id,)).fetchall()],
                {(op, type): count for op, type, count in db.execute_sql(events, (run_id,)).fetchall()},
                *db.execute_sql(_NOW, (run_id,)).fetchone(),
            )


def insert_journal(db: Any, checkpoints: Sequence[Checkpoint]) -> None:
    """Within a transaction that has locked the runs: write down their checkpoints' ops and approvals."""
    recorded = [
        (c.run_id, o.op, c.epoch, o.kind, o.name, dumps(o.arguments), o.fingerprint, o.failed, dumps(o.result))
        for c in checkpoints
        for o in c.ops
    ]
    if recorded:
        db.execute_sql(_INSERT_OPS, columns(recorded))
    for checkpoint in checkpoints:
        for new in checkpoint.approvals:
            insert_approval(db, checkpoint.run_id, new)


def insert_approval(db: Any, run_id: str, new: NewApproval) -> None:
    """Within a transaction that has locked the run: write down what it asks for."""
    values = (new.id, new.tool_call_id, new.label, new.requires, new.expires_at, run_id)
    db.execute_sql(_INSERT_APPROVAL, values)
