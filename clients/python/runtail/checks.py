"""What an agent gives to its calls, checked where it is given: texts, numbers, times. Pure.

`what` names the call and its argument, as in `run.sleep: seconds`. Each raises InvalidCall with a sentence that begins
like that.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from numbers import Real
from os import PathLike, fspath
from typing import Any

from runtail.errors import InvalidCall
from runtail.texts import clean_text

SECONDS_MAX = 100 * 365 * 86_400
"""A hundred years: no wait is longer."""
TIMES_MAX = 1_000_000


def raw_text(value: object, what: str) -> str:
    """A text as it is; one of a subclass, such as an Enum's member, is the text that it is made of."""
    if not isinstance(value, str):
        raise InvalidCall(f"{what} is a text, not {_kind(value)}.")
    return str.__str__(value)


def text(value: object, what: str) -> str:
    """A text, without NUL and lone surrogates."""
    return clean_text(raw_text(value, what))


def may_text(value: object, what: str) -> str | None:
    """As `text`; or None."""
    return None if value is None else text(value, what)


def texts(value: object, what: str) -> list[str]:
    """Several texts; one text is not taken for its letters."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidCall(f"{what} are several texts, not {_kind(value)}.")
    return [text(item, what) for item in value]


def number(value: object, what: str) -> float:
    """A finite number."""
    if type(value) is bool or not isinstance(value, Real | Decimal):
        raise InvalidCall(f"{what} is a number, not {_kind(value)}.")
    try:
        found = float(value)
    except (OverflowError, ValueError):
        found = math.inf
    if not math.isfinite(found):
        raise InvalidCall(f"{what} is not a finite number.")
    return found


def seconds(value: object, what: str) -> float:
    """A time, as a number or a timedelta, at most SECONDS_MAX; what lies in the past is now."""
    found = value.total_seconds() if isinstance(value, timedelta) else number(value, what)
    if found > SECONDS_MAX:
        raise InvalidCall(f"{what} is more than {SECONDS_MAX:,}, a hundred years.")
    return max(0.0, found)


def may_seconds(value: object, what: str) -> float | None:
    """As `seconds`; or None."""
    return None if value is None else seconds(value, what)


def times(value: object, what: str) -> int:
    """How often: a whole number from 0 on."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= TIMES_MAX:
        raise InvalidCall(f"{what} is a whole number from 0 to {TIMES_MAX:,}.")
    return int(value)


def function(value: object, what: str) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise InvalidCall(f"{what} is a function, not {_kind(value)}.")
    return value


def iterable(value: object, what: str) -> None:
    """Something that a loop can go through."""
    if not isinstance(value, Iterable):
        raise InvalidCall(f"{what} is something that yields texts, not {_kind(value)}.")


def program(argv: object, what: str) -> Sequence[Any]:
    """A program and its arguments: texts or paths."""
    if isinstance(argv, str | bytes | PathLike) or not isinstance(argv, Sequence) or not argv:
        raise InvalidCall(f"{what} is a list that begins with a program, not {_kind(argv)}.")
    for argument in argv:
        for_system(argument, what)
    return argv


def for_system(value: object, what: str) -> str:
    """A text or a path that the system takes: it ends texts at NUL."""
    found = fspath(value) if isinstance(value, PathLike) else value
    if not isinstance(found, str):
        raise InvalidCall(f"{what}: a text is wanted, not {_kind(value)}.")
    if "\0" in found:
        raise InvalidCall(f"{what}: a text holds NUL, which no program can be given.")
    return found


def mapping(value: object, what: str) -> Mapping[str, Any]:
    """A mapping whose keys are texts."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidCall(f"{what} is a mapping with texts for its keys.")
    return value


def environment(value: object, what: str) -> None:
    """The environment of a program."""
    for pair in mapping(value, what).items():
        for part in pair:
            for_system(part, what)


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"
