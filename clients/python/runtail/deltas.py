"""Coalesces the text of open messages: pieces that follow one another quickly leave together. No threads, no I/O."""

import time
from typing import Any

DELTA_SECONDS = 0.050
"""Text that follows faster than this leaves together …"""
DELTA_CHARS = 2_048
"""… unless it comes to this much."""


class Deltas:
    """Text that waits for more of it. The first piece of a message does not wait."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[Any, list[str]]] = {}
        self._begun: set[str] = set()
        self._chars = 0
        self._taken_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._texts)

    @property
    def due_at(self) -> float:
        """The moment of the monotonic clock from which on what waits is to be taken."""
        return self._taken_at + DELTA_SECONDS

    def begin(self, message_id: str) -> None:
        """The message has been started: its first piece is to leave at once."""
        self._begun.add(message_id)

    def has_other(self, message_id: str, about: object) -> bool:
        """Whether text of this message waits that was written with something else about it."""
        waiting = self._texts.get(message_id)
        return waiting is not None and waiting[0] != about

    def write(self, message_id: str, text: str, about: object = None) -> bool:
        """Add text to a message. Returns whether what waits is due now.

        :param about: comes back with the text; the same for all that waits of a message.
        """
        self._texts.setdefault(message_id, (about, []))[1].append(text)
        self._chars += len(text)
        if message_id in self._begun:
            self._begun.discard(message_id)
            return True
        return self._chars >= DELTA_CHARS or time.monotonic() >= self.due_at

    def take(self) -> list[tuple[str, str, Any]]:
        """All that waits: (message_id, text, about), one for each message."""
        taken = [(message_id, "".join(texts), about) for message_id, (about, texts) in self._texts.items()]
        self._texts.clear()
        self._chars, self._taken_at = 0, time.monotonic()
        return taken

    def clear(self) -> None:
        """Forget what waits."""
        self._texts.clear()
        self._chars = 0
