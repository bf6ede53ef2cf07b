"""What is served beside runs: agents, schemas, health, metrics."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from flask import Response, json
from prometheus_client import CONTENT_TYPE_LATEST

from app import metrics
from app.api.context import Blueprint, principal, runtail
from app.api.schemas import AgentSchema
from app.errors import NotFound, StoreUnavailable
from app.protocol.events import json_schema
from app.storage.event_log import EventLog
from app.storage.run_queue import ISOLATED_QUEUE, NO_ISOLATED
from app.verbs.external import NO_JANITOR
from app.wiring import Services

blueprint = Blueprint("meta", __name__, description="Agents, schemas, health, metrics")

BROKEN = "It cannot be loaded; the log of a worker says why."
NOTHING_KNOWN = {"version": None, "isolation": None, "input_schema": None}
EVENTS_SCHEMA = json.dumps(json_schema(), indent=2) + "\n"


@blueprint.route("/agents")
@blueprint.response(200, AgentSchema(many=True))
def agents() -> list[dict[str, Any]]:
    """The agents that workers have registered, each with the JSON Schema of its input.

    What a worker could not load is there too, under the name of its entry point; why, only administrators are told.
    """
    reveal, registry = principal().admin, runtail().services.registry
    found = {agent.name: {**asdict(agent), "error": None} for agent in registry.agents()}
    for name, reason in registry.broken().items():
        found[name] = {**found.get(name, {"name": name}), "error": reason if reveal else BROKEN}
    return [{**NOTHING_KNOWN, **found[name]} for name in sorted(found)]


@blueprint.route("/schema/events.json")
@blueprint.response(200)
def events_schema() -> Response:
    """JSON Schema of every event."""
    return Response(EVENTS_SCHEMA, mimetype="application/schema+json")


@blueprint.route("/healthz")
@blueprint.response(200)
def healthz() -> Response:
    """This process answers."""
    return Response('{"status": "ok"}\n', mimetype="application/json")


@blueprint.route("/readyz")
@blueprint.response(200)
@blueprint.alt_response(503, description="Degraded: `checks` says what cannot be reached.")
def readyz() -> Response:
    """Postgres and Redis can be reached; `warnings` says what else is missing."""
    services = runtail().services
    checks = {"postgres": _reaches(services.database.ping), "redis": _reaches(services.log.ping)}
    ready = all(checks.values())
    warnings = _warnings(services) if checks["postgres"] else []
    if checks["redis"]:
        warnings += _evictions(services.log)
    body = {"status": "ready" if ready else "degraded", "checks": checks, "warnings": warnings}
    return Response(json.dumps(body) + "\n", 200 if ready else 503, mimetype="application/json")


@blueprint.route("/metrics")
@blueprint.response(200, {"type": "string"}, content_type=CONTENT_TYPE_LATEST)
def prometheus() -> Response:
    """Metrics of all web processes of this server, for Prometheus. For administrators' keys."""
    if not principal().admin:
        raise NotFound("Metrics are for administrators.")
    return Response(metrics.exposition(), content_type=CONTENT_TYPE_LATEST)


def _warnings(services: Services) -> list[str]:
    try:
        found = [] if services.registry.has_janitor() else [NO_JANITOR]
        if services.store.unserved(ISOLATED_QUEUE):
            found.append(NO_ISOLATED)
        return found + [f"The entry point {name!r}: {BROKEN}" for name in services.registry.broken()]
    except StoreUnavailable:
        return []  # the next call says that Postgres cannot be reached


def _evictions(log: EventLog) -> list[str]:
    try:
        return [sentence] if (sentence := log.evicts()) else []
    except StoreUnavailable:
        return []  # the next call says that Redis cannot be reached


def _reaches(ping: Callable[[], None]) -> bool:
    try:
        ping()
    except StoreUnavailable:
        return False
    return True
