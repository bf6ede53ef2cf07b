"""The door that every payload of the log passes once: clean, redact, validate, user hooks, validate again.

A user hook is a function (type, payload) -> payload of the entry-point group `runtail.hooks`. What it makes of a
payload is checked as the payload was; one that raises, or returns what does not fit, has failed: docs/agents.md, Hooks.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, cast

from app.errors import HookFailed, InvalidEvent
from app.pace import paced
from app.protocol.events import Json, Outbound, clean, exceeds, validate
from app.protocol.sizes import DELTA_MAX_CHARS, PAYLOAD_BYTES, pieces
from app.turns import give_way
from runtail.redaction import SUMMARY_MAX_CHARS, preview, redact, redact_text

ENTRY_POINTS = "runtail.hooks"
WITHHELD = "[withheld]"
"""In place of what a failed hook has not seen to."""

Payload = dict[str, Any]
Hook = Callable[[str, Payload], Payload]

_STRUCTURE = frozenset(
    {"approval_id", "attempt", "code", "decision", "digest", "input_id", "message_id", "on", "ids", "reason", "role"}
    | {"step_id", "tool_call_id", "worker"}
)
"""What a text or a list says of the run, not of what it is about."""

log = logging.getLogger(__name__)


class Hooks:
    """The pipeline of one process. Never call it under a lock or in a transaction: a hook may take its time."""

    def __init__(self, hooks: Sequence[Hook] = ()) -> None:
        self._hooks = hooks

    @classmethod
    def load(cls) -> "Hooks":
        """With the hooks of the entry-point group `runtail.hooks`, in the order of their names."""
        found = sorted(entry_points(group=ENTRY_POINTS), key=lambda entry_point: entry_point.name)
        return cls([entry_point.load() for entry_point in found])

    def __call__(self, type: str, payload: object) -> Outbound:
        """The payload as it goes out. For what may still be refused.

        :raises InvalidJson, TooDeep: it is not JSON.
        :raises InvalidEvent: it does not fit the type's schema, or is beyond PAYLOAD_BYTES.
        :raises HookFailed: a hook raised, or returned no payload of this type.
        """
        outbound = _redacted(type, clean(payload, give_way))
        return self._hooked(type, outbound) if self._hooks else outbound

    def fact(self, type: str, payload: Mapping[str, Any]) -> Outbound:
        """As `__call__`, for what has happened and must be written down: where a hook fails, its texts are withheld.

        :raises InvalidJson, TooDeep, InvalidEvent: the payload does not fit, before any hook.
        """
        outbound = _redacted(type, clean(payload, give_way))
        if not self._hooks:
            return outbound
        try:
            return self._hooked(type, outbound)
        except HookFailed:
            return Outbound(_withheld(outbound))

    def deltas(self, message_id: str, text: str) -> list[Outbound]:
        """As `__call__`, payloads of `message.delta` for a clean text of any length. User hooks alone change it."""
        payloads = [Outbound({"message_id": message_id, "text": piece}) for piece in pieces(text, DELTA_MAX_CHARS)]
        return [self._hooked("message.delta", payload) for payload in payloads] if self._hooks else payloads

    def _hooked(self, type: str, payload: Outbound) -> Outbound:
        outbound = payload
        for hook in self._hooks:
            try:
                # Its own copy: what it does to that before it fails is not what goes out.
                copy = Outbound(cast(Payload, clean(outbound, give_way)))
                outbound = _fit(type, clean(hook(type, copy), give_way))
            except (Exception, SystemExit) as error:
                log.exception("The hook %s failed at %s.", getattr(hook, "__qualname__", hook), type)
                raise HookFailed(f"A hook of the server failed at {type}; the server's log says why.") from error
        return outbound


def text_of(deltas: Iterable[Outbound]) -> str:
    """The text that these payloads of `message.delta` are together."""
    return "".join(delta["text"] for delta in deltas)


def _redacted(type: str, payload: Json) -> Outbound:
    """What shows the arguments and the result of a call is looked through to its texts."""
    redacted = redact(payload, give_way)
    give_way()
    outbound = _fit(type, redacted)
    if type == "tool.started" and "summary" in outbound:
        return Outbound({**outbound, "summary": redact_text(outbound["summary"])[:SUMMARY_MAX_CHARS]})
    if type == "tool.completed":
        return Outbound({**outbound, **_preview(outbound)})
    return outbound


def _preview(payload: Mapping[str, Any]) -> Payload:
    """Cut where it is longer than a preview: looking through it must not take long."""
    shown = preview(payload["preview"])
    return {"preview": shown["preview"], "truncated": payload["truncated"] or shown["truncated"]}


def _fit(type: str, payload: Json) -> Outbound:
    if not isinstance(payload, dict):
        raise InvalidEvent(f"The payload of {type} must be an object.")
    validate(type, payload)
    if exceeds(payload, PAYLOAD_BYTES, paced):
        raise InvalidEvent(f"The payload of {type} is larger than {PAYLOAD_BYTES} bytes.")
    return Outbound(payload)


def _withheld(payload: Mapping[str, Any]) -> Payload:
    """What a payload says of the run is kept, and so are numbers; everything else is withheld."""
    return {key: _kept(key, value) for key, value in payload.items()}


def _kept(key: str, value: Any) -> Any:
    if key in _STRUCTURE or value is None or isinstance(value, bool | int | float):
        return value
    return _withheld(value) if key == "error" else WITHHELD
