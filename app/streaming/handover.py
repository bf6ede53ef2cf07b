"""Taking a connection over from gunicorn, so that a window costs no request and no greenlet.

Not every connection can be: not under TLS or HTTP/2, not under another server or worker class.
"""

from _socket import socket as NativeSocket
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from gevent.socket import socket as GeventSocket
from gunicorn.http.wsgi import Response

from app.streaming.takeover import Worker

Headers = list[tuple[str, str]]


class Taken(NamedTuple):
    """A connection that was taken over. Nothing of the response has been sent."""

    socket: NativeSocket
    """Non-blocking."""
    head: bytes
    """Of the response, to be sent before anything else: together with the first bytes it costs one system call."""
    chunked: bool
    """The body is to be."""


def take_over(
    environ: Mapping[str, Any], start_response: Callable[..., Any], status: str, headers: Headers
) -> Taken | None:
    """Take the connection out of gunicorn's hands; None where that is not possible.

    The caller returns HANDED_OVER instead of a body.
    """
    sock, response = environ.get("gunicorn.socket"), getattr(start_response, "__self__", None)
    if type(response) is not Response or type(sock) is not GeventSocket or not _lets_go(response.cfg):
        return None
    start_response(status, headers)
    response.force_close()  # what a client asks on this connection after the window is not answered
    response.headers_sent = True
    native = NativeSocket(sock.family, sock.type, sock.proto, sock.detach())  # all told, nothing is asked of the kernel
    native.setblocking(False)
    return Taken(native, _head(response), response.chunked)


@lru_cache(1)
def _lets_go(config: Any) -> bool:
    """Whether the worker that has been configured does: gunicorn looks each setting up anew."""
    return issubclass(config.worker_class, Worker) and config.protocol == "http"


def _head(response: Response) -> bytes:
    """As gunicorn writes it."""
    named = [f"{name}: {value}\r\n" for name, value in response.headers]
    return "".join([*response.default_headers(), *named, "\r\n"]).encode("latin-1")


def heard_already(start_response: Callable[..., Any]) -> bytes:
    """What the client of a connection that was taken over has sent behind its request, and gunicorn has read."""
    response = start_response.__self__  # type: ignore[attr-defined]
    return bytes(response.req.unreader.buf.getvalue())
