"""Answers in one send, over a socket pair and with gunicorn's own request and response."""

import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.parser import RequestParser
from gunicorn.http.wsgi import Response
from werkzeug.wsgi import ClosingIterator

from app.api.one_send import OneSend


class CloseFailed(Exception):
    """What a body raises when it is closed."""


def fail() -> None:
    raise CloseFailed


def pieces(app: Callable[..., Iterable[bytes]]) -> list[bytes]:
    """What the client is sent, send by send; the answer is treated as gunicorn's workers treat it."""
    config = Config()
    client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with client, server:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        response = Response(next(RequestParser(config, server, ("127.0.0.1", 1))), server, config)
        body: Any = OneSend(app)({}, response.start_response)
        with suppress(CloseFailed):
            try:
                for data in body:
                    response.write(data)
                response.close()
            finally:
                body.close()
        server.shutdown(socket.SHUT_WR)
        return list(iter(lambda: client.recv(65_536), b""))


@pytest.mark.parametrize("on_close", [[], [fail]])
@pytest.mark.parametrize(
    ("status", "length", "body", "sent"),
    [
        ("200 OK", "4", [b"abcd"], [b"abcd"]),
        ("200 OK", "4", [b"ab", b"cd"], [b"ab", b"cd"]),
        ("200 OK", "0", [], [b""]),
        ("204 No Content", None, [], [b""]),
    ],
)
def test_a_head_goes_with_the_first_bytes_of_its_body_or_at_its_end(
    status: str, length: str | None, body: list[bytes], sent: list[bytes], on_close: list[Callable[[], None]]
) -> None:
    def app(_: Any, start_response: Any) -> Iterable[bytes]:
        start_response(status, [("Content-Length", length)] if length is not None else [])
        return ClosingIterator(body, on_close)

    first, *rest = pieces(app)
    head, _, begun = first.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status.encode())
    assert [begun, *rest] == sent
