"""Values as JSON text: small ones in one go, large ones bit by bit, so that whoever writes them can pause. Pure."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from json.encoder import encode_basestring as _quoted
from typing import Any, Final

from app.protocol.sizes import pieces
from runtail.values import dumps

Pace = Callable[[Iterator[str]], Iterator[str]]
"""Hands pieces on one by one; may let others have their turn in between."""

PIECE: Final = 32_768
"""Of what becomes text in one call: characters, and ELEMENT for each value. One key alone may have more."""
ELEMENT: Final = 8


def bits(value: Any) -> Iterator[str]:
    """The text that `dumps` makes of the value, bit by bit: each is made of no more than PIECE, or of one key."""
    if isinstance(value, dict) and _weight(value, PIECE) >= PIECE:
        yield from _joined("{}", _parts(value.items(), as_dict=True))
    elif isinstance(value, list | tuple) and _weight(value, PIECE) >= PIECE:
        yield from _joined("[]", _parts(((None, item) for item in value), as_dict=False))
    elif isinstance(value, str):
        yield from text_bits(value)
    else:
        yield dumps(value)


def text_bits(text: str) -> Iterator[str]:
    """As `bits`, of a text."""
    if len(text) <= PIECE:
        yield _quoted(text)
        return
    yield '"'
    for piece in pieces(text, PIECE):
        yield _quoted(piece)[1:-1]
    yield '"'


def _joined(brackets: str, parts: Iterable[Iterable[str]]) -> Iterator[str]:
    before = brackets[0]
    for part in parts:
        yield before
        yield from part
        before = ","
    yield brackets[1]


def _parts(members: Iterable[tuple[Any, Any]], *, as_dict: bool) -> Iterator[Iterable[str]]:
    """Members of a container: the light ones together, each heavy one by itself."""
    together: list[tuple[Any, Any]] = []
    weight = 0
    for key, member in members:
        more = _weight(member, PIECE) + (len(key) if as_dict else 0)
        if together and weight + more >= PIECE:
            yield [_text_of(together, as_dict=as_dict)]
            together, weight = [], 0
        if more < PIECE:
            together.append((key, member))
            weight += more
        else:
            yield _heavy(key, member, as_dict=as_dict)
    if together:
        yield [_text_of(together, as_dict=as_dict)]


def _heavy(key: Any, member: Any, *, as_dict: bool) -> Iterator[str]:
    if as_dict:
        yield f"{dumps(key)}:"
    yield from bits(member)


def _text_of(members: list[tuple[Any, Any]], *, as_dict: bool) -> str:
    return dumps(dict(members) if as_dict else [member for _, member in members])[1:-1]


def _weight(value: Any, most: int) -> int:
    """What the value weighs; once that comes to `most`, the rest of it is not looked at."""
    if isinstance(value, str):
        return ELEMENT + len(value)
    if not isinstance(value, dict | list | tuple):
        return ELEMENT
    weight = ELEMENT
    if isinstance(value, dict):
        weight += sum(map(len, islice(value, most)))
        value = value.values()
    for member in value:
        if weight >= most:
            break
        weight += _weight(member, most - weight)
    return weight
