"""The OpenAPI document beyond what the views say of themselves: links, keys, agents to try, what is refused."""

from collections.abc import Sequence
from typing import Any

from app.api.links import add_links
from app.protocol.events import MAX_INT
from app.storage.run_store import EXTERNAL, AgentRecord
from app.verbs.external_payloads import MESSAGE_MAX_CHARS

EXAMPLES_MAX = 20
_KEY = {"type": "http", "scheme": "bearer", "description": "An API key: `runtail keys create` makes one."}
_WRITER = {"type": "http", "scheme": "bearer", "description": "The `writer_token` of an external run."}
_OPEN = ("/healthz", "/readyz", "/schema/events.json")
"""They need no key."""
_WRITING = (("/runs/{run_id}/events", "post"), ("/runs/{run_id}/heartbeat", "post"), ("/runs/{run_id}/finish", "post"))

_ANY = {"$ref": "#/components/schemas/Json"}
_JSON = {
    "description": "Any JSON, but whole numbers beyond ±(2^53-1), which readers do not read alike.",
    "anyOf": [
        {"type": ["null", "boolean", "string"]},
        {"type": "integer", "minimum": -MAX_INT, "maximum": MAX_INT},
        {"type": "number", "not": {"type": "integer"}},
        {"type": "array", "items": _ANY},
        {"type": "object", "additionalProperties": _ANY},
    ],
}


def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


_ERROR = _object(
    (),
    code={"type": "string", "pattern": r"^[a-z0-9_]{1,64}(?!\n)$"},
    message={"type": "string", "maxLength": MESSAGE_MAX_CHARS},
)
_END = {
    "description": "How a writer ends its run.",
    "oneOf": [
        _object(["status"], status={"const": "completed"}, output=_ANY),
        _object(
            ["status", "output_is"],
            status={"const": "completed"},
            output={"type": "null"},
            output_is={"const": "answer"},
        ),
        _object(["status"], status={"const": "failed"}, error={"anyOf": [_ERROR, {"type": "null"}]}),
        _object(["status"], status={"const": "cancelled"}),
    ],
}
_NO_TIMEOUT = {
    "if": {"properties": {"agent": {"const": EXTERNAL}}},
    "then": {"properties": {"timeout_s": {"type": "null"}}},
}
"""An external run ends when its writer finishes it, or falls silent."""


def complete(document: dict[str, Any], agents: Sequence[AgentRecord] = ()) -> dict[str, Any]:
    """The document with links, the ways to authorise, and these agents: their names, and an example of each."""
    start = document["paths"]["/runs"]["post"]
    add_links(document)
    _narrow(document)
    document.setdefault("components", {})["securitySchemes"] = {"key": _KEY, "writer": _WRITER}
    document["security"] = [{"key": []}]
    for path in _OPEN:
        document["paths"][path]["get"]["security"] = []
    for path, method in _WRITING:
        document["paths"][path][method]["security"] = [{"writer": []}]
    if names := [agent.name for agent in agents]:
        document["components"]["schemas"]["StartRun"]["properties"]["agent"]["enum"] = names
    if examples := {agent.name: _example(agent) for agent in agents[:EXAMPLES_MAX]}:
        start["requestBody"]["content"]["application/json"]["examples"] = examples
    return document


def _narrow(document: dict[str, Any]) -> None:
    """Say what the schemas of the views cannot say, so that the document does not admit what the server refuses."""
    schemas = document["components"]["schemas"]
    schemas.update(Json=_JSON, End=_END)
    for name in ("input", "metadata"):
        schemas["StartRun"]["properties"][name]["additionalProperties"] = _ANY
    schemas["StartRun"].update(_NO_TIMEOUT)
    schemas["CancelNamed"].update(minProperties=1, maxProperties=1)
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        for parameter in operation.get("parameters", ()) if isinstance(operation, dict) else ():
            parameter["schema"] = _never_null(parameter["schema"])


def _never_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Of a parameter: it is left out instead; its text `null` is one like any other."""
    if not isinstance(schema.get("type"), list):
        return schema
    (kind,) = set(schema["type"]) - {"null"}
    rest = {name: value for name, value in schema.items() if (name, value) != ("default", None)}
    if "enum" in rest:
        rest["enum"] = [value for value in rest["enum"] if value is not None]
    return {**rest, "type": kind}


def _example(agent: AgentRecord) -> dict[str, Any]:
    return {"value": {"agent": agent.name, "input": _value(agent.input_schema, agent.input_schema)}}


def _value(schema: Any, root: dict[str, Any]) -> Any:
    """Some value of a JSON Schema: the schema's own example where it has one, else what it requires."""
    if not isinstance(schema, dict):
        return None
    for name in ("const", "default", "example"):
        if name in schema:
            return schema[name]
    for name in ("examples", "enum"):
        if schema.get(name):
            return schema[name][0]
    if "$ref" in schema:
        return _value(root.get("$defs", {}).get(schema["$ref"].rpartition("/")[2]), root)
    if options := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return _value(options[0], root)
    if schema.get("type") == "object":
        members = schema.get("properties", {})
        return {name: _value(members.get(name, {}), root) for name in schema.get("required", ())}
    return _simple(schema)


def _simple(schema: dict[str, Any]) -> Any:
    kind = schema.get("type", "string")
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    return {"string": "text", "boolean": True, "array": [], "null": None}.get(str(kind), "text")
