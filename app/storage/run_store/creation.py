"""How a run comes into being: its row and its first events, in one round trip."""

from collections.abc import Sequence
from typing import Any

from app.protocol.events import Event, dumps
from app.storage.run_store.early import CANCELLED, FORGET, locking, named
from app.storage.run_store.records import RUN_COLUMNS, NewRun, RunRecord

_CREATE = f"""
WITH run AS (
    INSERT INTO runs (id, tenant_id, user_id, session_id, agent, input, metadata, on_disconnect, timeout_s,
                      idempotency_key, request_hash, client_run_id, queue, agent_version, status, state, state_seq,
                      cancel_requested, cancel_reason)
    SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 'pending', %s, %s,
           cancelled, CASE WHEN cancelled THEN 'requested' END
    FROM (SELECT {{cancelled}} AS cancelled) AS early WHERE {{registered}}
    ON CONFLICT DO NOTHING RETURNING {RUN_COLUMNS}
), archived AS (
    INSERT INTO run_events (run_id, seq, type, ts, op, e)
    SELECT id, seq, event.type, (e::json ->> 'ts')::timestamptz, op, e
    FROM run, unnest(%s::int[], %s::text[], %s::text[], %s::text[]) AS event (seq, type, op, e)
){{forgotten}} SELECT * FROM run
"""
_ANONYMOUS = {"cancelled": "false", "forgotten": ""}
_NAMED = {
    "cancelled": CANCELLED,
    "forgotten": f", forgotten AS ({FORGET} AND EXISTS (SELECT FROM run WHERE cancel_requested))",
}
_REGISTERED = "EXISTS (SELECT FROM agents WHERE name = %s AND updated_at = %s)"


def insert_run(db: Any, new: NewRun, events: Sequence[Event]) -> RunRecord | None:
    """A pending run, archived with its first events. A cancel that came before it is requested with it.

    One round trip, and of itself one transaction.

    None: the principal has a run with its idempotency key, or its client's id; or its agent was registered anew.
    """
    locks, numbers = locking(new)
    early, names = (_NAMED, named(new)) if numbers else (_ANONYMOUS, ())
    seen = () if new.registered_at is None else (new.agent, new.registered_at)
    who = new.principal
    row = (
        *(new.id, who.tenant_id, who.user_id, new.session_id, new.agent, dumps(new.input), dumps(new.metadata)),
        *(new.on_disconnect, new.timeout_s, new.idempotency_key, new.request_hash, new.client_run_id),
        *(new.queue, new.agent_version, dumps(new.state), new.state["last_seq"]),
    )
    archived = [list(column) for column in zip(*((e.seq, e.type, e.op, e.text) for e in events), strict=True)]
    sql = locks + _CREATE.format(registered=_REGISTERED if seen else "true", **early)
    inserted = db.execute_sql(sql, (*numbers, *row, *names, *seen, *archived, *names)).fetchone()
    return RunRecord(*inserted) if inserted else None
