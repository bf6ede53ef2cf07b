"""What a run's verbs hand out: a step, a message, the outcome of an approval."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runtail.values import clamped, clean_text, given

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

    def __init__(self, id: str, emit: Callable[[str, dict[str, Any]], None]) -> None:
        self.id = id
        self._emit = emit

    def progress(self, fraction: float, label: str | None = None) -> None:
        """:param fraction: 0 to 1; what lies outside is taken as the nearer of the two."""
        self._emit("step.progress", {"step_id": self.id, "fraction": clamped(fraction), **given(label=label)})


class Message:
    """A message in progress."""

    def __init__(self, id: str, send: Callable[[str, str], None]) -> None:
        self.id = id
        self.chars = 0
        """Code points written so far."""
        self._send = send
        self._written: list[str] = []

    @property
    def text(self) -> str:
        """What was written so far, as it went out."""
        return "".join(self._written)

    def write(self, text: str) -> str:
        """Add text. Returns it as it goes out, without NUL and lone surrogates."""
        text = clean_text(text)
        for start in range(0, len(text), DELTA_MAX_CHARS):
            piece = text[start : start + DELTA_MAX_CHARS]
            self._send(self.id, piece)
            self._written.append(piece)
            self.chars += len(piece)
        return text
