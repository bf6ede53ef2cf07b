"""What a request asks for beside its path: a media type, and how long it would wait."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from flask import Response, request
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header, parse_dict_header

from app.errors import NotAcceptable

SSE_TYPE: Final = "text/event-stream"
NDJSON_TYPE: Final = "application/x-ndjson"
JSON_TYPE: Final = "application/json"
WAIT_MAX_SECONDS = 25
"""Of `Prefer: wait=N`. Some routers give up on an answer after 30 s."""


ACCEPTS_KNOWN = 100
"""`Accept` headers whose meaning is remembered: a client always sends the same one."""


def accepted_type(*offered: str) -> str:
    """The offered media type that `Accept` prefers; the first one where it has no preference.

    :raises NotAcceptable: none of them will do.
    """
    preferred = _preferred(request.headers.get("Accept", ""), offered)
    if preferred is None:
        raise NotAcceptable(f"This comes as {', '.join(offered)}.")
    return preferred


@lru_cache(ACCEPTS_KNOWN)
def _preferred(accept: str, offered: tuple[str, ...]) -> str | None:
    """The one of the offered types that a header prefers; None: none of them will do."""
    ranges = [(_plain(name), quality) for name, quality in parse_accept_header(accept, MIMEAccept)]
    if not ranges:
        return offered[0]
    qualities = [_quality(media_type, ranges) for media_type in offered]
    return offered[qualities.index(max(qualities))] if max(qualities) > (0, 0) else None


def names(media_type: str) -> bool:
    """`Accept` names the media type itself, not only a range that it is in."""
    return any(_plain(name) == media_type for name in request.accept_mimetypes.values())


def _plain(name: str) -> str:
    """A media range without its parameters: there is one form of each type, whatever is said of it."""
    return name.partition(";")[0].strip().lower()


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """Of the most specific range that the type is in: what it is worth, and how specific that is. (0, 0): in none."""
    for specific, wanted in ((2, media_type), (1, media_type.partition("/")[0] + "/*"), (0, "*/*")):
        found = [quality for name, quality in ranges if name == wanted]
        if found:
            return (max(found), specific) if max(found) > 0 else (0, 0)
    return 0, 0


def no_content(headers: Mapping[str, str] | None = None) -> Response:
    """204, which has no body and so no media type: Flask would name one."""
    answer = Response(status=204, headers=headers)
    del answer.headers["Content-Type"]
    return answer


def preferred_wait() -> int:
    """Seconds of `Prefer: wait=N`; 0 where there is no such preference. One that means nothing is ignored."""
    preferences = request.headers.getlist("Prefer")
    wait = (parse_dict_header(", ".join(preferences)).get("wait") if preferences else None) or ""
    return min(int(wait), WAIT_MAX_SECONDS) if wait.isascii() and wait.isdigit() and len(wait) < 10 else 0
