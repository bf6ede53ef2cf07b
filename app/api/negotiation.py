"""What a request asks for beside its path: a media type, and how long it would wait."""

from typing import Final

from flask import request
from werkzeug.http import parse_dict_header

from app.errors import NotAcceptable

SSE_TYPE: Final = "text/event-stream"
NDJSON_TYPE: Final = "application/x-ndjson"
JSON_TYPE: Final = "application/json"
WAIT_MAX_SECONDS = 25
"""Of `Prefer: wait=N`. Some routers give up on an answer after 30 s."""


def accepted_type(*offered: str) -> str:
    """The offered media type that `Accept` prefers; the first one where it has no preference.

    :raises NotAcceptable: none of them will do.
    """
    accepted = request.accept_mimetypes
    wanted = accepted.best_match(offered) if accepted else offered[0]
    if wanted is None:
        raise NotAcceptable(f"This comes as {', '.join(offered)}.")
    return wanted


def preferred_wait() -> int:
    """Seconds of `Prefer: wait=N`; 0 where there is no such preference. One that means nothing is ignored."""
    wait = parse_dict_header(", ".join(request.headers.getlist("Prefer"))).get("wait") or ""
    return min(int(wait), WAIT_MAX_SECONDS) if wait.isascii() and wait.isdigit() and len(wait) < 10 else 0
