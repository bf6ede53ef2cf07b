"""What RunContext hands to the agent: a step, a message, the outcome of an approval."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workers import values

DELTA_MAX_CHARS = 65_536
"""A longer text is written as several deltas."""


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

    def __init__(self, id: str, emit: Callable[[str, Mapping[str, Any]], None]) -> None:
        self.id = id
        self._emit = emit

    def progress(self, fraction: float, label: str | None = None) -> None:
        """:param fraction: 0 to 1; what lies outside is taken as the nearer of the two."""
        self._emit("step.progress", {"step_id": self.id, "fraction": clamped(fraction), **given(label=label)})


class Message:
    """A message in progress. `send` takes a piece of clean text and returns what went out of it."""

    def __init__(self, id: str, send: Callable[[str], str]) -> None:
        self.id = id
        self._written: list[str] = []
        self._send = send

    @property
    def text(self) -> str:
        """What was written so far, as it went out."""
        return "".join(self._written)

    def write(self, text: str) -> str:
        """Add text. Returns it as it went out: cleaned of NUL and lone surrogates, and past the hooks."""
        cleaned = values.text(text, "message.write: what is written")
        parts = range(0, len(cleaned), DELTA_MAX_CHARS)
        written = "".join(self._send(cleaned[start : start + DELTA_MAX_CHARS]) for start in parts)
        self._written.append(written)
        return written


def clamped(fraction: float) -> float:
    """The fraction, or the nearer of 0 and 1."""
    return min(1.0, max(0.0, values.number(fraction, "progress: fraction")))


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
