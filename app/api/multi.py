"""`/events`: several runs in one window."""

from functools import partial
from typing import Any

from flask import Response, request

from app.api.context import Blueprint, principal, require_principal, runtail
from app.api.cursors import cursors_of
from app.api.negotiation import NDJSON_TYPE, SSE_TYPE, accepted_type, no_content
from app.api.schemas import SeveralEventsQuerySchema
from app.api.windows import Open, open_iterated, reject_unavailable
from app.errors import InvalidCursor, InvalidRequest, StoreUnavailable, TooManyRuns
from app.storage.run_store import RunPosition
from app.streaming.admission import Ticket
from app.streaming.opening import Opening
from app.streaming.wire import NDJSON, SSE, SSE_UNNAMED, Format

RUNS_MAX = 20
"""Of one window: its cursor, which names them all, has to fit into a header."""

blueprint = Blueprint("multi", __name__, description="Several runs in one window")
blueprint.before_request(require_principal)
blueprint.register_error_handler(StoreUnavailable, reject_unavailable)


@blueprint.route("/events")
@blueprint.arguments(SeveralEventsQuerySchema(), location="query")
@blueprint.response(200, content_type=SSE_TYPE)
@blueprint.alt_response(204, description="All have ended, and the cursor is their last events: do not come back.")
def events(query: dict[str, Any]) -> Response:
    """Follow up to 20 runs in one window, as server-sent events or NDJSON. All have to be the caller's."""
    run_ids = _run_ids(query["runs"])
    runs = runtail().runs.positions(principal(), run_ids)
    cursors = cursors_of(request.headers.get("Last-Event-ID"), query, run_ids)
    _check_ends(runs, cursors)
    parts = query["snapshot"] == "parts"
    if accepted_type(SSE_TYPE, NDJSON_TYPE) == NDJSON_TYPE:
        return _open(runs, cursors, NDJSON, parts)
    if all(run.terminal and cursors[run.id] == run.state_seq for run in runs):
        return no_content({"Vary": "Accept"})  # after that an EventSource stays away
    return _open(runs, cursors, SSE if query["named"] == "1" else SSE_UNNAMED, parts)


def _run_ids(text: str) -> list[str]:
    """The distinct ids, in order."""
    run_ids = list(dict.fromkeys(text.split(",")))
    if "" in run_ids:
        raise InvalidRequest("`runs` are ids of runs with commas between them, at least one, none of them empty.")
    if len(run_ids) > RUNS_MAX:
        raise TooManyRuns(f"A window shows at most {RUNS_MAX} runs, not {len(run_ids)}.")
    return run_ids


def _check_ends(runs: list[RunPosition], cursors: dict[str, int | None]) -> None:
    for run in runs:
        if run.terminal and (cursors[run.id] or 0) > run.state_seq:
            raise InvalidCursor(f"{run.id} ended at seq {run.state_seq}.")


def _open(runs: list[RunPosition], cursors: dict[str, int | None], format: Format, parts: bool) -> Response:
    def opener(ticket: Ticket) -> Open:
        openings = [Opening(run, cursors[run.id], format, ticket, parts=parts) for run in runs]
        return partial(runtail().windows.iterate_several, openings)

    return open_iterated(format, [run.id for run in runs], opener)
