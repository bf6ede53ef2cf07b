"""Responses in one send: gunicorn sends a head by itself, which wakes the client for nothing."""

from collections.abc import Iterable, Iterator
from typing import Any

from gunicorn.http.wsgi import Response
from werkzeug.wsgi import ClosingIterator

from app.api.bodies import Wsgi


class OneSend:
    """The WSGI side: has gunicorn's response keep its head until the first bytes of the body, or its end."""

    def __init__(self, app: Wsgi) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """As PEP 3333 has it."""
        answer: Iterable[bytes] = self._app(environ, start_response)
        response = getattr(start_response, "__self__", None)
        if type(response) is not Response or type(answer) is not ClosingIterator:
            return answer  # another server, a connection that was taken over, or a file, which the kernel sends
        kept = _Kept(response.sock)
        response.sock = kept  # type: ignore[assignment]  # all that gunicorn does with it here is sendall
        return _Answer(answer, kept)


class _Answer:
    """A body whose head is sent at its end at the latest."""

    def __init__(self, body: ClosingIterator, kept: "_Kept") -> None:
        self._body = body
        self._kept = kept

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """As PEP 3333 has it."""
        try:
            self._kept.flush()
        finally:
            self._body.close()


class _Kept:
    """A connection that sends what it is given with what it is given next."""

    __slots__ = ("_first", "_socket")

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._first: bytes | None = None

    def sendall(self, data: bytes) -> None:
        """As of a socket."""
        if self._first is None:
            self._first = data
            return
        first, self._first = self._first, b""
        self._socket.sendall(first + data)

    def flush(self) -> None:
        """Nothing comes next."""
        if self._first:
            self.sendall(b"")
