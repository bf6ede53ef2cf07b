"""`/runs`: start, list, read, follow, cancel, erase."""

import time
from typing import Any

from flask import Response, json, request, url_for
from flask.views import MethodView

from app.api.answers import alone, answer, with_state
from app.api.context import Blueprint, principal, require_principal, runtail
from app.api.cursors import FROM_SNAPSHOT, cursor_within
from app.api.negotiation import JSON_TYPE, NDJSON_TYPE, SSE_TYPE, accepted_type, names, no_content, preferred_wait
from app.api.problems import problem
from app.api.schemas import (
    CancelNamedSchema,
    EventsQuerySchema,
    ListQuerySchema,
    NotedSchema,
    RunPageSchema,
    RunSchema,
    RunWithStateSchema,
    StartedSchema,
    StartHeadersSchema,
    StartRunSchema,
)
from app.api.windows import open_window, reject
from app.errors import EventsLost, InvalidCursor, InvalidRequest, NotTerminal, StoreUnavailable
from app.protocol.events import TERMINAL, Event
from app.storage.run_store import EXTERNAL, ListedRun, RunPosition, RunRecord
from app.streaming.wire import NDJSON, SSE, SSE_UNNAMED
from app.verbs.runs import StartRequest

VARY = {"Vary": "Accept"}
HEAVY = ("input", "output", "error", "usage", "metadata")
LISTED = RunSchema(exclude=HEAVY)
EVENT_TYPES = (SSE_TYPE, NDJSON_TYPE, JSON_TYPE)

blueprint = Blueprint("runs", __name__, description="Runs and their events")
blueprint.before_request(require_principal)


@blueprint.route("/runs")
class RunsView(MethodView):
    """The caller's runs."""

    @blueprint.arguments(StartRunSchema())
    @blueprint.arguments(StartHeadersSchema(), location="headers")
    @blueprint.response(202, StartedSchema)
    @blueprint.alt_response(200, schema=RunWithStateSchema, description="`Prefer: wait=N`, and the run has ended.")
    def post(self, body: dict[str, Any], headers: dict[str, Any]) -> Response | tuple[Any, dict[str, str]]:
        """Start a run. It is committed when this answers; a worker picks it up from there.

        By `Accept` the answer is JSON, or the run's window as server-sent events or NDJSON. With `Prefer: wait=N`
        JSON waits up to N seconds, at most 25, for the run to end.
        """
        posted_at = time.monotonic()
        start = StartRequest(**body, **headers)
        if start.agent == EXTERNAL:
            return _start_external(start)
        media_type = accepted_type(JSON_TYPE, SSE_TYPE, NDJSON_TYPE)
        run = runtail().runs.start(principal(), start)
        about = _about(run)
        if media_type != JSON_TYPE:
            return open_window(run, 0, NDJSON if media_type == NDJSON_TYPE else SSE, about, posted_at)
        if seconds := preferred_wait():
            about["Preference-Applied"] = f"wait={seconds}"
            run = runtail().runs.await_end(run, seconds)
            if run.terminal:
                return answer(with_state(run), headers=about)
        return _started(run), about

    @blueprint.arguments(ListQuerySchema(), location="query")
    @blueprint.response(200, RunPageSchema)
    def get(self, query: dict[str, Any]) -> Response:
        """The caller's runs, newest first. A page ends early where its runs are large."""
        before, limit = query.pop("cursor"), query.pop("limit")
        runs, next_cursor = runtail().runs.page(principal(), query, before, limit)
        listed = ", ".join(map(_listed, runs))
        return Response(f'{{"runs": [{listed}], "next_cursor": {json.dumps(next_cursor)}}}\n', mimetype=JSON_TYPE)


@blueprint.route("/runs/<no_verb:run_id>")
class RunView(MethodView):
    """One run."""

    @blueprint.response(200, RunWithStateSchema)
    def get(self, run_id: str) -> Response:
        """One run: its row, and the state that its events up to now fold to."""
        response = answer(with_state(runtail().runs.find(principal(), run_id)), tagged=True)
        response.make_conditional(request)
        return response

    @blueprint.response(200, RunSchema)
    @blueprint.alt_response(202, schema=RunSchema, description="The run has not ended yet, but will.")
    def delete(self, run_id: str) -> Response:
        """The same as POST /runs/{run_id}/cancel."""
        return _cancel(run_id)


@blueprint.route("/runs/cancel", methods=["POST"])
@blueprint.arguments(CancelNamedSchema())
@blueprint.response(200, RunSchema)
@blueprint.alt_response(
    202,
    schema={"anyOf": [NotedSchema, RunSchema]},
    content_type=JSON_TYPE,
    description="There is no such run yet; it will be cancelled. Or there is one that has not ended yet, but will.",
)
def cancel_named(body: dict[str, str]) -> Response:
    """Cancel a run by the name that its client gave it, before or after it was started.

    Where there is such a run, the answer is that of POST /runs/{run_id}/cancel. Otherwise the cancel is remembered
    for 24 hours: a run that is started under that name ends at once.
    """
    ((kind, key),) = body.items()
    run = runtail().runs.cancel_named(principal(), kind, key)
    if run is None:
        return Response(json.dumps(NotedSchema().dump({})) + "\n", 202, mimetype=JSON_TYPE)
    return answer(alone(run), 200 if run.terminal else 202)


@blueprint.route("/runs/<run_id>/cancel", methods=["POST"])
@blueprint.response(200, RunSchema)
@blueprint.alt_response(202, schema=RunSchema, description="The run has not ended yet, but will.")
def cancel(run_id: str) -> Response:
    """Cancel a run. 200: it has ended, now or before; 202: the request is committed, the end is on its way."""
    return _cancel(run_id)


@blueprint.route("/runs/<run_id>/erase", methods=["POST"])
@blueprint.response(204)
def erase(run_id: str) -> None:
    """Remove every trace of a run that has ended."""
    runtail().runs.erase(principal(), run_id)


@blueprint.route("/runs/<run_id>/events")
@blueprint.arguments(EventsQuerySchema(), location="query")
@blueprint.response(200, content_type=SSE_TYPE)
@blueprint.alt_response(204, description="The run has ended, and the cursor is its last event: do not come back.")
def events(query: dict[str, Any], run_id: str) -> Response:
    """Follow a run from a cursor, by `Accept`: server-sent events, NDJSON, or a JSON page."""
    run = runtail().runs.position(principal(), run_id)
    cursor = cursor_within(run, request.headers.get("Last-Event-ID"), query)
    media_type, speed, parts = accepted_type(*EVENT_TYPES), query["speed"], query["snapshot"] == "parts"
    if speed is not None:
        _check_playback(run, cursor, media_type)
    if media_type == JSON_TYPE:
        return _page(run, cursor, query["limit"])
    if media_type == NDJSON_TYPE:
        return open_window(run, cursor, NDJSON, speed=speed, parts=parts)
    if run.terminal and cursor == run.state_seq:
        return no_content(VARY)  # the one answer after which an EventSource stays away
    return open_window(run, cursor, SSE if query["named"] == "1" else SSE_UNNAMED, speed=speed, parts=parts)


@blueprint.errorhandler(StoreUnavailable)
def unavailable(error: StoreUnavailable) -> Response:
    """503; but who names server-sent events, as an EventSource does, would never come back after that."""
    named = names(SSE_TYPE)
    if request.endpoint != "runs.events" or not named or accepted_type(*EVENT_TYPES) != SSE_TYPE:
        return problem(error)
    assert request.view_args is not None
    return reject(error, SSE, request.view_args["run_id"])


def _check_playback(run: RunPosition, cursor: int | None, media_type: str) -> None:
    """Only what has ended, from an event on, as a stream.

    :raises InvalidRequest, NotTerminal, InvalidCursor: it cannot be played back like that.
    """
    if media_type == JSON_TYPE:
        raise InvalidRequest("speed: a JSON page has no timing; ask for server-sent events or NDJSON.")
    if not run.terminal:
        raise NotTerminal("Only a run that has ended can be played back; without `speed` it is followed as it goes.")
    if cursor is FROM_SNAPSHOT:
        raise InvalidCursor("A playback begins after an event; `latest` is none.")


def _listed(run: ListedRun) -> str:
    """JSON of a run in a list: what is large is not parsed to be shown."""
    heavy = ", ".join(f'"{name}": {getattr(run, name) or "null"}' for name in HEAVY)
    return f"{json.dumps(LISTED.dump(run))[:-1]}, {heavy}}}"


def _page(run: RunPosition, cursor: int | None, limit: int) -> Response:
    """A page of events, each byte for byte as it is stored."""
    history = runtail().services.history
    head = run.state_seq if run.terminal else history.head(run.id)
    since = head if cursor is FROM_SNAPSHOT else cursor
    found: list[Event] = history.after(run.id, since, limit, known_head=head)
    if found and found[0].seq != since + 1:
        lost = (
            f"Events {since + 1} to {found[0].seq - 1} are lost; those after them are at since_seq={found[0].seq - 1}."
        )
        raise EventsLost(lost)
    last = found[-1] if found else None
    about = {
        "next_since_seq": last.seq if last else since,
        "head": max(head, last.seq) if last else head,
        "terminal": run.terminal or bool(last and last.type in TERMINAL),
    }
    rest = json.dumps(about)
    text = f'{{"events": [{", ".join(event.text for event in found)}], {rest[1:]}\n'
    return Response(text, mimetype=JSON_TYPE, headers=VARY)


def _start_external(start: StartRequest) -> tuple[dict[str, Any], dict[str, str]]:
    """The run, and the tokens of who is to write it, which nobody will see again."""
    accepted_type(JSON_TYPE)
    started = runtail().external.start(principal(), start)
    writer = {
        "writer_token": started.tokens and started.tokens.writer,
        "watch_token": started.tokens and started.tokens.watch,
        "epoch": started.run.epoch if started.tokens and started.tokens.writer else None,
        "lease_seconds": started.lease_seconds,
    }
    return {**_started(started.run), **writer}, _about(started.run)


def _started(run: RunRecord) -> dict[str, Any]:
    url = _url(run)
    urls = {"self": url, "events": f"{url}/events", "cancel": f"{url}/cancel"}
    return {"run_id": run.id, "status": run.status, "session_id": run.session_id, "urls": urls}


def _about(run: RunRecord) -> dict[str, str]:
    return {"Location": _url(run), "X-Run-Id": run.id, "X-Session-Id": run.session_id, **VARY}


def _cancel(run_id: str) -> Response:
    run = runtail().runs.cancel(principal(), run_id)
    return answer(alone(run), 200 if run.terminal else 202)


def _url(run: RunRecord) -> str:
    return url_for("runs.RunView", run_id=run.id)
