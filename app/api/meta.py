"""What is served beside runs: agents, schemas, health, metrics."""

from collections.abc import Callable

from flask import Response, json
from prometheus_client import CONTENT_TYPE_LATEST

from app import metrics
from app.api.context import Blueprint, principal, runtail
from app.api.schemas import AgentSchema
from app.errors import NotFound, StoreUnavailable
from app.external import NO_JANITOR
from app.protocol.events import json_schema
from app.storage.event_log import EventLog
from app.storage.run_queue import ISOLATED_QUEUE, NO_ISOLATED
from app.storage.run_store import AgentRecord
from app.wiring import Services

blueprint = Blueprint("meta", __name__, description="Agents, schemas, health, metrics")

EVENTS_SCHEMA = json.dumps(json_schema(), indent=2) + "\n"


@blueprint.route("/agents")
@blueprint.response(200, AgentSchema(many=True))
def agents() -> list[AgentRecord]:
    """The agents that workers have registered, each with the JSON Schema of its input."""
    principal()
    return runtail().services.registry.agents()


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
        warnings = [] if services.registry.has_janitor() else [NO_JANITOR]
        return warnings + ([NO_ISOLATED] if services.store.unserved(ISOLATED_QUEUE) else [])
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
