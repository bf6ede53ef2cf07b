"""How runs come into being: their rows and their first events, in one round trip."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from app.protocol.events import Event, dumps
from app.storage.run_store.as_json import INSERT_NEW_EVENTS, NEW_EVENTS, event_row, recordset, row
from app.storage.run_store.early_cancels import CANCELLED, FORGET, locking
from app.storage.run_store.records import RUN_COLUMNS, NewRun, RunRecord

_TEMPLATE = f"""
WITH new AS (
    SELECT * FROM json_to_recordset(%s::json) AS t (
        id text, tenant_id text, user_id text, session_id text, agent text, input json, metadata json,
        on_disconnect text, timeout_s int, idempotency_key text, request_hash text, client_run_id text, queue text,
        agent_version text, state json, state_seq int, registered_at timestamptz)
), run AS (
    INSERT INTO runs (id, tenant_id, user_id, session_id, agent, input, metadata, on_disconnect, timeout_s,
                      idempotency_key, request_hash, client_run_id, queue, agent_version, status, state, state_seq,
                      cancel_requested, cancel_reason)
    SELECT id, tenant_id, user_id, session_id, agent, input, metadata, on_disconnect, timeout_s,
           idempotency_key, request_hash, client_run_id, queue, agent_version, 'pending', state, state_seq,
           cancelled, CASE WHEN cancelled THEN 'requested' END
    FROM new CROSS JOIN LATERAL (SELECT {{cancelled}} AS cancelled) AS early
    WHERE registered_at IS NULL OR EXISTS (SELECT FROM agents WHERE name = agent AND updated_at = registered_at)
    ON CONFLICT DO NOTHING RETURNING {RUN_COLUMNS}
), archived AS (
    {INSERT_NEW_EVENTS} FROM {NEW_EVENTS}
    WHERE run_id IN (SELECT id FROM run)
){{forgotten}} SELECT * FROM run
"""
_CREATE = _TEMPLATE.format(cancelled="false", forgotten="")
_CREATE_NAMED = _TEMPLATE.format(
    cancelled=CANCELLED.format(run="new"),
    forgotten=f", forgotten AS ({FORGET.format(run='run')} AND run.cancel_requested)",
)


_PLAIN = (
    *("id", "session_id", "agent", "on_disconnect", "timeout_s", "idempotency_key", "request_hash", "client_run_id"),
    *("queue", "agent_version"),
)
"""Members of a NewRun that are stored as they are."""


class Creation(NamedTuple):
    """A run that is to be created with its first events, as rows."""

    new: NewRun
    run: str
    events: Sequence[str]

    @classmethod
    def of(cls, new: NewRun, events: Sequence[Event]) -> "Creation":
        """Serialised, once."""
        values = {name: getattr(new, name) for name in _PLAIN}
        who = new.principal
        values |= {"tenant_id": who.tenant_id, "user_id": who.user_id, "state_seq": new.state["last_seq"]}
        values["registered_at"] = new.registered_at and new.registered_at.isoformat()
        run = row(values, input=dumps(new.input), metadata=dumps(new.metadata), state=dumps(new.state))
        return cls(new, run, [event_row(new.id, event) for event in events])

    @property
    def chars(self) -> int:
        """How long it is."""
        return len(self.run) + sum(map(len, self.events))


def insert_runs(db: Any, creations: Sequence[Creation]) -> list[RunRecord | None]:
    """Pending runs, archived with their first events. A cancel that came before one is requested with it.

    One round trip, and of itself one transaction. A run with a name may wait for a lock on it: let it come alone.

    None: the principal has a run with its idempotency key, or its client's id; or its agent was registered anew.
    """
    locks, numbers = locking(creation.new for creation in creations)
    runs = recordset(creation.run for creation in creations)
    events = recordset(event for creation in creations for event in creation.events)
    sql = locks + _CREATE_NAMED if locks else _CREATE
    inserted = {row[0]: RunRecord(*row) for row in db.execute_sql(sql, (*numbers, runs, events)).fetchall()}
    return [inserted.get(creation.new.id) for creation in creations]
