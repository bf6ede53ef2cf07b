"""What may be shown: secrets replaced by the name of their key, results cut to a preview. Pure."""

import re
from typing import Any

from app.errors import InvalidJson, TooDeep
from app.protocol.events import Json, clean, dumps
from app.protocol.payloads import PREVIEW_MAX_BYTES

REDACTED = "[redacted]"
CUT_BYTES = 1_000
"""What is kept of a longer one, as text; its quotes may double when that text becomes JSON in turn."""

_SECRET_KEY = re.compile(
    r"pass(word|wd|phrase|code)|secret|token|api_?key|access_?key|private_?key|authorization|cookie|credential"
    r"|card_?number|(^|_)(pass|cvv|cvc|ssn|iban)(_|$)"
)
"""The short ones are whole words: `businessName` has an ssn in it too."""
_NOT_SECRET = re.compile(r"((input|output|max|total|prompt|completion|before|after)_)?tokens|.*_tokens_.*")
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def redact(value: Json) -> Json:
    """A copy in which every value under a key that names a secret is replaced."""
    if isinstance(value, dict):
        return {key: REDACTED if is_secret(key) else redact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item) for item in value]
    return value


def preview(value: object) -> dict[str, Any]:
    """What may be shown of a tool's result: {preview, truncated, bytes}, the preview at most PREVIEW_MAX_BYTES of JSON.

    A result that is not JSON is shown by its type.
    """
    try:
        cleaned = redact(clean(value))
    except (InvalidJson, TooDeep):
        cleaned = f"<{value.__class__.__name__}>"
    text = dumps(cleaned).encode()
    if len(text) <= PREVIEW_MAX_BYTES:
        return {"preview": cleaned, "truncated": False, "bytes": len(text)}
    return {"preview": text[:CUT_BYTES].decode(errors="ignore"), "truncated": True, "bytes": len(text)}


def is_secret(key: str) -> bool:
    """Whether a key names a secret, however it is spelled: api_key, apiKey, API-KEY."""
    lowered = _CAMEL_CASE.sub("_", key).lower().replace("-", "_")
    return bool(_SECRET_KEY.search(lowered)) and not _NOT_SECRET.fullmatch(lowered)
