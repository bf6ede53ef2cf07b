"""`/runs/{run_id}/events`, `/heartbeat`, `/finish` as the writer of an external run calls them.

Its calls carry a token of the run, no API key. The path is short, because it is taken for each batch of events: plain
views, no schemas.
"""

from collections.abc import Iterable
from typing import Any

from flask import Response, request

from app.api.answers import alone, answer
from app.api.bodies import read_body
from app.api.context import Blueprint, runtail
from app.api.negotiation import JSON_TYPE, NDJSON_TYPE, no_content
from app.api.parsing import parse
from app.api.problems import PROBLEM_TYPE, problem
from app.api.schemas import GapProblemSchema, RunSchema, TakenSchema
from app.errors import (
    InvalidJson,
    InvalidRequest,
    ProducerGap,
    TooDeep,
    TooManyElements,
    TooManyEvents,
    Unauthorized,
    UnsupportedMediaType,
)
from app.protocol.events import dumps
from app.protocol.reading import loads
from app.storage.run_store import BatchResult
from app.turns import give_way
from app.verbs.external import Writer
from app.verbs.external_payloads import wanted_of

EVENTS_MAX = 1_000
"""Of one batch."""
NUMBER_MAX = 2**31 - 1

_EPOCH, _SEQ = (
    {"in": "header", "name": name, "required": True, "schema": {"type": "integer", "minimum": 1, "maximum": NUMBER_MAX}}
    for name in ("Producer-Epoch", "Producer-Seq")
)
INPUTS_AFTER_DIGITS = 9
_INPUTS_AFTER = {
    "in": "query",
    "name": "inputs_after",
    "schema": {"type": "integer", "minimum": 0, "maximum": 10**INPUTS_AFTER_DIGITS - 1, "default": 0},
}
_BATCH = {"type": "string", "format": "ndjson", "description": "One event per line: {type, payload}."}
_END = {"$ref": "#/components/schemas/End"}


def _sent(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    """A request's body, as the OpenAPI document has it."""
    return {"required": True, "content": {media_type: {"schema": schema}}}


blueprint = Blueprint("external", __name__, description="Writing runs from outside")
_conflicts = blueprint.alt_response(
    409, schema=GapProblemSchema, content_type=PROBLEM_TYPE, description="A batch is missing, or the run has ended."
)


@blueprint.route("/runs/<run_id>/events", methods=["POST"])
@blueprint.doc(parameters=[_EPOCH, _SEQ, _INPUTS_AFTER], requestBody=_sent(NDJSON_TYPE, _BATCH))
@blueprint.alt_response(200, schema=TakenSchema, content_type=JSON_TYPE, description="It is committed.")
@blueprint.alt_response(204, description="It was taken before; nothing is doubled.")
@_conflicts
def append(run_id: str) -> Response:
    """Append a batch of events to an external run: one JSON object {type, payload} per line."""
    writer = _writer(run_id)
    if request.mimetype != NDJSON_TYPE:
        raise UnsupportedMediaType(f"Send the events as `Content-Type: {NDJSON_TYPE}`, one per line.")
    producer_seq, inputs_after = _number("Producer-Seq"), _inputs_after()
    body = read_body()
    taken = runtail().external.append(writer, producer_seq, _events(body), inputs_after, len(body))
    return no_content() if taken.repeated else _answer(taken)


@blueprint.route("/runs/<run_id>/heartbeat", methods=["POST"])
@blueprint.doc(parameters=[_EPOCH, _INPUTS_AFTER])
@blueprint.alt_response(200, schema=TakenSchema, content_type=JSON_TYPE, description="The writer has the run.")
def heartbeat(run_id: str) -> Response:
    """Show that the writer of an external run is there. Answers with what it has to know."""
    return _answer(runtail().external.beat(_writer(run_id), _inputs_after()))


@blueprint.route("/runs/<run_id>/finish", methods=["POST"])
@blueprint.doc(parameters=[_EPOCH, _SEQ], requestBody=_sent(JSON_TYPE, _END))
@blueprint.response(200, RunSchema)
@_conflicts
def finish(run_id: str) -> Response:
    """End an external run: {"status": "completed" | "failed" | "cancelled"}, with its output or its error."""
    writer = _writer(run_id)
    if not request.is_json:
        raise UnsupportedMediaType(f"Send the body as `Content-Type: {JSON_TYPE}`.")
    producer_seq = _number("Producer-Seq")
    wanted = wanted_of(parse(read_body()))
    return answer(alone(runtail().external.finish(writer, producer_seq, wanted)))


@blueprint.errorhandler(ProducerGap)
def gap(error: ProducerGap) -> Response:
    """409, with the number of the next batch."""
    return problem(error, expected=error.expected)


def _writer(run_id: str) -> Writer:
    """Who calls: from somebody unknown not even a body is read.

    :raises Unauthorized, RunNotFound, StaleEpoch, InvalidRequest: nobody who writes this run.
    """
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized("Send `Authorization: Bearer WRITER_TOKEN`, as the start of the run gave it.")
    return runtail().external.authorise(run_id, token.strip(), _number("Producer-Epoch"))


def _number(name: str) -> int:
    """The number, from 1 on, that a header holds."""
    text = request.headers.get(name, "")
    if text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) <= NUMBER_MAX:
        return int(text)
    raise InvalidRequest(f"{name}: a whole number from 1 to {NUMBER_MAX}.")


def _inputs_after() -> int:
    text = request.args.get("inputs_after", "0")
    if text.isascii() and text.isdigit() and len(text) <= INPUTS_AFTER_DIGITS:
        return int(text)
    raise InvalidRequest("inputs_after: a whole number.")


def _events(body: bytes) -> list[Any]:
    """The JSON of each line; empty lines are none."""
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    if not lines:
        raise InvalidRequest("A batch has at least one event.")
    if len(lines) > EVENTS_MAX:
        raise TooManyEvents(f"A batch has at most {EVENTS_MAX} events.")
    return list(_parsed(lines))


def _parsed(lines: Iterable[tuple[int, bytes]]) -> Iterable[Any]:
    for number, line in lines:
        try:
            yield loads(line)
            give_way()
        except (InvalidJson, TooDeep, TooManyElements) as error:
            raise type(error)(f"Line {number}: {error.detail}") from None


def _answer(taken: BatchResult) -> Response:
    body = {
        "head": taken.head,
        "producer_seq": taken.producer_seq,
        "cancel_requested": taken.cancel_requested,
        "inputs": [{"input_id": f"inp_{input.n}", "text": input.text} for input in taken.inputs],
        "decisions": [
            {"approval_id": d.approval_id, "decision": d.decision, "by": d.by, "comment": d.comment}
            for d in taken.decisions
        ],
    }
    return Response(dumps(body) + "\n", mimetype=JSON_TYPE)
