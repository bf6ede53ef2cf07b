"""A client's cursor, from wherever it was given."""

from collections.abc import Mapping
from typing import Final

from app.errors import InvalidCursor
from app.storage.run_store import RunPosition

FROM_SNAPSHOT: Final = None
"""The cursor `latest`: begin with a snapshot at the head."""
DIGITS_MAX = 15


def cursor_of(last_event_id: str | None, query: Mapping[str, str]) -> int | None:
    """The `Last-Event-ID` header, else `last_event_id`, else `since_seq`; 0, the start, where none is given.

    :raises InvalidCursor: not a number, or negative.
    """
    text = last_event_id or query.get("last_event_id") or query.get("since_seq") or "0"
    if text == "latest":
        return FROM_SNAPSHOT
    if not (text.isascii() and text.isdigit() and len(text) <= DIGITS_MAX):
        raise InvalidCursor(f"A cursor is the seq of an event, or `latest`; not {text[:40]!r}.")
    return int(text)


def cursor_within(run: RunPosition, last_event_id: str | None, query: Mapping[str, str]) -> int | None:
    """As `cursor_of`, for a run.

    :raises InvalidCursor: it lies beyond the end of the run, too.
    """
    cursor = cursor_of(last_event_id, query)
    if run.terminal and cursor is not FROM_SNAPSHOT and cursor > run.state_seq:
        raise InvalidCursor(f"The run ended at seq {run.state_seq}.")
    return cursor
