"""The page at `/`, and the reducer that it shares with whoever wants it."""

from pathlib import Path

from flask import Blueprint, Response, send_from_directory

blueprint = Blueprint("console", __name__)

_HERE = Path(__file__).parent


@blueprint.get("/")
def index() -> Response:
    """The page."""
    return send_from_directory(_HERE, "index.html")


@blueprint.get("/reducer.js")
def reducer() -> Response:
    """The fold of events to state, in JavaScript."""
    return send_from_directory(_HERE, "reducer.js", mimetype="text/javascript")
