"""What marshmallow has against a request, as a sentence."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from runtail.errors import DETAIL_CHARS

PATH_MAX_CHARS: Final = 100
WHOLE: Final = "_schema"
"""marshmallow's name for what is about no single field."""
LOCATIONS: Final = ("json", "query", "headers")
"""webargs' names for where something stands, which everybody can see."""


def sentence_of(messages: Any) -> str:
    """`timeout_s: Must be at least 1. input.a: Not a valid string.`; of many as many as an error has room for.

    :param messages: texts, in lists and by names of fields, at any depth.
    """
    said: list[str] = []
    size = 0
    for path, text in _texts(messages, ()):
        said.append(f"{_named(path)}: {text}" if path else text)
        size += len(said[-1])
        if size > DETAIL_CHARS:
            break
    return " ".join(said)


def _texts(messages: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(messages, Mapping):
        for name, inner in messages.items():
            is_no_field = name == WHOLE or (not path and name in LOCATIONS and isinstance(inner, Mapping))
            yield from _texts(inner, path if is_no_field else (*path, str(name)))
    elif isinstance(messages, (list, tuple)):
        for inner in messages:
            yield from _texts(inner, path)
    else:
        yield path, str(messages)


def _named(path: tuple[str, ...]) -> str:
    return ".".join(path)[:PATH_MAX_CHARS]
