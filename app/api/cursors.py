"""A client's cursor, from wherever it was given."""

from collections.abc import Mapping
from typing import Final

from app.errors import InvalidCursor

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
