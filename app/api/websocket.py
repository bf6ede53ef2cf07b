"""`/runs/{run_id}/ws`: who may open a window as a WebSocket, and the handshake.

Not responsible for what is said on it (`app.api.socket_commands`, `app.streaming.windows.websocket`).
"""

import base64
import binascii
import hashlib
import random
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from functools import partial
from socket import SHUT_WR
from typing import Any, Final

import gevent
from flask import Response, request
from gevent.socket import wait_read, wait_write

from app.api.context import Blueprint, principal, require_principal, runtail
from app.api.cursors import cursor_within
from app.api.origins import is_foreign_page
from app.api.problems import problem
from app.api.schemas import WebSocketQuerySchema
from app.api.socket_commands import carry_out
from app.api.windows import REJECTED_RETRY_MS
from app.errors import (
    BadRequest,
    OriginNotAllowed,
    RuntailError,
    StoreUnavailable,
    TooManyStreams,
    UpgradeRequired,
    WebSocketUnavailable,
)
from app.protocol.framing import websocket_close
from app.streaming.handover import Taken, heard_already, take_over
from app.streaming.opening import Opening, rejection
from app.streaming.takeover import HANDED_OVER
from app.streaming.windows.base import Closing
from app.streaming.windows.websocket import CODES
from app.streaming.wire import WEBSOCKET

VERSION: Final = "13"
SUBPROTOCOL: Final = "runtail.v1"
KEY_PREFIX: Final = "bearer."
"""Of the subprotocol that is an API key: a browser cannot send a header."""
NONCE_BYTES: Final = 16
TRY_AGAIN_LATER: Final = 1013
READ_BYTES = 4_096
HANG_UP_SECONDS = 1.0
"""Time that a client which is turned away gets to take its last bytes."""
_ACCEPT_SUFFIX: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
Serve = Callable[[Taken, bytes], None]
"""Takes the connection, and what was heard on it already."""

blueprint = Blueprint("websocket", __name__, description="Windows as WebSockets")


@blueprint.before_request
def authorise() -> None:
    """Before anything else is told: not to foreign pages, which a browser lets open a WebSocket to anywhere, and not
    to somebody unknown.

    :raises OriginNotAllowed, Unauthorized: one of these.
    """
    if is_foreign_page(runtail().services.config.cors_origins):
        raise OriginNotAllowed("CORS_ORIGINS does not name the origin of the page.")
    keys = [name.removeprefix(KEY_PREFIX) for name in _subprotocols() if name.startswith(KEY_PREFIX)]
    if keys and "Authorization" not in request.headers:
        request.environ["HTTP_AUTHORIZATION"] = f"Bearer {keys[0]}"
    require_principal()


@blueprint.route("/runs/<run_id>/ws", websocket=True)
@blueprint.route("/runs/<run_id>/ws")  # werkzeug's other half of it: a request that is no handshake
@blueprint.arguments(WebSocketQuerySchema(), location="query")
@blueprint.response(101, description="The connection is a WebSocket from here on.")
def follow(query: dict[str, Any], run_id: str) -> Response:
    """Follow a run from a cursor over a WebSocket, and send it commands."""
    run = runtail().runs.position(principal(), run_id)
    headers = _handshake()
    cursor = cursor_within(run, None, query)
    windows = runtail().windows
    if windows.draining():
        return WebSocketResponse(headers, partial(turn_away, websocket_close(CODES[Closing.DRAINED])))
    windows.start()
    try:
        ticket = windows.admission.admit(principal(), request.remote_addr or "", run.id)
    except TooManyStreams as error:
        return _rejected(headers, error, run.id)
    opening = Opening(run, cursor, WEBSOCKET, ticket, parts=query["snapshot"] == "parts")
    obey = partial(carry_out, runtail(), principal())
    return WebSocketResponse(
        headers,
        lambda taken, heard: windows.open_websocket_on(taken, heard, opening, obey),
        give_back=lambda: windows.admission.release(ticket, before_the_end=True),
    )


@blueprint.errorhandler(UpgradeRequired)
def upgrade_required(error: UpgradeRequired) -> Response:
    """426, and to what."""
    response = problem(error)
    response.headers.update({"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": VERSION})
    return response


@blueprint.errorhandler(StoreUnavailable)
def unavailable(error: StoreUnavailable) -> Response:
    """A browser does not show a page the status of a handshake that failed: where there is one, say it on it."""
    try:
        headers = _handshake()
    except RuntailError:
        return problem(error)
    assert request.view_args is not None
    return _rejected(headers, error, request.view_args["run_id"])


class WebSocketResponse(Response):
    """101; then the connection is no longer HTTP's."""

    def __init__(self, headers: dict[str, str], serve: Serve, give_back: Callable[[], None] = lambda: None) -> None:
        """
        :param give_back: called where nothing comes of it.
        """
        super().__init__(status=101, headers=headers)
        del self.headers["Content-Type"]
        self._serve = serve
        self._give_back = give_back

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The WSGI side."""
        headers = self.get_wsgi_headers(environ).to_wsgi_list()
        try:
            taken = take_over(environ, start_response, self.status, headers)
        except BaseException:
            self._give_back()
            raise
        if taken is None:
            self._give_back()
            error = WebSocketUnavailable("Over TLS to this server, or under another server, there are SSE and NDJSON.")
            return problem(error)(environ, start_response)
        self._serve(taken, heard_already(start_response))
        return HANDED_OVER


def turn_away(last: bytes, taken: Taken, heard: bytes) -> None:
    """Send these few bytes, and wait a moment for the client to hang up: a connection that is reset loses them."""
    native = taken.socket
    with closing(native), suppress(OSError), gevent.Timeout(HANG_UP_SECONDS, TimeoutError):
        wait_write(native.fileno())
        native.send(taken.head + last)
        native.shutdown(SHUT_WR)
        wait_read(native.fileno())
        while native.recv(READ_BYTES):
            wait_read(native.fileno())


def _rejected(headers: dict[str, str], error: RuntailError, run_id: str) -> Response:
    last = rejection(WEBSOCKET, run_id, error.code, random.randint(*REJECTED_RETRY_MS))
    return WebSocketResponse(headers, partial(turn_away, last + websocket_close(TRY_AGAIN_LATER)))


def _subprotocols() -> list[str]:
    names = ",".join(request.headers.getlist("Sec-WebSocket-Protocol")).split(",")
    return [name.strip() for name in names]


def _handshake() -> dict[str, str]:
    """The headers of the answer.

    :raises UpgradeRequired: the client does not want a WebSocket, or not of this version.
    :raises BadRequest: it does, but the request is no handshake.
    """
    wanted = "websocket" in _tokens("Upgrade") and "upgrade" in _tokens("Connection")
    if request.method != "GET" or request.environ["SERVER_PROTOCOL"] != "HTTP/1.1" or not wanted:
        raise UpgradeRequired("Ask for it with `Upgrade: websocket`; server-sent events are at /events.")
    if request.headers.get("Sec-WebSocket-Version") != VERSION:
        raise UpgradeRequired(f"The version of WebSocket is {VERSION}.")
    if request.content_length or "Transfer-Encoding" in request.headers:
        raise BadRequest("A handshake has no body.")
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": _accept()}
    if SUBPROTOCOL in _subprotocols():
        headers["Sec-WebSocket-Protocol"] = SUBPROTOCOL
    return headers


def _accept() -> str:
    key = request.headers.get("Sec-WebSocket-Key", "")
    try:
        well_formed = len(base64.b64decode(key, validate=True)) == NONCE_BYTES
    except (binascii.Error, ValueError):
        well_formed = False
    if not well_formed:
        raise BadRequest("Sec-WebSocket-Key is not 16 bytes in base64.")
    return base64.b64encode(hashlib.sha1(key.encode() + _ACCEPT_SUFFIX).digest()).decode()


def _tokens(name: str) -> set[str]:
    return {token.strip().lower() for token in ",".join(request.headers.getlist(name)).split(",")}
