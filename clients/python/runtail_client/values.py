"""Makes values fit to be sent: faithful JSON, storable text, previews, secrets left out. Pure."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from runtail_client.errors import InvalidEvent

MAX_DEPTH = 64
MAX_INT = 2**53 - 1
"""The largest integer that every JSON reader keeps exact."""
PREVIEW_BYTES = 2_048
"""A result with a longer JSON text is shown by its beginning …"""
CUT_BYTES = 1_000
"""… which is so long: its quotes may double when it becomes JSON in turn."""
SUMMARY_CHARS = 200
REDACTED = "[redacted]"

_SECRET = re.compile(
    r"pass(word|wd|phrase|code)|secret|token|(api|access|private)_?key|authorization|cookie|credential|card_?number"
)
_SECRET_WORDS = frozenset({"pass", "cvv", "cvc", "ssn", "iban"})
_COUNT = re.compile(r"((input|output|max|total|prompt|completion|before|after)_)?tokens|.*_tokens_.*")
"""Tokens that are counted, and give access to nothing."""
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

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
        visible = redact(clean(result))
    except Exception:  # InvalidEvent, or whatever the items of a lazy mapping raise
        visible = f"<{type(result).__name__}>"
    text = dumps(visible).encode()
    if len(text) <= PREVIEW_BYTES:
        return {"preview": visible, "truncated": False, "bytes": len(text)}
    return {"preview": text[:CUT_BYTES].decode(errors="ignore"), "truncated": True, "bytes": len(text)}


def shown(arguments: Mapping[str, Any]) -> str:
    """The arguments that may be shown, as a line of text."""
    pairs = (f"{name}={REDACTED if is_secret(name) else value}" for name, value in arguments.items())
    return clean_text(", ".join(pairs))[:SUMMARY_CHARS]


def redact(value: Any) -> Any:
    """A copy in which what stands under a key that names a secret is replaced.

    The server does so too, but could not in a text that was cut out of the middle of some JSON.
    """
    if isinstance(value, dict):
        return {key: REDACTED if is_secret(key) else redact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item) for item in value]
    return value


def is_secret(key: str) -> bool:
    """Whether a key names a secret: api_key, apiKey and API-KEY all do."""
    name = _HUMP.sub("_", key).lower().replace("-", "_")
    if _COUNT.fullmatch(name):
        return False
    return _SECRET.search(name) is not None or not _SECRET_WORDS.isdisjoint(name.split("_"))


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def clamped(fraction: float) -> float:
    """The fraction, or the nearer of 0 and 1."""
    return min(1.0, max(0.0, float(fraction)))
