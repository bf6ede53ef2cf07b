"""What a run's verbs take and hand out: a step, a message, a question and its outcome."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from runtail import checks
from runtail.texts import clean_text, held_back
from runtail.values import given, timestamp

DELTA_MAX_CHARS = 65_536
"""A longer text is written as several deltas."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is put to somebody; `requires` is `owner` or `operator`."""

    label: str
    requires: str
    tool_call_id: str | None
    seconds: float | None
    """After which nobody can decide any more; None: never."""

    def payload(self, approval_id: str, expires_at: datetime | None) -> dict[str, Any]:
        """Of `approval.required`."""
        return {
            "approval_id": approval_id,
            "label": self.label,
            "requires": self.requires,
            "tool_call_id": self.tool_call_id,
            "expires_at": timestamp(expires_at) if expires_at else None,
        }


@dataclass(frozen=True, slots=True)
class Approval:
    """What came of a question: `decision` is approved, denied or expired."""

    decision: str
    by: str | None
    comment: str | None

    @property
    def approved(self) -> bool:
        """Somebody said yes."""
        return self.decision == "approved"


class Step:
    """A step in progress."""

    def __init__(self, id: str, emit: Callable[[str, Callable[[], Mapping[str, Any]]], None]) -> None:
        """:param emit: takes the type, and what makes the payload, which may be refused."""
        self.id = id
        self._emit = emit

    def progress(self, fraction: float, label: str | None = None) -> None:
        """:param fraction: 0 to 1; what lies outside is taken as the nearer of the two."""
        self._emit("step.progress", lambda: {"step_id": self.id, **progressed(fraction, label)})


class Message:
    """A message in progress. `send` takes a piece of clean text and returns what went out of it."""

    def __init__(self, id: str, send: Callable[[str], str]) -> None:
        self.id = id
        self._written: list[str] = []
        self._send = send
        self._rest = ""
        """Half of a surrogate pair, whose other half may come."""

    @property
    def text(self) -> str:
        """What was written so far, as it went out."""
        return "".join(self._written)

    def write(self, text: str) -> str:
        """Add text. Returns it as it went out: cleaned of NUL and lone surrogates, and past the server's hooks.

        Half of a surrogate pair at its end waits for the other half.
        """
        whole, self._rest = held_back(self._rest + checks.raw_text(text, "message.write: text"))
        return self._write(clean_text(whole))

    def close(self) -> None:
        """Nothing more comes: half a pair that still waits becomes U+FFFD."""
        rest, self._rest = self._rest, ""
        self._write(clean_text(rest))

    def _write(self, text: str) -> str:
        parts = range(0, len(text), DELTA_MAX_CHARS)
        written = "".join(self._send(text[start : start + DELTA_MAX_CHARS]) for start in parts)
        self._written.append(written)
        return written


def begun(message_id: str, role: str, replaces: bool) -> dict[str, Any]:
    """The payload of `message.started`."""
    return {"message_id": message_id, "role": role, **({"replaces": True} if replaces else {})}


def progressed(fraction: object, label: object) -> dict[str, Any]:
    """{fraction, label?}: the fraction, or the nearer of 0 and 1."""
    return given(**checks.arguments("progress", fraction=fraction, label=label))
