"""What writers of external runs send, checked and made fit to go out. Not responsible for who may send it."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from typing import Any, TypeVar

from app.errors import (
    ExternalFailed,
    HookFailed,
    InvalidEvent,
    InvalidJson,
    InvalidRequest,
    ReservedType,
    RuntailError,
    TooDeep,
)
from app.hooks import Hooks
from app.pace import paced
from app.protocol.events import Outbound, dumps, exceeds
from app.protocol.sizes import OUTPUT_BYTES
from app.storage.run_store import BYTES, CONTAINERS, NewApproval
from app.turns import give_way

MESSAGE_MAX_CHARS = 500
"""Of the error that a writer gives."""
APPROVAL_ID_MAX_CHARS = 128

REPLACED_FREE_BYTES = 1_000
"""Of an event that takes the place of the one before it."""

_KINDS = {
    "step.started": "steps",
    "message.started": "messages",
    "tool.started": "tool_calls",
    "source.added": "sources",
    "quality.checked": "checks",
    "subagent.spawned": "subagents",
}
"""Of these a run's state keeps one more item each time."""
_REPLACED = frozenset(
    {"plan.created", "plan.updated", "step.progress", "tool.progress", "subagent.status", "subagent.closed"}
    | {"context.usage"}
)
_NOT_KEPT = ("custom.", "orchestration.", "subagent.job.", "context.compaction.")
_RESERVED = ("approval.resolved", "input.received")
_APPROVAL_ID = re.compile(rf"(?!\.\.?\Z)[A-Za-z0-9_.-]{{1,{APPROVAL_ID_MAX_CHARS}}}")
"""It stands in a path, of which clients take out `.` and `..`."""
_ERROR_CODE = re.compile(r"[a-z0-9_]{1,64}")

Payload = dict[str, Any]
E = TypeVar("E", bound=RuntailError)


def outbound_of(events: Sequence[Any], hooks: Hooks) -> tuple[list[tuple[str, Outbound]], list[NewApproval]]:
    """The events of a batch as they go out, and the approvals that they ask for.

    :param events: as the writer has sent them.
    :raises InvalidEvent, InvalidJson, TooDeep, HookFailed, ReservedType: one of them is not fit; the detail says which.
    """
    outbound = []
    for number, event in enumerate(events, 1):
        outbound.append(_outbound(number, event, hooks))
        give_way()
    asking = [(number, payload) for number, (type, payload) in enumerate(outbound, 1) if type == "approval.required"]
    return outbound, [_approval(number, payload) for number, payload in asking]


def kept_of(outbound: Sequence[tuple[str, Payload]]) -> Counter[str]:
    """What a run's state keeps of the events: items by their kind, BYTES, and CONTAINERS."""
    kept: Counter[str] = Counter()
    for type, payload in outbound:
        if type == "message.delta":
            kept[BYTES] += len(dumps(payload["text"]).encode()) - len('""')
        elif type in _REPLACED:  # by the next one: only what is long counts
            kept[BYTES] += max(0, len(dumps(payload).encode()) - REPLACED_FREE_BYTES)
        elif not type.startswith(_NOT_KEPT):
            kept[BYTES] += len(dumps(payload).encode())
            kept[CONTAINERS] += _containers_in(payload)
            if kind := _KINDS.get(type):
                kept[kind] += 1
        give_way()
    return kept


def _containers_in(value: Any) -> int:
    """The lists and objects within a list or an object, at all levels."""
    count, left = 0, [value]
    while left:
        one = left.pop()
        found = [item for item in (one.values() if isinstance(one, dict) else one) if isinstance(item, dict | list)]
        count += len(found)
        left += found
        give_way()
    return count


def wanted_of(body: Any) -> Payload:
    """How a writer wants its run to end, as it is stored; it passes the hooks when the run ends.

    :param body: of its request, clean.
    :raises InvalidRequest: it does not say, or says more.
    """
    status = body.get("status") if isinstance(body, dict) else None
    members = {"completed": {"output", "output_is"}, "failed": {"error"}, "cancelled": set()}
    if not isinstance(status, str) or status not in members:
        raise InvalidRequest("status: one of completed, failed, cancelled.")
    if unknown := set(body) - {"status"} - members[status]:
        raise InvalidRequest(f"Not of a run that is {status}: {', '.join(sorted(unknown))}"[:200])
    if status == "completed":
        return {"status": status, **_output(body)}
    return {"status": status, "error": _error(body.get("error"))} if status == "failed" else {"status": status}


def _output(body: Mapping[str, Any]) -> dict[str, Any]:
    output = body.get("output")
    if "output_is" not in body:
        # A text is written in pieces, if it was not streamed. What else is too large could never be written.
        if not isinstance(output, str) and exceeds({"output": output}, OUTPUT_BYTES, paced):
            raise InvalidRequest(f"output: at most {OUTPUT_BYTES:,} bytes of JSON, unless it is a text.")
        return {"output": output}
    if output is not None or body["output_is"] != "answer":
        raise InvalidRequest("output_is: answer, with an output that is null.")
    return {"output": None, "output_is": "answer"}


def _error(error: Any) -> dict[str, Any]:
    given = {} if error is None else error
    if not isinstance(given, dict) or set(given) - {"code", "message", "retryable", "retry_after_ms"}:
        raise InvalidRequest("error: {code, message, retryable?, retry_after_ms?}.")
    code, message = given.get("code", ExternalFailed.code), given.get("message", ExternalFailed.title)
    if not isinstance(code, str) or not _ERROR_CODE.fullmatch(code):
        raise InvalidRequest("error.code: 1 to 64 of a-z 0-9 _")
    if not isinstance(message, str) or len(message) > MESSAGE_MAX_CHARS:
        raise InvalidRequest(f"error.message: a text of at most {MESSAGE_MAX_CHARS} characters.")
    more = {name: given[name] for name in ("retryable", "retry_after_ms") if name in given}
    if not isinstance(more.get("retryable", False), bool):
        raise InvalidRequest("error.retryable: true or false.")
    if (after := more.get("retry_after_ms", 0)) is True or not isinstance(after, int) or after < 0:
        raise InvalidRequest("error.retry_after_ms: a whole number from 0.")
    return {"code": code, "message": message, **more}


def _outbound(number: int, event: Any, hooks: Hooks) -> tuple[str, Outbound]:
    """One line of a batch as it goes out."""
    if not isinstance(event, dict) or set(event) != {"type", "payload"} or not isinstance(event["type"], str):
        raise InvalidEvent(f"Line {number}: an event is an object of `type` and `payload`.")
    type = event["type"]
    if type.startswith("run.") or type in _RESERVED:
        raise ReservedType(f"Line {number}: only the server writes {type[:100]!r}.")
    try:
        return type, hooks(type, event["payload"])
    except (HookFailed, InvalidEvent, InvalidJson, TooDeep) as error:
        raise _at(number, error) from None


def _at(number: int, error: E) -> E:
    return type(error)(f"Line {number}: {error.detail}")


def _approval(number: int, payload: Payload) -> NewApproval:
    id, expires_at = payload["approval_id"], payload.get("expires_at")
    if not _APPROVAL_ID.fullmatch(id):
        raise InvalidEvent(f"Line {number}: an approval_id is 1 to {APPROVAL_ID_MAX_CHARS} of A-Z a-z 0-9 _ . -")
    expires = None if expires_at is None else _time(number, expires_at)
    return NewApproval(id, payload["label"], payload["requires"], payload.get("tool_call_id"), expires)


def _time(number: int, text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
        # In the first and the last year it may be a time that is none in the time zone of Postgres' answers.
        if moment.tzinfo is not None and MINYEAR < moment.year < MAXYEAR:
            return moment.astimezone(UTC)
    except ValueError:
        pass
    raise InvalidEvent(f"Line {number}: expires_at is a time with a time zone, of the years 2 to 9998.")
