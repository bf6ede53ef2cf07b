"""Long loops that let the other greenlets of the process have their turn.

Not responsible for calls into C, which nobody can interrupt: they are given pieces.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from app.protocol.sizes import pieces
from app.protocol.writing import bits
from app.turns import give_way

T = TypeVar("T")

ITEMS_AT_ONCE = 1_000
"""Of a list that goes through one call."""
CHARS_AT_ONCE = 262_144
"""Of a text."""

_decode = json.JSONDecoder().raw_decode
_SPACE = re.compile(r"[ \t\r\n]*")


def paced(items: Iterable[T]) -> Iterator[T]:
    """The items; between two of them the others may have their turn."""
    for item in items:
        yield item
        give_way()


def in_chunks(
    items: Iterable[T], size: int = ITEMS_AT_ONCE, weigh: Callable[[T], float] = lambda _: 0, most: float = 0
) -> Iterator[list[T]]:
    """The items, at most so many at a time, and together no heavier than `most`, but one in any case."""
    chunk: list[T] = []
    weight = 0.0
    for item in items:
        weight += weigh(item)
        if chunk and (len(chunk) == size or weight > most):
            yield chunk
            chunk, weight = [], weigh(item)
        chunk.append(item)
    if chunk:
        yield chunk


def dumps_paced(value: Any) -> str:
    """What `dumps` makes of a value that may be large. Nobody may change it meanwhile."""
    return "".join(paced(bits(value)))


def encoded(text: str, chars: int = CHARS_AT_ONCE) -> Iterator[bytes]:
    """A text that may be large, in UTF-8: so many characters at a time; in between the others may have their turn."""
    return paced(map(str.encode, pieces(text, chars)))


def loads_paced(text: str) -> Any:
    """The value of a JSON text of our own, which may be large: what stands in its outermost lists, item by item.

    :raises ValueError: it is no JSON.
    """
    value, end = _value(text, _skip(text, 0))
    if _skip(text, end) != len(text):
        raise ValueError("There is more than one value.")
    return value


def _value(text: str, at: int) -> tuple[Any, int]:
    """The value that begins there, and where it ends."""
    give_way()
    first = text[at : at + 1]
    if first == "{":
        return _object(text, _skip(text, at + 1))
    return _list(text, _skip(text, at + 1)) if first == "[" else _decode(text, at)


def _object(text: str, at: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    while text[at : at + 1] != "}":
        key, at = _decode(text, _expect(text, at, '"') - 1)
        found[key], at = _value(text, _skip(text, _expect(text, at, ":")))
        at = _next(text, at, "}")
    return found, at + 1


def _list(text: str, at: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    while text[at : at + 1] != "]":
        item, at = _decode(text, at)
        found.append(item)
        at = _next(text, at, "]")
        give_way()
    return found, at + 1


def _next(text: str, at: int, closing: str) -> int:
    """Where the next member begins, or the bracket stands that closes them."""
    at = _skip(text, at)
    return at if text[at : at + 1] == closing else _skip(text, _expect(text, at, ","))


def _expect(text: str, at: int, sign: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != sign:
        raise ValueError(f"{sign!r} is missing at {at}.")
    return at + 1


def _skip(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    assert space
    return space.end()
