"""Query parameters that a route does not have are refused: who writes `limt=2` is not to be given everything."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from flask import Flask, request

from app.errors import InvalidRequest

View = Callable[..., Any]
PROBED = ("/healthz", "/readyz", "/metrics", "/schema/events.json")
"""Monitors and load balancers add parameters of their own to what they ask for."""
_PLACE = re.compile(r"<(?:[^:>]+:)?([^>]+)>")
"""Of a value in a route, which may name a converter before it."""


def refuse_unknown(app: Flask, document: dict[str, Any]) -> None:
    """Have every route that the document describes refuse what it does not name.

    That is looked at where the view is called: who is unknown has been told so before.
    """
    for rule in app.url_map.iter_rules():
        route = _PLACE.sub(r"{\1}", rule.rule)
        path = document["paths"].get(route)
        if path is not None and route not in PROBED:
            known = {method.upper(): _names(document, path, operation) for method, operation in path.items()}
            app.view_functions[rule.endpoint] = _strict(app.view_functions[rule.endpoint], known)


def _names(document: dict[str, Any], path: dict[str, Any], operation: Any) -> set[str]:
    if not isinstance(operation, dict):
        return set()
    parameters = [*path.get("parameters", ()), *operation.get("parameters", ())]
    return {parameter["name"] for parameter in parameters if parameter.get("in") == "query"}


def _strict(view: View, known: dict[str, set[str]]) -> View:
    @wraps(view)
    def strict(*args: Any, **kwargs: Any) -> Any:
        if not request.query_string:
            return view(*args, **kwargs)
        method = "GET" if request.method == "HEAD" else request.method
        unknown = sorted(set(request.args) - known.get(method, set()))
        if unknown and method != "OPTIONS":
            takes = ", ".join(sorted(known.get(method, set()))) or "none"
            raise InvalidRequest(f"Unknown query parameter {unknown[0][:60]!r}; this takes {takes}.")
        return view(*args, **kwargs)

    return strict
