"""A client's cursor, from wherever it was given: of one run, or of several."""

from collections.abc import Mapping, Sequence
from typing import Final

from app.errors import InvalidCursor
from app.storage.run_store import RunPosition

FROM_SNAPSHOT: Final = None
"""The cursor `latest`: begin with a snapshot at the head."""
DIGITS_MAX = 15
CURSOR: Final = rf"^([0-9]{{1,{DIGITS_MAX}}}|latest)?(?!\n)$"
CURSORS: Final = rf"^(latest|[^,]+:[0-9]{{1,{DIGITS_MAX}}}(,[^,]+:[0-9]{{1,{DIGITS_MAX}}})*)?(?!\n)$"
"""For the OpenAPI document. Only the cursor that counts is checked, and an empty one is none."""


def cursor_of(last_event_id: str | None, query: Mapping[str, str]) -> int | None:
    """The `Last-Event-ID` header, else `last_event_id`, else `since_seq`; 0, the start, where none is given.

    :raises InvalidCursor: not a number, or negative.
    """
    text = last_event_id or _again(query) or query.get("since_seq") or "0"
    if text == "latest":
        return FROM_SNAPSHOT
    return _seq(text)


def cursors_of(last_event_id: str | None, query: Mapping[str, str], run_ids: Sequence[str]) -> dict[str, int | None]:
    """The cursor of each run, by a list `run:seq,run:seq`: the `Last-Event-ID` header, else `last_event_id`, else
    `since`. A run that is not named begins at 0.

    :raises InvalidCursor: another run is named, or one twice; or a seq is none.
    """
    text = last_event_id or _again(query) or query.get("since") or ""
    if text == "latest":
        return dict.fromkeys(run_ids, FROM_SNAPSHOT)
    cursors: dict[str, int | None] = {}
    for place in text.split(",") if text else ():
        run_id, _, seq = place.rpartition(":")
        if run_id not in run_ids or run_id in cursors:
            raise InvalidCursor(f"A cursor names each of the runs at most once, and no other; not as {place[:60]!r}.")
        cursors[run_id] = _seq(seq)
    return {run_id: cursors.get(run_id, 0) for run_id in run_ids}


def _again(query: Mapping[str, str]) -> str | None:
    """EventSource polyfills cannot send the header: they come back with a parameter of either name."""
    return query.get("last_event_id") or query.get("lastEventId")


def _seq(text: str) -> int:
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
