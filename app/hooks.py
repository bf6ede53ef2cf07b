"""The pipeline that every payload passes once before it is appended: clean, redact, user hooks, validate.

A user hook is a function (type, payload) -> payload of the entry-point group `runtail.hooks`.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

from app.errors import InvalidEvent
from app.protocol.events import Json, clean, dumps, validate
from app.protocol.redaction import redact

ENTRY_POINTS = "runtail.hooks"
EVENT_BYTES = 2_000_000
"""Of one payload's JSON text; past it the emission is refused."""

Payload = dict[str, Any]
Hook = Callable[[str, Payload], Payload]


class Hooks:
    """The pipeline of one process."""

    def __init__(self, hooks: Sequence[Hook] = ()) -> None:
        self._hooks = hooks

    @classmethod
    def load(cls) -> "Hooks":
        """With the hooks of the entry-point group `runtail.hooks`, in the order of their names."""
        found = sorted(entry_points(group=ENTRY_POINTS), key=lambda entry_point: entry_point.name)
        return cls([entry_point.load() for entry_point in found])

    def __call__(self, type: str, payload: object) -> Payload:
        """The payload as it goes out.

        :raises InvalidJson, TooDeep: it is not JSON.
        :raises InvalidEvent: it does not fit the type's schema, or is beyond EVENT_BYTES.
        """
        outbound = redact(clean(payload))
        for hook in self._hooks:
            outbound = clean(hook(type, _object(type, outbound)))
        cleaned = _object(type, outbound)
        validate(type, cleaned)
        if len(dumps(cleaned).encode()) > EVENT_BYTES:
            raise InvalidEvent(f"The payload of {type} is larger than {EVENT_BYTES} bytes.")
        return cleaned

    def delta(self, message_id: str, text: str) -> str:
        """As `__call__` for a piece of clean text; without user hooks nothing in it can change."""
        if not self._hooks:
            return text
        outbound: str = self("message.delta", {"message_id": message_id, "text": text})["text"]
        return outbound


def _object(type: str, payload: Json) -> Payload:
    if not isinstance(payload, dict):
        raise InvalidEvent(f"The payload of {type} must be an object.")
    return payload
