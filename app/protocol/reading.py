"""JSON text from outside: read strictly, and bounded before a single value of it is made. Pure.

Not responsible for how many bytes there may be, nor for what may be stored (`cleaning`).
"""

import json
import re
from typing import Any, Final, NoReturn

from app.errors import InvalidJson, TooDeep, TooManyElements
from runtail.values import MAX_DEPTH

ELEMENTS_MAX: Final = 20_000
"""Members of objects and items of lists, of all levels together, that one JSON text may have. What follows the reading
(cleaning, redaction, schemas, hooks) takes a microsecond or more for each, while every other client waits."""

_TOKENS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[,\[{\]}]', re.DOTALL)
"""A string, which is skipped, or a sign that begins an element or ends a container. No byte is looked at twice."""


def loads(text: bytes) -> Any:
    """The value of a JSON text, not cleaned yet.

    :raises TooManyElements: it has more than ELEMENTS_MAX.
    :raises InvalidJson: not JSON in UTF-8, or a number or a repeated key that JSON readers do not agree on.
    :raises TooDeep: nested so deeply that it cannot be read.
    """
    check_elements(text)
    try:
        return json.loads(text.decode(), parse_constant=_refuse, object_pairs_hook=_object)
    except RecursionError:
        raise TooDeep("The JSON is nested too deeply.") from None
    except ValueError as error:  # malformed text, bad UTF-8, an integer of thousands of digits
        raise InvalidJson(f"This is not valid JSON: {error}"[:300]) from None


def check_elements(text: bytes) -> None:
    """
    :raises TooManyElements: the JSON text has more than ELEMENTS_MAX.
    :raises TooDeep: before that, it is nested deeper than MAX_DEPTH.
    """
    if sum(map(text.count, (b",", b"[", b"{"))) <= ELEMENTS_MAX:  # those inside of strings too: most texts end here
        return
    elements = depth = 0
    for token in _TOKENS.finditer(text):
        sign = text[token.start()]
        elements += sign in b",[{"
        depth += (sign in b"[{") - (sign in b"]}")
        if depth < 0:
            return  # this is no JSON; whoever reads it finds out here
        if depth > MAX_DEPTH:
            raise TooDeep(f"More than {MAX_DEPTH} levels of nesting.")
        if elements > ELEMENTS_MAX:
            raise TooManyElements(f"At most {ELEMENTS_MAX:,} list items and object members, at all levels together.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidJson("A key stands twice in the same object.")
    return found


def _refuse(name: str) -> NoReturn:
    raise InvalidJson(f"{name} is not JSON.")
