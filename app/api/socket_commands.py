"""What a client may say on its WebSocket window: the calls of the HTTP surface on the window's own run.

Responsible for validation and for the text of the answer. Not responsible for when, or how often, somebody may say
something (`app.streaming.windows.websocket`).
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from marshmallow import Schema, ValidationError, fields
from marshmallow.validate import Length, Range

from app.api.context import Runtail
from app.api.parsing import parse
from app.api.schemas import COMMENT_MAX_CHARS, IDEMPOTENCY_KEY, INPUT_MAX_CHARS, ApprovalSchema
from app.api.sentences import sentence_of
from app.errors import ApprovalResolved, InvalidRequest, RuntailError
from app.protocol.events import Json, control
from app.storage.run_store import Principal
from app.streaming.windows.websocket import WebSocketWindow
from app.verbs.external_payloads import APPROVAL_ID_MAX_CHARS

ID_MAX_CHARS = 100

Result = tuple[int, dict[str, Any]]
"""HTTP status, and what the answer says."""

log = logging.getLogger(__name__)


class CommandSchema(Schema):
    """What every command has. `id` is the client's own, and comes back in the answer."""

    type = fields.String(required=True)
    id = fields.String(load_default=None, allow_none=True, validate=Length(max=ID_MAX_CHARS))


class DecisionCommandSchema(CommandSchema):
    """`approve`, `deny`."""

    approval_id = fields.String(required=True, validate=Length(1, APPROVAL_ID_MAX_CHARS))
    comment = fields.String(load_default=None, allow_none=True, validate=Length(max=COMMENT_MAX_CHARS))


class InputCommandSchema(CommandSchema):
    """`input`."""

    text = fields.String(required=True, validate=Length(1, INPUT_MAX_CHARS))
    idempotency_key = fields.String(load_default=None, allow_none=True, validate=IDEMPOTENCY_KEY)


class AckCommandSchema(CommandSchema):
    """`ack`: the client has every event up to `seq`."""

    seq = fields.Integer(required=True, strict=True, validate=Range(min=0))


def carry_out(parts: Runtail, principal: Principal, window: WebSocketWindow, text: str) -> str:
    """Carry out one command for the window's principal, on the window's run; the text of `stream.answer`.

    May block. Does not raise: what goes wrong is the answer.
    """
    said: Json = None
    try:
        said = parse(text.encode())
        status, result = _obey(parts, principal, window, said)
        answer: dict[str, Any] = {"ok": True, "status": status, "result": result}
    except RuntailError as error:
        answer = {"ok": False, "status": error.status or 500, "error": _problem(error)}
    except Exception:
        log.exception("A command on %s failed.", window.tail.run_id)
        unforeseen = RuntailError("The command could not be carried out. The server's log says why.")
        answer = {"ok": False, "status": 500, "error": _problem(unforeseen)}
    return control(window.tail.run_id, "stream.answer", {**_about(said), **answer})


def _obey(parts: Runtail, principal: Principal, window: WebSocketWindow, said: Json) -> Result:
    if not isinstance(said, dict):
        raise InvalidRequest("A command is an object.")
    type = said.get("type")
    if not isinstance(type, str) or type not in _COMMANDS:
        raise InvalidRequest(f"type: must be one of {', '.join(_COMMANDS)}.")
    schema, obey = _COMMANDS[type]
    try:
        return obey(parts, principal, window, schema.load(said))
    except ValidationError as error:
        raise InvalidRequest(sentence_of(error.messages)) from None


def _cancel(parts: Runtail, principal: Principal, window: WebSocketWindow, command: dict[str, Any]) -> Result:
    run = parts.runs.cancel(principal, window.tail.run_id)
    return 200 if run.terminal else 202, {"run_id": run.id, "status": run.status}


def _decide(parts: Runtail, principal: Principal, window: WebSocketWindow, command: dict[str, Any]) -> Result:
    decision = "approved" if command["type"] == "approve" else "denied"
    decided = parts.commands.decide(principal, window.tail.run_id, command["approval_id"], decision, command["comment"])
    return 200, ApprovalSchema().dump(decided)


def _send_input(parts: Runtail, principal: Principal, window: WebSocketWindow, command: dict[str, Any]) -> Result:
    sent = parts.commands.send_input(principal, window.tail.run_id, command["text"], command["idempotency_key"])
    return 202, {"input_id": f"inp_{sent.n}", "run_id": sent.run_id}


def _ack(parts: Runtail, principal: Principal, window: WebSocketWindow, command: dict[str, Any]) -> Result:
    if command["seq"] > window.sent:
        raise InvalidRequest(f"seq: this window was sent events up to {window.sent}.")
    return 200, {"seq": command["seq"], "head": max(window.tail.head, window.sent)}


_COMMANDS: Final[dict[str, tuple[Schema, Callable[[Runtail, Principal, WebSocketWindow, dict[str, Any]], Result]]]] = {
    "cancel": (CommandSchema(), _cancel),
    "approve": (DecisionCommandSchema(), _decide),
    "deny": (DecisionCommandSchema(), _decide),
    "input": (InputCommandSchema(), _send_input),
    "ack": (AckCommandSchema(), _ack),
}


def _about(said: Json) -> dict[str, str | None]:
    """Which command is answered, as far as it has said so itself."""
    type, id = (said.get("type"), said.get("id")) if isinstance(said, dict) else (None, None)
    return {
        "command": type if isinstance(type, str) and type in _COMMANDS else None,
        "id": id if isinstance(id, str) and len(id) <= ID_MAX_CHARS else None,
    }


def _problem(error: RuntailError) -> dict[str, Any]:
    problem: dict[str, Any] = {"code": error.code, "detail": error.detail}
    if isinstance(error, ApprovalResolved):
        problem["approval"] = ApprovalSchema().dump(error.approval)
    return problem
