"""Rows on their way to Postgres as one JSON text: quoted once, and cheaper to read than an array for each column.

JSON that is stored stands in it as it is, and so it is stored, to the letter.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from app.protocol.events import Event, dumps

NEW_EVENTS = "json_to_recordset(%s::json) AS new (run_id text, seq int, type text, op text, e json)"
"""In a statement, what `recordset` makes of `event_row`s."""
INSERT_NEW_EVENTS = """INSERT INTO run_events (run_id, seq, type, ts, op, e)
SELECT run_id, seq, type, (e ->> 'ts')::timestamptz, op, e::text"""


def recordset(rows: Iterable[str]) -> str:
    """Rows as the JSON that `json_to_recordset` takes."""
    return f"[{','.join(rows)}]"


def row(values: Mapping[str, Any], **texts: str) -> str:
    """One row.

    :param texts: columns whose values are JSON already.
    """
    members = [dumps(values)[1:-1], *(f'"{name}":{text}' for name, text in texts.items())]
    return f"{{{','.join(members)}}}"


def event_row(run_id: str, event: Event) -> str:
    """One row of NEW_EVENTS."""
    return row({"run_id": run_id, "seq": event.seq, "type": event.type, "op": event.op}, e=event.text)
