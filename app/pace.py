"""Long loops that let the other greenlets of the process have their turn.

Not responsible for calls into C, which nobody can interrupt: they are given pieces.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from app.protocol.events import dumps
from app.turns import give_way

T = TypeVar("T")

ITEMS_AT_ONCE = 1_000
"""Of a list that becomes text in one call."""


def paced(items: Iterable[T]) -> Iterator[T]:
    """The items; between two of them the others may have their turn."""
    for item in items:
        yield item
        give_way()


def in_chunks(items: Iterable[T], size: int = ITEMS_AT_ONCE) -> Iterator[list[T]]:
    """The items, at most so many at a time."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk


def dumps_paced(value: Mapping[str, Any]) -> str:
    """What `dumps` makes of the object, whose lists may be long."""
    return "{" + ",".join(f"{dumps(name)}:{_member(member)}" for name, member in value.items()) + "}"


def _member(value: Any) -> str:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return dumps(value)
    return "[" + ",".join(dumps(chunk)[1:-1] for chunk in paced(in_chunks(value))) + "]"
