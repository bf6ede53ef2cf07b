"""How runs come into being: their rows and their first events, in one round trip."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from app.protocol.events import Event, dumps
from app.storage.run_store.database import columns
from app.storage.run_store.early import CANCELLED, FORGET, locking
from app.storage.run_store.records import RUN_COLUMNS, NewRun, RunRecord

_TEMPLATE = f"""
WITH new AS (
    SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
                         %s::text[], %s::int[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
                         %s::text[], %s::int[], %s::timestamptz[])
    AS t (id, tenant_id, user_id, session_id, agent, input, metadata, on_disconnect, timeout_s, idempotency_key,
          request_hash, client_run_id, queue, agent_version, state, state_seq, registered_at)
), run AS (
    INSERT INTO runs (id, tenant_id, user_id, session_id, agent, input, metadata, on_disconnect, timeout_s,
                      idempotency_key, request_hash, client_run_id, queue, agent_version, status, state, state_seq,
                      cancel_requested, cancel_reason)
    SELECT id, tenant_id, user_id, session_id, agent, input::json, metadata::json, on_disconnect, timeout_s,
           idempotency_key, request_hash, client_run_id, queue, agent_version, 'pending', state::json, state_seq,
           cancelled, CASE WHEN cancelled THEN 'requested' END
    FROM new CROSS JOIN LATERAL (SELECT {{cancelled}} AS cancelled) AS early
    WHERE registered_at IS NULL OR EXISTS (SELECT FROM agents WHERE name = agent AND updated_at = registered_at)
    ON CONFLICT DO NOTHING RETURNING {RUN_COLUMNS}
), archived AS (
    INSERT INTO run_events (run_id, seq, type, ts, op, e)
    SELECT run_id, seq, type, (e::json ->> 'ts')::timestamptz, op, e
    FROM unnest(%s::text[], %s::int[], %s::text[], %s::text[], %s::text[]) AS first (run_id, seq, type, op, e)
    WHERE run_id IN (SELECT id FROM run)
){{forgotten}} SELECT * FROM run
"""
_CREATE = _TEMPLATE.format(cancelled="false", forgotten="")
_CREATE_NAMED = _TEMPLATE.format(
    cancelled=CANCELLED.format(run="new"),
    forgotten=f", forgotten AS ({FORGET.format(run='run')} AND run.cancel_requested)",
)


class Creation(NamedTuple):
    """A run that is to be created with its first events, as rows."""

    new: NewRun
    run: tuple[str | int | datetime | None, ...]
    events: Sequence[tuple[str, int, str, str, str]]

    @classmethod
    def of(cls, new: NewRun, events: Sequence[Event]) -> "Creation":
        """Serialised, once."""
        who = new.principal
        run = (
            *(new.id, who.tenant_id, who.user_id, new.session_id, new.agent, dumps(new.input), dumps(new.metadata)),
            *(new.on_disconnect, new.timeout_s, new.idempotency_key, new.request_hash, new.client_run_id),
            *(new.queue, new.agent_version, dumps(new.state), new.state["last_seq"], new.registered_at),
        )
        return cls(new, run, [(new.id, e.seq, e.type, e.op, e.text) for e in events])

    @property
    def chars(self) -> int:
        """How long it is, about."""
        texts = [*self.run, *(event[-1] for event in self.events)]
        return sum(len(text) for text in texts if isinstance(text, str))


def insert_runs(db: Any, creations: Sequence[Creation]) -> list[RunRecord | None]:
    """Pending runs, archived with their first events. A cancel that came before one is requested with it.

    One round trip, and of itself one transaction. A run with a name may wait for a lock on it: let it come alone.

    None: the principal has a run with its idempotency key, or its client's id; or its agent was registered anew.
    """
    locks, numbers = locking(creation.new for creation in creations)
    runs = columns(creation.run for creation in creations)
    events = columns(event for creation in creations for event in creation.events)
    sql = locks + _CREATE_NAMED if locks else _CREATE
    inserted = {row[0]: RunRecord(*row) for row in db.execute_sql(sql, (*numbers, *runs, *events)).fetchall()}
    return [inserted.get(creation.new.id) for creation in creations]
