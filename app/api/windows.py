"""Windows as responses: who may open one, and on what it is opened."""

import random
from collections.abc import Iterable, Mapping
from typing import Any

from flask import Response, request

from app.api.context import principal, runtail
from app.errors import RuntailError, TooManyStreams
from app.storage.run_store import RunPosition, RunRecord
from app.streaming.gunicorn_worker import HANDED_OVER
from app.streaming.handover import take_over
from app.streaming.windows import DRAIN_RETRY_MS, Opening, Windows, rejection
from app.streaming.wire import NDJSON, Format

HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no", "Vary": "Accept"}
REJECTED_RETRY_MS = (2_000, 5_000)
"""When those come back who were not let in: not all at the same moment."""


class WindowResponse(Response):
    """Its body is a window: on the connection itself where that can be taken over, else iterated over."""

    def __init__(self, windows: Windows, opening: Opening, headers: Mapping[str, str]) -> None:
        super().__init__(iter(()), content_type=_content_type(opening.format), headers=headers)
        self._windows = windows
        self._opening = opening

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The WSGI side."""
        headers = self.get_wsgi_headers(environ).to_wsgi_list()
        plays_back = self._opening.speed is not None  # which has no place in the hub: it is iterated over
        try:
            taken = None if plays_back else take_over(environ, start_response, self.status, headers)
        except BaseException:
            self._windows.admission.release(self._opening.ticket, before_the_end=True)
            raise
        if taken is not None:
            native, chunked = taken
            self._windows.open_on(native, self._opening, chunked=chunked)
            return HANDED_OVER
        window = self._windows.iterate(self._opening, environ.get("gunicorn.socket"))
        self.response = window
        self.call_on_close(window.close)  # a body closed before its first byte runs no `finally`
        return super().__call__(environ, start_response)


def open_window(
    run: RunPosition | RunRecord,
    cursor: int | None,
    format: Format,
    about: Mapping[str, str] | None = None,
    posted_at: float | None = None,
    speed: float | None = None,
) -> Response:
    """The window's response; for HEAD its head alone.

    :param posted_at: as in `Opening`.
    :param speed: as in `Opening`.
    :raises TooManyStreams: the caller has too many windows open; for SSE and for a posted run the response says so.
    """
    windows, headers = runtail().windows, {**HEADERS, **(about or {})}
    if request.method == "HEAD":
        return Response(content_type=_content_type(format), headers=headers)
    if windows.draining():
        return Response(
            format.retry(random.randint(*DRAIN_RETRY_MS)), content_type=_content_type(format), headers=headers
        )
    windows.start()
    try:
        ticket = windows.admission.admit(principal(), request.remote_addr or "", run.id)
    except TooManyStreams as error:
        if format is not NDJSON or posted_at is not None:  # the run that was posted exists: say so
            return reject(error, format, run.id, headers)
        raise
    return WindowResponse(windows, Opening(run, cursor, format, ticket, posted_at, speed), headers)


def reject(error: RuntailError, format: Format, run_id: str, headers: Mapping[str, str] = HEADERS) -> Response:
    """A window that is not opened. 200: after anything else an EventSource would never come back."""
    body = rejection(format, run_id, error.code, _retry_ms())
    return Response(body, content_type=_content_type(format), headers=headers)


def _retry_ms() -> int:
    return random.randint(*REJECTED_RETRY_MS)


def _content_type(format: Format) -> str:
    return f"{format.mimetype}; charset=utf-8"
