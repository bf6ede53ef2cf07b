"""Request bodies: strict JSON, cleaned once. What passes can be stored and sent as it is."""

from typing import Any

from flask import Request
from webargs.flaskparser import FlaskParser

from app.api.bodies import read_body
from app.errors import UnsupportedMediaType
from app.protocol.events import Json, clean
from app.protocol.reading import loads
from app.turns import give_way


class StrictParser(FlaskParser):
    """webargs' parser over `parse`, for JSON bodies only."""

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
