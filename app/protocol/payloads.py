"""The payload schema of every event and control frame, and the JSON Schema made of them.

Responsible for which fields a payload has. Not responsible for what may stand in any JSON (`cleaning`), nor
for the envelope's text (`events`). Types and fields are added here and in docs/protocol.md, never renamed.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import INCLUDE, RAISE, Schema, ValidationError, fields
from marshmallow.validate import Length, OneOf, Range

from runtail.checks import CUSTOM_TYPE
from runtail.errors import InvalidEvent
from runtail.redaction import PREVIEW_MAX_BYTES, SUMMARY_MAX_CHARS

PLAN_STEPS_MAX = 1_000
"""Of one plan."""

COST_MAX = 1e12
"""Costs are summed up over a run, and the sum must stay a finite number."""


class StrictNumber(fields.Float):
    """A JSON number; marshmallow's own Float also takes "0.5"."""

    def _validated(self, value: Any) -> float:
        if not isinstance(value, int | float):
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


class StrictBoolean(fields.Boolean):
    """A JSON boolean; marshmallow's own Boolean also takes 1 and "yes"."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Payload(Schema):
    """Base of all payloads: fields it does not know are kept."""

    class Meta:
        unknown = INCLUDE


class BoundedList(fields.List[Any]):
    """A list of at most so many items; one that is longer is refused before any of them is looked at."""

    def __init__(self, inner: fields.Field[Any], most: int, **more: Any) -> None:
        super().__init__(inner, **more)
        self.most = most

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if isinstance(value, list) and len(value) > self.most:
            raise ValidationError(f"More than {self.most} items.")
        return super()._deserialize(value, *args, **kwargs)


def _payload(name: str, /, **members: fields.Field[Any]) -> type[Schema]:
    return Payload.from_dict(dict(members), name=name)


def _fits_preview(value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if len(text.encode(errors="replace")) > PREVIEW_MAX_BYTES:
        raise ValidationError(f"Longer than {PREVIEW_MAX_BYTES} bytes.")


# The vocabulary of the tables below. marshmallow copies a field into each schema: one instance serves many.
# MAY_…: the field may be absent. …_OR_NULL: present or not, it may be null.

TEXT = fields.String(required=True)
TEXT_OR_NULL = fields.String(required=True, allow_none=True)
MAY_TEXT = fields.String()
MAY_TEXT_OR_NULL = fields.String(allow_none=True)
COUNT = fields.Integer(required=True, strict=True, validate=Range(min=0))
MAY_COUNT = fields.Integer(strict=True, validate=Range(min=0))
FRACTION = StrictNumber(required=True, validate=Range(0, 1))
MAY_FRACTION = StrictNumber(validate=Range(0, 1))
MAY_NUMBER_OR_NULL = StrictNumber(allow_none=True)
MAY_COST_OR_NULL = StrictNumber(allow_none=True, validate=Range(0, COST_MAX))
FLAG = StrictBoolean(required=True)
ANY = fields.Raw(required=True, allow_none=True)
OBJECT = fields.Dict(required=True)
OBJECT_OR_NULL = fields.Dict(required=True, allow_none=True)
MAY_OBJECT = fields.Dict()
TEXTS = fields.List(fields.String(), required=True)
MAY_OUTPUT_IS = fields.String(validate=OneOf(("answer", "streamed")))
PREVIEW = fields.Raw(required=True, allow_none=True, validate=_fits_preview)
SUMMARY = fields.String(validate=Length(max=SUMMARY_MAX_CHARS))
ERROR = fields.Nested(_payload("Error", code=TEXT, message=TEXT), required=True)
MAY_PROBLEM = fields.Nested(_payload("Problem", code=TEXT, detail=TEXT))
PLAN = BoundedList(fields.Nested(_payload("PlanStep", id=TEXT, title=TEXT)), PLAN_STEPS_MAX, required=True)


def _one_of(*choices: str) -> fields.String:
    return fields.String(required=True, validate=OneOf(choices))


_FIELDS: dict[str, dict[str, fields.Field[Any]]] = {
    "run.created": {"agent": TEXT, "input_preview": PREVIEW, "session_id": MAY_TEXT},
    "run.started": {"attempt": COUNT, "worker": TEXT},
    "run.step": {"attempt": COUNT, "reason": _one_of("worker_lost", "deploy", "retry"), "restart": FLAG},
    "run.waiting": {"on": TEXT, "ids": TEXTS},
    "run.resumed": {"attempt": COUNT},
    "run.completed": {"output": ANY, "output_is": MAY_OUTPUT_IS, "usage": OBJECT_OR_NULL, "digest": TEXT},
    "run.failed": {"error": ERROR, "digest": TEXT},
    "run.cancelled": {"reason": TEXT, "last_seq": COUNT, "digest": TEXT},
    "plan.created": {"steps": PLAN},
    "plan.updated": {"steps": PLAN},
    "step.started": {"step_id": TEXT, "title": TEXT, "index": COUNT},
    "step.progress": {"step_id": TEXT, "fraction": FRACTION, "label": MAY_TEXT},
    "step.completed": {"step_id": TEXT, "duration_ms": COUNT},
    "step.failed": {"step_id": TEXT, "error": ERROR},
    "message.started": {
        "message_id": TEXT,
        "role": _one_of("assistant", "system", "tool", "user"),
        "replaces": StrictBoolean(),
    },
    "message.delta": {"message_id": TEXT, "text": TEXT},
    "message.completed": {"message_id": TEXT, "chars": COUNT},
    "tool.started": {
        "tool_call_id": TEXT, "name": TEXT, "label": TEXT, "summary": SUMMARY, "step_id": MAY_TEXT,
    },
    "tool.progress": {"tool_call_id": TEXT, "fraction": MAY_FRACTION, "label": MAY_TEXT},
    "tool.completed": {
        "tool_call_id": TEXT, "preview": ANY, "truncated": FLAG, "bytes": COUNT, "duration_ms": COUNT,
    },
    "tool.failed": {
        "tool_call_id": TEXT, "code": TEXT, "message": MAY_TEXT, "retryable": FLAG, "duration_ms": MAY_COUNT,
    },
    "approval.required": {
        "approval_id": TEXT, "tool_call_id": MAY_TEXT_OR_NULL, "label": TEXT,
        "requires": _one_of("owner", "operator"), "expires_at": MAY_TEXT_OR_NULL,
    },
    "approval.resolved": {
        "approval_id": TEXT, "decision": _one_of("approved", "denied", "expired"),
        "by": MAY_TEXT_OR_NULL, "comment": MAY_TEXT_OR_NULL,
    },
    "source.added": {
        "source_id": MAY_TEXT, "title": TEXT, "url": MAY_TEXT_OR_NULL, "snippet": MAY_TEXT_OR_NULL,
    },
    "quality.checked": {
        "name": TEXT, "passed": FLAG, "score": MAY_NUMBER_OR_NULL, "note": MAY_TEXT_OR_NULL,
    },
    "context.usage": {
        "input_tokens": MAY_COUNT, "output_tokens": MAY_COUNT,
        "budget_used_pct": MAY_NUMBER_OR_NULL, "cost": MAY_COST_OR_NULL,
    },
    "context.compaction.started": {},
    "context.compaction.completed": {"before_tokens": MAY_COUNT, "after_tokens": MAY_COUNT},
    "orchestration.started": {},
    "subagent.spawned": {"child_run_id": TEXT, "label": MAY_TEXT},
    "subagent.status": {"child_run_id": TEXT, "status": TEXT},
    "subagent.job.started": {"child_run_id": TEXT, "job_id": MAY_TEXT},
    "subagent.job.completed": {"child_run_id": TEXT, "job_id": MAY_TEXT},
    "subagent.closed": {"child_run_id": TEXT, "status": MAY_TEXT},
    "orchestration.completed": {},
    "input.received": {"input_id": MAY_TEXT, "text": TEXT},
}  # fmt: skip

_CONTROL_FIELDS: dict[str, dict[str, fields.Field[Any]]] = {
    "stream.snapshot": {"seq": COUNT, "state": OBJECT},
    "stream.snapshot.part": {"seq": COUNT, "part": COUNT, "parts": COUNT, "text": TEXT},
    "stream.gap": {"requested": COUNT, "earliest": COUNT, "head": COUNT},
    "stream.rejected": {"code": TEXT, "retry_ms": COUNT},
    "stream.expired": {},
    "feed.status": {"sample": FRACTION, "sent": COUNT, "left_out": COUNT, "dropped": COUNT},
    "stream.answer": {
        "command": TEXT_OR_NULL, "id": TEXT_OR_NULL, "ok": FLAG, "status": COUNT,
        "result": MAY_OBJECT, "error": MAY_PROBLEM,
    },
}  # fmt: skip

SCHEMAS: dict[str, type[Schema]] = {name: _payload(name, **members) for name, members in _FIELDS.items()}
CONTROL_SCHEMAS: dict[str, type[Schema]] = {
    name: _payload(name, **members) for name, members in _CONTROL_FIELDS.items()
}
_VALIDATORS = {name: schema() for name, schema in SCHEMAS.items()}


def validate(type: str, payload: object) -> None:
    """Checks an event at its emission; returns nothing.

    :param type: one of SCHEMAS, or `custom.<name>`, whose payload is any object.
    :raises InvalidEvent: another type, or a payload that does not fit.
    """
    if not isinstance(payload, Mapping):
        raise InvalidEvent(f"{type}: the payload is not an object")
    if schema := _VALIDATORS.get(type):
        if errors := schema.validate(payload):
            raise InvalidEvent(f"{type}: {json.dumps(errors)}")
    elif not CUSTOM_TYPE.fullmatch(type):
        raise InvalidEvent(f"{type!r} is no event type; an agent's own are custom.<name>, of [a-z0-9_.-]")


def schema_json(schema: type[Schema]) -> dict[str, Any]:
    """JSON Schema (2020-12) of one marshmallow schema; whether unknown fields may stand in it is kept."""
    # OpenAPI 3.1 schemas are 2020-12 schemas. A resolver that names nothing keeps nested schemas inline.
    plugin = MarshmallowPlugin(schema_name_resolver=lambda schema: "")
    APISpec("schema", "1", "3.1.0", plugins=[plugin])
    assert plugin.converter is not None
    describe: Callable[[Schema], dict[str, Any]] = plugin.converter.schema2jsonschema
    instance = schema()
    return {**describe(instance), "additionalProperties": instance.unknown != RAISE}


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of every envelope: one branch per type; `$defs` holds the payloads by type."""
    types = SCHEMAS | CONTROL_SCHEMAS
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Runtail events, v1",
        "oneOf": [*(_envelope_schema(name) for name in types), _custom_schema()],
        "$defs": {name: schema_json(schema) for name, schema in types.items()},
    }


def _envelope_schema(name: str) -> dict[str, Any]:
    return _envelope({"const": name}, {"$ref": f"#/$defs/{name}"}, stored=name in SCHEMAS)


def _custom_schema() -> dict[str, Any]:
    type = {"type": "string", "pattern": f"^{CUSTOM_TYPE.pattern}$"}
    return _envelope(type, {"type": "object"}, stored=True)


def _envelope(type: dict[str, Any], payload: dict[str, Any], stored: bool) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "v": {"const": 1},
        "seq": {"type": "integer", "minimum": 1},
        "run_id": {"type": "string"},
        "type": type,
        "ts": {"type": "string", "format": "date-time"},
        "payload": payload,
    }
    if not stored:
        del properties["seq"]
    return {"type": "object", "properties": properties, "required": list(properties)}
