"""Request bodies: strict JSON, cleaned once. What passes can be stored and sent as it is."""

import json
from typing import Any, NoReturn

from flask import Request
from webargs.flaskparser import FlaskParser

from app.errors import InvalidJson, TooDeep, UnsupportedMediaType
from app.protocol.events import Json, clean


class StrictParser(FlaskParser):
    """webargs' parser over `parse`, for JSON bodies only."""

    def load_json(self, req: Request, schema: Any) -> Any:
        if not req.is_json:
            raise UnsupportedMediaType("Send the body as `Content-Type: application/json`.")
        body = req.get_data()
        if req.content_length is None:
            req.stream.read(1)  # werkzeug cuts a body of unknown length at the limit; only reading on is refused
        return parse(body)


def parse(body: bytes) -> Json:
    """
    :raises InvalidJson: not JSON in UTF-8, or a number or a repeated key that JSON readers do not agree on.
    :raises TooDeep: nested deeper than the limit.
    """
    return clean(loads(body))


def loads(body: bytes) -> Any:
    """As `parse`, but not cleaned yet: for what is cleaned anyway."""
    try:
        return json.loads(body.decode(), parse_constant=_refuse, object_pairs_hook=_object)
    except RecursionError:
        raise TooDeep("The body is nested too deeply.") from None
    except ValueError as error:  # malformed text, bad UTF-8, an integer of thousands of digits
        raise InvalidJson(f"The body is not valid JSON: {error}"[:300]) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidJson("A key stands twice in the same object.")
    return found


def _refuse(name: str) -> NoReturn:
    raise InvalidJson(f"{name} is not JSON.")
