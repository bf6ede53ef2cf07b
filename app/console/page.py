"""The page at `/`, and the reducer that it shares with whoever wants it."""

import hashlib
import re
from base64 import b64encode
from pathlib import Path

from flask import Blueprint, Response, request, send_from_directory

blueprint = Blueprint("console", __name__)

_HERE = Path(__file__).parent
_PAGE = (_HERE / "index.html").read_text("utf-8")


def _hashes(tag: str) -> str:
    """CSP sources that allow the page's own inline elements of this tag, and no others."""
    texts = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", _PAGE, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)


HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'self' {_hashes('script')}; style-src {_hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    "img-src 'self' data:; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Swagger UI writes its own inline script and styles; nothing is loaded from, or sent, anywhere else."""


def described(docs: Blueprint) -> Blueprint:
    """The pages of `docs`, with a policy."""

    @docs.after_request
    def protect(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = DOCS_POLICY
        for name in ("Referrer-Policy", "X-Content-Type-Options"):
            response.headers[name] = HEADERS[name]
        return response

    return docs


@blueprint.get("/")
def index() -> Response:
    """The page."""
    response = Response(_PAGE, mimetype="text/html", headers=HEADERS)
    response.add_etag()
    response.make_conditional(request)
    return response


@blueprint.get("/reducer.js")
def reducer() -> Response:
    """The fold of events to state, in JavaScript."""
    return send_from_directory(_HERE, "reducer.js", mimetype="text/javascript")
