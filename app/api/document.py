"""The OpenAPI document beyond what the views say of themselves: where a started run leads, keys, agents to try."""

from collections.abc import Sequence
from typing import Any

from app.storage.run_store import AgentRecord

EXAMPLES_MAX = 20
_RUN_ID = {"run_id": "$response.body#/run_id"}
_FOLLOW = {
    "GetRun": ("/runs/{run_id}", "get", _RUN_ID),
    "GetEvents": ("/runs/{run_id}/events", "get", {**_RUN_ID, "header.Accept": "application/json"}),
    "GetSeveral": ("/events", "get", {"runs": "$response.body#/run_id"}),
    "CancelRun": ("/runs/{run_id}/cancel", "post", _RUN_ID),
    "DeleteRun": ("/runs/{run_id}", "delete", _RUN_ID),
    "EraseRun": ("/runs/{run_id}/erase", "post", _RUN_ID),
    "SendInput": ("/runs/{run_id}/input", "post", _RUN_ID),
    "Decide": ("/runs/{run_id}/approvals/{approval_id}", "post", _RUN_ID),
    "GetApprovals": ("/approvals", "get", {"run": "$response.body#/run_id"}),
}
_KEY = {"type": "http", "scheme": "bearer", "description": "An API key: `runtail keys create` makes one."}


_WRITER = {"type": "http", "scheme": "bearer", "description": "The `writer_token` of an external run."}
_OPEN = ("/healthz", "/readyz", "/schema/events.json")
"""They need no key."""
_WRITING = (("/runs/{run_id}/events", "post"), ("/runs/{run_id}/heartbeat", "post"), ("/runs/{run_id}/finish", "post"))


def complete(document: dict[str, Any], agents: Sequence[AgentRecord] = ()) -> dict[str, Any]:
    """The document with links, the ways to authorise, and these agents: their names, and an example of each."""
    start = document["paths"]["/runs"]["post"]
    links = {name: _link(*target) for name, target in _FOLLOW.items()}
    for status in ("200", "202"):
        start["responses"][status]["links"] = links
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


def _link(path: str, method: str, parameters: dict[str, str]) -> dict[str, Any]:
    escaped = path.replace("~", "~0").replace("/", "~1")
    return {"operationRef": f"#/paths/{escaped}/{method}", "parameters": parameters}


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
