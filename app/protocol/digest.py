"""The digest: one number by which two parties know that they saw the same run.

docs/protocol.md gives the recipe, so that anybody can recompute it from the log alone.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from json.encoder import encode_basestring as _quoted
from typing import Any

from app.protocol.state import ENDED
from app.protocol.writing import Pace, text_bits

LARGEST_INTEGER = 2**53 - 1
"""Beyond it RFC 8785 has no form for an integer: a double does not hold it exactly."""


def digest(state: Mapping[str, Any], output: Any, pace: Pace = iter) -> str:
    """SHA-256 (hex) over the canonical JSON of the outcome.

    :param state: the fold of every event before the terminal one.
    :param output: what `run.completed` carries; None for a run that failed or was cancelled.
    :param pace: hands the pieces of the text on one by one; for who has to let others run meanwhile.
    :raises ValueError: the state is that of a run that has ended.
    """
    if state["status"] in ENDED:
        raise ValueError("the digest is over the state before the terminal event")
    outcome = {
        "output": output,
        "messages": [{"id": m["id"], "text": m["text"]} for m in state["messages"] if m["status"] != "abandoned"],
        "tool_calls": [
            {"id": call["id"], "name": call["name"], "status": call["status"]} for call in state["tool_calls"]
        ],
        "last_seq": state["last_seq"],
    }
    sha256 = hashlib.sha256()
    for piece in pace(_canonical(outcome)):
        sha256.update(piece.encode())
    return sha256.hexdigest()


def _canonical(value: Any) -> Iterator[str]:
    """Pieces of the canonical JSON (RFC 8785).

    :raises ValueError: a number has no canonical form.
    """
    if isinstance(value, str):
        yield from text_bits(value)
    elif isinstance(value, dict):
        for n, key in enumerate(sorted(value, key=_utf16)):
            yield f"{',' if n else '{'}{_quoted(key)}:"
            yield from _canonical(value[key])
        yield "}" if value else "{}"
    elif isinstance(value, list):
        for n, item in enumerate(value):
            yield "," if n else "["
            yield from _canonical(item)
        yield "]" if value else "[]"
    else:
        yield _number(value) if isinstance(value, float) else _scalar(value)


def _utf16(key: str) -> bytes:
    return key.encode("utf-16-be")


def _scalar(value: int | bool | None) -> str:
    if value is not None and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"canonical JSON has no integer {value}")
    return json.dumps(value)


def _number(value: float) -> str:
    """As ECMAScript writes it: Python finds the same shortest digits, but uses an exponent for other magnitudes."""
    if not math.isfinite(value):
        raise ValueError(f"canonical JSON has no {value}")
    if value == 0:
        return "0"
    if 1e-6 <= abs(value) < 1e21:
        return format(Decimal(repr(value)), "f").removesuffix(".0")
    return repr(value).replace("e-0", "e-")
