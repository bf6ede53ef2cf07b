"""What a run's rows have lost and its log still tells: after Postgres came back without its last transactions.

Whoever archives such events calls this, because the rows may be lost and the events not: where nothing is lost, it
changes nothing.

The log wins: what it tells was seen, and cannot be unsaid. Results of calls are not in it (only previews of them are);
such a call is made again. Not responsible for the log itself.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from app.protocol.events import Event
from app.storage.run_store.journal import insert_approval
from runtail.records import NewApproval

_TELLING = ("input.received", "approval.required", "approval.resolved")
_INPUT = "INSERT INTO run_inputs (run_id, n, text) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
_DECISION = """
UPDATE approvals SET decision = %s, decided_by = %s, comment = %s, decided_at = coalesce(decided_at, now()), told = true
WHERE run_id = %s AND id = %s AND decision IS DISTINCT FROM %s
"""
_WRITER = """
UPDATE writers SET head = greatest(head, %s), inputs_told = greatest(inputs_told, %s),
                   producer_seq = greatest(producer_seq, %s)
WHERE run_id = %s AND epoch = (SELECT epoch FROM runs WHERE id = run_id)
"""


def tells_of_rows(events: Sequence[Event]) -> bool:
    """Whether `restore_rows` has something to do."""
    return any(event.type in _TELLING for event in events)


def restore_rows(db: Any, run_id: str, events: Sequence[Event]) -> None:
    """Within a transaction that has locked the run: write down again what the events tell of."""
    for event in events:
        if event.type in _TELLING:
            payload = event.envelope()["payload"]
            if event.type == "input.received":
                db.execute_sql(_INPUT, (run_id, _number(payload), payload["text"]))
            elif event.type == "approval.required":
                insert_approval(db, run_id, _asked(payload))
            else:
                decided = (payload["decision"], payload.get("by"), payload.get("comment"))
                db.execute_sql(_DECISION, (*decided, run_id, payload["approval_id"], payload["decision"]))


def restore_writer(db: Any, run_id: str, events: Sequence[Event], batch: int) -> None:
    """Likewise, how far an external run's writer has come.

    :param batch: see `RunStore.take_in`.
    """
    told = [_number(event.envelope()["payload"]) for event in events if event.type == "input.received"]
    db.execute_sql(_WRITER, (events[-1].seq, max(told, default=0), batch, run_id))


def _number(payload: dict[str, Any]) -> int:
    return int(payload["input_id"].removeprefix("inp_"))


def _asked(payload: dict[str, Any]) -> NewApproval:
    expires_at = payload.get("expires_at")
    return NewApproval(
        payload["approval_id"],
        payload["label"],
        payload["requires"],
        payload.get("tool_call_id"),
        datetime.fromisoformat(expires_at) if expires_at else None,
    )
