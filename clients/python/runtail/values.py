"""Makes values fit to be sent: faithful JSON, storable text, previews, secrets left out. Pure."""

import json
import math
from collections.abc import Mapping
from typing import Any

from runtail.errors import InvalidEvent
from runtail.secret_names import is_secret

MAX_DEPTH = 64
MAX_INT = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""
PREVIEW_BYTES = 2_048
"""A result with a longer JSON text is shown by its beginning …"""
CUT_BYTES = 1_000
"""… which is so long: its quotes may double when it becomes JSON in turn."""
SHOWN_WHOLE_BYTES = 8_000
"""What is longer before secrets are left out is shown by its beginning too."""
SUMMARY_CHARS = 200
REDACTED = "[redacted]"

dumps = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
"""The compact JSON text of a clean value, on one line."""


def clean_text(text: str) -> str:
    """The text without NUL and lone surrogates: each becomes U+FFFD. Surrogate pairs are joined."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return str(text)


def clean(value: object, depth: int = MAX_DEPTH) -> Any:
    """A copy of the value as plain JSON with clean text; tuples become lists.

    :param depth: levels of nesting that are left.
    :raises InvalidEvent: it has no JSON form, or none that every reader reads alike.
    """
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if not isinstance(value, Mapping | list | tuple):
        raise InvalidEvent(f"A {type(value).__name__} has no JSON form.")
    if depth == 0:
        raise InvalidEvent(f"JSON of more than {MAX_DEPTH} levels is not taken.")
    if isinstance(value, Mapping):
        return {_key(key): clean(item, depth - 1) for key, item in value.items()}
    return [clean(item, depth - 1) for item in value]


def _number(value: int | float) -> int | float:
    if isinstance(value, int):
        if abs(value) > MAX_INT:
            raise InvalidEvent("An integer beyond ±(2^53-1) is not taken: readers do not agree on it.")
        return int(value)
    if not math.isfinite(value):
        raise InvalidEvent("A number that is not finite has no JSON form.")
    return float(value)


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidEvent(f"A key that is a {type(key).__name__} has no JSON form.")
    return clean_text(key)


def preview(result: object) -> dict[str, Any]:
    """What may be shown of a tool's result: {preview, truncated, bytes}. One that is not JSON is shown by its type."""
    try:
        cleaned = clean(result)
    except Exception:  # InvalidEvent, or whatever the items of a lazy mapping raise
        cleaned = f"<{type(result).__name__}>"
    whole = len(dumps(cleaned).encode())
    visible = redact(cleaned)
    text = dumps(visible).encode()
    if whole <= SHOWN_WHOLE_BYTES and len(text) <= PREVIEW_BYTES:
        return {"preview": visible, "truncated": False, "bytes": len(text)}
    return {"preview": text[:CUT_BYTES].decode(errors="ignore"), "truncated": True, "bytes": whole}


def shown(arguments: Mapping[str, Any]) -> str:
    """The arguments that may be shown, as a line of text."""
    return clean_text(", ".join(f"{name}={_as_text(name, value)}" for name, value in arguments.items()))[:SUMMARY_CHARS]


def _as_text(name: str, value: object) -> str:
    if is_secret(name, value):
        return REDACTED
    try:
        return str(_visible(value))
    except Exception:  # whatever the items of a lazy mapping raise
        return f"<{type(value).__name__}>"


def _visible(value: object, inside: tuple[int, ...] = ()) -> object:
    """As `redact`, of what need not be JSON.

    :param inside: the ids of what it is in.
    """
    if not isinstance(value, Mapping | list | tuple):
        return value
    if id(value) in inside or len(inside) == MAX_DEPTH:
        return "…"
    inside = (*inside, id(value))
    if isinstance(value, Mapping):
        return {k: REDACTED if is_secret(str(k), item) else _visible(item, inside) for k, item in value.items()}
    items = [_visible(item, inside) for item in value]
    return tuple(items) if isinstance(value, tuple) else items


def redact(value: Any) -> Any:
    """A copy in which what stands under a key that names a secret is replaced.

    The server does so too, but could not in a text that was cut out of the middle of some JSON.
    """
    if isinstance(value, dict):
        return {key: REDACTED if is_secret(key, item) else redact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item) for item in value]
    return value


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def clamped(fraction: float) -> float:
    """The fraction, or the nearer of 0 and 1."""
    return min(1.0, max(0.0, float(fraction)))
