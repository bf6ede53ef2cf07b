"""Request bodies before any view: how many bytes one may have, and in how many seconds it has to be there.

For every route at once. Nothing is read before a view asks for it, so nothing of somebody unknown; what a view leaves
unread is not waited for either.
"""

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import gevent
from flask import request
from gunicorn.http.errors import ParseException
from werkzeug.wsgi import ClosingIterator

from app.errors import BadRequest, BodyTimeout, BodyTooLarge
from app.streaming.takeover import HANDED_OVER

BODY_SECONDS: Final = 30.0
"""In which a body has to arrive, from the first look at it on."""
UNREAD_SECONDS: Final = 0.05
"""What a view has not read has most likely arrived all the same: then the connection may be kept."""
LINGER_SECONDS: Final = 1.0
"""So long what a client goes on to send is read and thrown away: one that is still sending would not see the answer."""
PIECE_BYTES: Final = 65_536

Wsgi = Any
"""An application, as PEP 3333 has it."""


def read_body() -> bytes:
    """The body of the request that is being handled.

    :raises BodyTooLarge: it is larger than MAX_BODY_BYTES.
    :raises BodyTimeout: it does not arrive within BODY_SECONDS.
    :raises BadRequest: it is malformed as HTTP, or its client has gone.
    """
    body = request.get_data(cache=False)
    if request.content_length is None:
        request.stream.read(1)  # werkzeug cuts a body of unknown length at the limit; only reading on is refused
    elif len(body) < request.content_length:
        raise BadRequest("The body is shorter than its Content-Length.")
    return body


class BoundedBodies:
    """The WSGI side: puts a deadline on every body, and ends connections on which the rest of one is still to come."""

    def __init__(self, app: Wsgi, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """As PEP 3333 has it."""
        if not (environ.get("HTTP_TRANSFER_ENCODING") or environ.get("CONTENT_LENGTH", "0") not in ("", "0")):
            return self._app(environ, start_response)
        body = environ["wsgi.input"] = _Body(environ["wsgi.input"], environ.get("CONTENT_LENGTH"), self._max_bytes)
        answer: Iterable[bytes] = self._app(environ, start_response)
        force_close = getattr(getattr(start_response, "__self__", None), "force_close", None)
        if answer is HANDED_OVER or force_close is None or body.skip(UNREAD_SECONDS, PIECE_BYTES):
            return answer
        force_close()  # gunicorn's, which ignores a header that says so
        return ClosingIterator(answer, [body.linger])


class _Body:
    """A body as it arrives."""

    def __init__(self, raw: Any, length: str | None, max_bytes: int) -> None:
        """:param length: as it was declared; None: it ends where it ends."""
        self._raw = raw
        self._left = int(length) if length and length.isdigit() else None
        self._max_bytes = max_bytes
        self._read = 0
        self._over = False
        self._deadline: float | None = None

    def read(self, size: int = -1) -> bytes:
        """As of a file.

        :raises BodyTimeout: the time is over.
        :raises BodyTooLarge: there is more than there may be.
        :raises BadRequest: it is malformed.
        :raises OSError: the client has gone.
        """
        if self._deadline is None:
            self._deadline = time.monotonic() + BODY_SECONDS
        late = BodyTimeout(f"The body did not arrive within {BODY_SECONDS:.0f} s.")
        with gevent.Timeout(max(0.001, self._deadline - time.monotonic()), late):
            data = self._take(size)
        if self._read > self._max_bytes:
            raise BodyTooLarge(f"A body has at most {self._max_bytes:,} bytes.")
        return data

    def _take(self, size: int) -> bytes:
        try:
            data: bytes = self._raw.read(size)
        except ParseException as error:
            raise BadRequest(f"The body is malformed: {error}"[:200]) from None
        self._read += len(data)
        self._over = not data or self._read == self._left
        return data

    def skip(self, seconds: float, most: float = float("inf")) -> bool:
        """Throw away what is still to come, within so many seconds and bytes. True: nothing is."""
        with suppress(OSError, BadRequest, gevent.Timeout), gevent.Timeout(seconds):
            while not self._over and most > 0:
                most -= len(self._take(PIECE_BYTES))
        return self._over

    def linger(self) -> None:
        """Keep the client from seeing a connection that is reset, in place of the answer."""
        self.skip(LINGER_SECONDS)
