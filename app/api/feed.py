"""`/admin/feed`: what happens in all runs of a tenant, for its administrators."""

import socket
from typing import Any

from flask import Response, request

from app.api.context import Blueprint, principal, runtail
from app.api.negotiation import NDJSON_TYPE, SSE_TYPE, accepted_type
from app.api.schemas import FeedQuerySchema
from app.api.windows import Open, open_iterated, reject_unavailable
from app.errors import AdminRequired, StoreUnavailable
from app.streaming.admission import Ticket
from app.streaming.feed import Feed
from app.streaming.wire import NDJSON, SSE


def require_admin() -> None:
    """Before each request, and before its parameters are looked at. Preflights carry no key.

    :raises Unauthorized: nobody we know.
    :raises AdminRequired: the key is no administrator's.
    """
    if request.method != "OPTIONS" and not principal().admin:
        raise AdminRequired("The feed shows every user's runs: it is for administrators' keys.")


blueprint = Blueprint("feed", __name__, description="All runs of a tenant")
blueprint.before_request(require_admin)
blueprint.register_error_handler(StoreUnavailable, reject_unavailable)


@blueprint.route("/admin/feed")
@blueprint.arguments(FeedQuerySchema(), location="query")
@blueprint.response(200, content_type=SSE_TYPE)
def feed(query: dict[str, Any]) -> Response:
    """The events of all runs of the tenant, or a sample of them, from now on: as server-sent events or NDJSON."""
    tenant_id, sample = principal().tenant_id, query["sample"]
    format = NDJSON if accepted_type(SSE_TYPE, NDJSON_TYPE) == NDJSON_TYPE else SSE
    feeds = runtail().feeds

    def opener(ticket: Ticket) -> Open:
        def open(sock: socket.socket | None) -> Feed:
            return feeds.open(tenant_id, sample, format, ticket, sock)

        return open

    return open_iterated(format, (), opener)
