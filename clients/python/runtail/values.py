"""Makes values fit to be stored and sent: faithful JSON, storable text, bounded depth; and their texts. Pure.

Responsible for what may stand inside a payload at all. Not responsible for which fields a payload has, which only the
server knows, nor for what is shown of a value (`redaction`).
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import lru_cache
from typing import Any, TypeAlias

from runtail.errors import InvalidJson, TooDeep
from runtail.texts import clean_text
from runtail.time_limits import out_of_time

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

Turn = Callable[[], object]
"""Lets others have their turn, where there are others."""

MAX_DEPTH = 64
"""Nested containers a value may have. A scalar has depth 0, `[]` has 1."""

MAX_INT = 2**53 - 1
"""The largest integer that every JSON reader keeps exact (IEEE 754 doubles)."""


def no_turn() -> None:
    """There is nobody else."""


def clean(value: object, turn: Turn = no_turn) -> Json:
    """A deep copy of `value` as plain JSON; idempotent.

    In text and keys NUL and lone surrogates become U+FFFD (PostgreSQL stores neither), and surrogate pairs
    are joined. Tuples become lists. Of two keys that become equal the last one wins.

    :param turn: called now and then: before each container within.
    :raises InvalidJson: NaN, infinity, an integer beyond ±(2^53-1), a key that is not text, whatever else
        has no JSON form. Names the path.
    :raises TooDeep: beyond MAX_DEPTH, so also a value that contains itself. Names the path.
    """
    try:
        return _clean(value, 0, turn)
    except _Unfit as unfit:
        raise unfit.error(f"{unfit.reason} at {unfit.path()}") from None


class _Unfit(Exception):
    """Carries the reason up through the containers, which add their keys to the path on the way."""

    def __init__(self, error: type[InvalidJson | TooDeep], reason: str) -> None:
        self.error = error
        self.reason = reason
        self.keys: list[str] = []

    def path(self) -> str:
        return "$" + "".join(reversed(self.keys))


def _clean(value: object, depth: int, turn: Turn) -> Json:
    # Ordered by how often each kind occurs. Subclasses (StrEnum, IntEnum, numpy.float64) become plain.
    if isinstance(value, str):
        return clean_text(value if type(value) is str else str.__str__(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _clean_int(value)
    if isinstance(value, float):
        return _clean_float(value)
    if isinstance(value, Mapping):
        turn()
        return _clean_mapping(value, _deeper(depth), turn)
    if isinstance(value, list | tuple):
        turn()
        return _clean_items(value, _deeper(depth), turn)
    raise _Unfit(InvalidJson, f"a {type(value).__name__} has no JSON form")


def _clean_int(value: int) -> int:
    if not -MAX_INT <= value <= MAX_INT:
        raise _Unfit(InvalidJson, "an integer beyond ±(2^53-1)")
    return int(value)


def _clean_float(value: float) -> float:
    if not math.isfinite(value):
        raise _Unfit(InvalidJson, "a number that is not finite")
    return float(value)


def _deeper(depth: int) -> int:
    if depth == MAX_DEPTH:
        raise _Unfit(TooDeep, f"more than {MAX_DEPTH} levels")
    return depth + 1


def _clean_mapping(value: Mapping[object, object], depth: int, turn: Turn) -> dict[str, Json]:
    cleaned: dict[str, Json] = {}
    for key, item in value.items() if type(value) is dict else _items_of(value):
        if not isinstance(key, str):
            raise _Unfit(InvalidJson, f"a key that is not text ({type(key).__name__})")
        try:
            cleaned[clean_text(str.__str__(key))] = _clean(item, depth, turn)
        except _Unfit as unfit:
            unfit.keys.append(f".{clean_text(key)[:40]}")
            raise
    return cleaned


def _items_of(value: Mapping[object, object]) -> list[tuple[object, object]]:
    try:
        return list(value.items())
    except Exception as error:  # somebody's own mapping, which may do anything
        if out_of_time(error):
            raise
        raise _Unfit(InvalidJson, f"a {type(value).__name__} whose items cannot be read") from error


def _clean_items(value: list[object] | tuple[object, ...], depth: int, turn: Turn) -> list[Json]:
    cleaned: list[Json] = []
    for index, item in enumerate(value):
        try:
            cleaned.append(_clean(item, depth, turn))
        except _Unfit as unfit:
            unfit.keys.append(f"[{index}]")
            raise
    return cleaned


dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
"""The compact JSON text of a clean value."""


def timestamp(moment: datetime | None = None) -> str:
    """The moment, by default now, as an envelope's ts: UTC with milliseconds, 2026-06-12T12:00:01.234Z."""
    if moment is None:
        seconds, ms = divmod(time.time_ns() // 1_000_000, 1000)
        return f"{_second(seconds)}.{ms:03d}Z"
    if moment.tzinfo is None:
        raise ValueError("the moment has no time zone")
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


@lru_cache(maxsize=4)  # thousands of events share a second, and formatting it is a third of `encode`
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def draw() -> float:
    """A random number from 0 up to 1. Nothing that seeds Python's generator changes it, and no fork repeats it."""
    return float((int.from_bytes(os.urandom(7), "big") >> 3) * 2**-53)
