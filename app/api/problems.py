"""Errors as responses: RFC 9457 `application/problem+json` with a stable code, never a stack trace."""

import logging
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import flask_smorest
from flask import Flask, Response, json
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from app import errors
from app.api.context import principal, runtail
from app.api.document import complete
from app.api.schemas import ProblemSchema
from app.api.sentences import sentence_of
from app.errors import RuntailError
from app.storage.run_store import EXTERNAL, AgentRecord
from app.streaming import admission

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = {429: admission.RETRY_SECONDS, 503: 1}
"""By status."""

log = logging.getLogger(__name__)

_BY_STATUS: dict[int, type[RuntailError]] = {
    400: errors.BadRequest,
    404: errors.NotFound,
    405: errors.MethodNotAllowed,
    413: errors.BodyTooLarge,
    415: errors.UnsupportedMediaType,
    422: errors.InvalidRequest,
}


class Api(flask_smorest.Api):
    """flask-smorest's, whose document describes errors as they are here."""

    ERROR_SCHEMA = ProblemSchema

    def _register_responses(self) -> None:
        # The library has one content type for errors and for everything else.
        self.DEFAULT_RESPONSE_CONTENT_TYPE = PROBLEM_TYPE
        super()._register_responses()
        del self.DEFAULT_RESPONSE_CONTENT_TYPE

    def _openapi_json(self) -> Response:
        """The document. Names of agents are in it for who may ask for them."""
        document = complete(deepcopy(self.spec.to_dict()), _agents())  # the original is everybody's
        return Response(json.dumps(document, indent=2, sort_keys=False) + "\n", mimetype="application/json")


ANYBODYS = AgentRecord(EXTERNAL, {"type": "object"}, "", "")
"""What a run is started as that a process of the caller's writes."""


def _agents() -> list[AgentRecord]:
    try:
        who, agents = principal(), runtail().services.registry.agents()
        return [*agents, ANYBODYS] if who.writer else agents
    except RuntailError:
        return []


def register(app: Flask) -> None:
    """Answer every error of the app with a problem document."""
    app.register_error_handler(RuntailError, problem)
    app.register_error_handler(HTTPException, _http_problem)
    app.register_error_handler(Exception, _unforeseen)


def problem(error: RuntailError, **members: Any) -> Response:
    """The problem document of one of our errors.

    :param members: JSON that it holds beside the usual ones.
    """
    status = error.status or 500
    if status == 500:
        log.error("A request failed.", exc_info=error)
    return _response(status, error.code, error.title, error.detail, members)


def _http_problem(error: HTTPException) -> Response:
    """An error of Flask or werkzeug, or of the validation of a request by its schema."""
    status = error.code or 500
    kind = _BY_STATUS.get(status)
    messages = getattr(error, "data", {}).get("messages") if status == 422 else None
    if kind is not None:
        response = problem(kind(sentence_of(messages) if messages else ""))
    else:
        code = error.name.lower().replace(" ", "_")
        response = _response(status, code, error.name, error.description or error.name)
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
    return response


def _unforeseen(error: Exception) -> Response:
    failed = RuntailError("The request could not be handled. The server's log says why.")
    failed.__cause__ = error
    return problem(failed)


def _response(status: int, code: str, title: str, detail: str, members: Mapping[str, Any] | None = None) -> Response:
    document = {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail}
    document.update(members or {})
    response = Response(json.dumps(document) + "\n", status, mimetype=PROBLEM_TYPE)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if status in RETRY_AFTER_SECONDS:
        response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS[status])
    return response
