"""Request bodies: strict JSON, cleaned once. What passes can be stored and sent as it is.

Queries as webargs has them, but that an empty one is loaded once.
"""

from typing import Any

from flask import Request, request
from webargs.flaskparser import FlaskParser

from app.api.bodies import read_body
from app.errors import UnsupportedMediaType
from app.protocol.events import Json, clean
from app.protocol.reading import loads
from app.turns import give_way


class StrictParser(FlaskParser):
    """webargs' parser over `parse`, for JSON bodies only."""

    def __init__(self) -> None:
        super().__init__()
        self._of_nothing: dict[Any, dict[str, Any]] = {}
        """By schema: what an empty query is. Most are, and each schema is one of a view."""

    def parse(self, argmap: Any, req: Request | None = None, *, location: str | None = None, **options: Any) -> Any:
        """As webargs' own, which takes longer for nothing than the rest of a view for something."""
        if location != "query" or (req or request).query_string:
            return super().parse(argmap, req, location=location, **options)
        if argmap not in self._of_nothing:
            self._of_nothing[argmap] = super().parse(argmap, req, location=location, **options)
        return dict(self._of_nothing[argmap])

    def load_json(self, req: Request, schema: Any) -> Any:
        if not req.is_json:
            raise UnsupportedMediaType("Send the body as `Content-Type: application/json`.")
        return parse(read_body())


def parse(body: bytes) -> Json:
    """
    :raises TooManyElements, InvalidJson, TooDeep: as `loads`.
    :raises TooDeep: nested deeper than the limit, too.
    """
    value = loads(body)
    give_way()
    cleaned = clean(value, give_way)
    give_way()
    return cleaned
