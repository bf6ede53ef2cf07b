"""What a `with` block of RunContext hands to the agent: a step, a message."""

from collections.abc import Callable, Mapping
from typing import Any

from app.protocol.events import clean_text

DELTA_MAX_CHARS = 65_536
"""A longer text is written as several deltas."""


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
        self.chars = 0
        self._send = send

    def write(self, text: str) -> str:
        """Add text. Returns it as it went out: cleaned of NUL and lone surrogates, and past the hooks."""
        cleaned = clean_text(text)
        parts = range(0, len(cleaned), DELTA_MAX_CHARS)
        written = "".join(self._send(cleaned[start : start + DELTA_MAX_CHARS]) for start in parts)
        self.chars += len(written)
        return written


def clamped(fraction: float) -> float:
    """The fraction, or the nearer of 0 and 1."""
    return min(1.0, max(0.0, float(fraction)))


def given(**values: Any) -> dict[str, Any]:
    """The values that are not None."""
    return {name: value for name, value in values.items() if value is not None}
