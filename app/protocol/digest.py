"""The digest: one number by which two parties know that they saw the same run.

docs/protocol.md gives the recipe, so that anybody can recompute it from the log alone.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import rfc8785

from app.protocol.state import ENDED


def digest(state: Mapping[str, Any], output: Any) -> str:
    """SHA-256 (hex) over the canonical JSON of the outcome.

    :param state: the fold of every event before the terminal one.
    :param output: what `run.completed` carries; None for a run that failed or was cancelled.
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
    return hashlib.sha256(rfc8785.dumps(outcome)).hexdigest()
