"""Windows as responses: who may open one, and on what it is opened."""

import random
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from flask import Response, request

from app.api.context import principal, runtail
from app.api.negotiation import NDJSON_TYPE, SSE_TYPE, accepted_type, names
from app.api.problems import problem
from app.errors import RuntailError, StoreUnavailable, TooManyStreams
from app.storage.run_store import RunPosition, RunRecord
from app.streaming.admission import Ticket
from app.streaming.handover import take_over
from app.streaming.opening import DRAIN_RETRY_MS, Opening, Windows, rejection
from app.streaming.takeover import HANDED_OVER
from app.streaming.windows.iterated import Iterated
from app.streaming.windows.multi import NO_RUN
from app.streaming.wire import NDJSON, SSE, Format

HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no", "Vary": "Accept"}
REJECTED_RETRY_MS = (2_000, 5_000)
"""When those come back who were not let in: not all at the same moment."""

Open = Callable[[socket.socket | None], Iterated]


class WindowResponse(Response):
    """Its body is a window: on the connection itself where that can be taken over, else iterated over."""

    def __init__(self, windows: Windows, opening: Opening, headers: Mapping[str, str]) -> None:
        super().__init__(iter(()), content_type=_content_type(opening.format), headers=headers)
        self._windows = windows
        self._opening = opening

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The WSGI side."""
        headers = self.get_wsgi_headers(environ).to_wsgi_list()
        try:
            taken = take_over(environ, start_response, self.status, headers)
        except BaseException:
            self._windows.admission.release(self._opening.ticket, before_the_end=True)
            raise
        if taken is not None:
            self._windows.open_on(taken, self._opening)
            return HANDED_OVER
        window = self._windows.iterate(self._opening, environ.get("gunicorn.socket"))
        self.response = window
        self.call_on_close(window.close)  # a body closed before its first byte runs no `finally`
        return super().__call__(environ, start_response)


class IteratedResponse(Response):
    """Its body is iterated over, on whatever connection it is."""

    def __init__(self, format: Format, headers: Mapping[str, str], open: Open, give_up: Callable[[], None]) -> None:
        """
        :param open: opens what is iterated over, given the socket where it is known.
        :param give_up: called where it cannot be opened.
        """
        super().__init__(iter(()), content_type=_content_type(format), headers=headers)
        self._open = open
        self._give_up = give_up

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """The WSGI side."""
        try:
            body = self._open(environ.get("gunicorn.socket"))
        except BaseException:
            self._give_up()
            raise
        self.response = body
        self.call_on_close(body.close)
        return super().__call__(environ, start_response)


def open_iterated(format: Format, run_ids: Sequence[str], open: Callable[[Ticket], Open]) -> Response:
    """The response of a window that is iterated over, as `open_window` has it for one run.

    :param run_ids: the runs that it shows and that count as watched.
    :param open: given the window's ticket, what opens it.
    :raises TooManyStreams: the caller has too many windows open; for SSE the response says so.
    """
    windows = runtail().windows
    ticket = _admit(windows, format, run_ids, NO_RUN, HEADERS, in_band=format is not NDJSON)
    if isinstance(ticket, Response):
        return ticket
    return IteratedResponse(format, HEADERS, open(ticket), _give_up(windows, ticket))


def open_window(
    run: RunPosition | RunRecord,
    cursor: int | None,
    format: Format,
    about: Mapping[str, str] | None = None,
    posted_at: float | None = None,
    speed: float | None = None,
    *,
    parts: bool = False,
) -> Response:
    """The window's response; for HEAD its head alone.

    :param posted_at: as in `Opening`.
    :param speed, parts: as in `Opening`.
    :raises TooManyStreams: the caller has too many windows open; for SSE and for a posted run the response says so.
    """
    windows, headers = runtail().windows, {**HEADERS, **(about or {})}
    in_band = format is not NDJSON or posted_at is not None  # the run that was posted exists: say so
    ticket = _admit(windows, format, [run.id], run.id, headers, in_band=in_band)
    if isinstance(ticket, Response):
        return ticket
    opening = Opening(run, cursor, format, ticket, posted_at, speed, parts)
    if speed is None:
        return WindowResponse(windows, opening, headers)
    return IteratedResponse(format, headers, partial(windows.iterate, opening), _give_up(windows, ticket))


def _admit(
    windows: Windows, format: Format, run_ids: Sequence[str], told: str, headers: Mapping[str, str], *, in_band: bool
) -> Ticket | Response:
    """The ticket of a window onto these runs, or the answer where there is to be none.

    :param told: the `run_id` of a refusal.
    :param in_band: a refusal is a response of the window's format, not an error.
    :raises TooManyStreams: the caller has too many windows open.
    """
    if (response := _without_window(windows, format, headers)) is not None:
        return response
    windows.start()
    try:
        return windows.admission.admit(principal(), request.remote_addr or "", *run_ids)
    except TooManyStreams as error:
        if in_band:
            return reject(error, format, told, headers)
        raise


def _give_up(windows: Windows, ticket: Ticket) -> Callable[[], None]:
    return partial(windows.admission.release, ticket, before_the_end=True)


def _without_window(windows: Windows, format: Format, headers: Mapping[str, str]) -> Response | None:
    """The answer to a request that gets no window, and is not to: HEAD, or the process ends. None: open one."""
    if request.method == "HEAD":
        return Response(content_type=_content_type(format), headers=headers)
    if windows.draining():
        retry = format.retry(random.randint(*DRAIN_RETRY_MS))
        return Response(retry, content_type=_content_type(format), headers=headers)
    return None


def reject(error: RuntailError, format: Format, run_id: str, headers: Mapping[str, str] = HEADERS) -> Response:
    """A window that is not opened. 200: after anything else an EventSource would never come back."""
    body = rejection(format, run_id, error.code, _retry_ms())
    return Response(body, content_type=_content_type(format), headers=headers)


def reject_unavailable(error: StoreUnavailable) -> Response:
    """Where only windows are served: 503; but who names server-sent events, as an EventSource does, would never come
    back after that."""
    named = names(SSE_TYPE)
    if named and accepted_type(SSE_TYPE, NDJSON_TYPE) == SSE_TYPE:
        return reject(error, SSE, NO_RUN)
    return problem(error)


def _retry_ms() -> int:
    return random.randint(*REJECTED_RETRY_MS)


def _content_type(format: Format) -> str:
    return f"{format.mimetype}; charset=utf-8"
