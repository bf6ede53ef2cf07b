"""Runs that are filled up to what one may keep, each in its own way: batches of events as a writer sends them.

Responsible for what stands in a batch. Not responsible for sending it.
"""

from collections.abc import Callable, Iterator
from typing import Any

from app.protocol.events import dumps
from app.storage.run_store import KEPT_BYTES_MAX, KEPT_CONTAINERS_MAX, KEPT_MAX

BATCH_EVENTS = 1_000
BATCH_BYTES = 900_000
ROOM = 10_000
"""Bytes that are left, for what the end of a run adds."""
LEVELS, CHAINS = 58, 300
KEYS = 19_000
STEP: dict[str, Any] = {"step_id": "s", "title": "t", "index": 0}

Event = tuple[str, dict[str, Any]]


def _items(share: float) -> Iterator[Event]:
    """Of each kind as many as there may be, all left open, as long as there may be."""
    count = int(KEPT_MAX * share)
    pad = "x" * (KEPT_BYTES_MAX // (6 * KEPT_MAX) - 36)
    for n in range(count):
        yield "step.started", {"step_id": f"s{n}", "title": pad, "index": n}
        yield "message.started", {"message_id": f"m{n}{pad}", "role": "assistant"}
        yield "tool.started", {"tool_call_id": f"c{n}", "name": "t", "label": pad}
        yield "source.added", {"title": pad, "url": f"u{n}"}
        yield "quality.checked", {"name": pad, "passed": True}
        yield "subagent.spawned", {"child_run_id": f"r{n}", "label": pad}


def _text(share: float, piece: str, each: int) -> Iterator[Event]:
    """One message, in pieces that are so often that text."""
    yield "message.started", {"message_id": "m", "role": "assistant"}
    text = piece * each
    for _ in range(int((KEPT_BYTES_MAX - ROOM) * share) // len(dumps(text).encode())):
        yield "message.delta", {"message_id": "m", "text": text}


def _messages(share: float) -> Iterator[Event]:
    """As many messages as there may be."""
    for n in range(int(KEPT_MAX * share)):
        yield "message.started", {"message_id": f"m{n}", "role": "assistant"}
        yield "message.delta", {"message_id": f"m{n}", "text": "some words " * 65}
        yield "message.completed", {"message_id": f"m{n}", "chars": 715}


def _tools(share: float) -> Iterator[Event]:
    """Tool calls with long results of many keys."""
    preview = {f"key{n}": n for n in range(130)}
    for n in range(int(4_900 * share)):
        yield "tool.started", {"tool_call_id": f"c{n}", "name": "t", "label": "l"}
        result = {"preview": preview, "truncated": False, "bytes": 1_900, "duration_ms": 1}
        yield "tool.completed", {"tool_call_id": f"c{n}", **result}


def _errors(share: float, about: dict[str, Any], containers: int = 1) -> Iterator[Event]:
    """Steps that fail with a large error, of so many lists and objects."""
    payload = {"step_id": "s", "error": {"code": "c", "message": "m", **about}}
    each = len(dumps(payload)) + len(dumps(STEP))
    most = min((KEPT_BYTES_MAX - ROOM) // each, KEPT_CONTAINERS_MAX // containers)
    for n in range(int(most * share)):
        yield "step.started", {**STEP, "step_id": f"s{n}"}
        yield "step.failed", {**payload, "step_id": f"s{n}"}


def _plan(share: float) -> Iterator[Event]:
    """A plan that is as long as it may be, and changed as often."""
    for n in range(max(1, int(9 * share))):
        yield "plan.updated", {"steps": [{"id": f"p{k}", "title": f"{n} " + "x" * 830} for k in range(1_000)]}


def _custom(share: float) -> Iterator[Event]:
    """Events that no state keeps, with as many keys as there may be."""
    for _ in range(max(1, int(60 * share))):
        yield "custom.keys", {f"key{n}": n for n in range(KEYS)}


def _nested() -> list[Any]:
    chain: list[Any] = []
    for _ in range(LEVELS):
        chain = [chain]
    return chain


SHAPES: dict[str, Callable[[float], Iterator[Event]]] = {
    "items": _items,
    "text": lambda share: _text(share, "some words é ", 60_000),
    "deltas": lambda share: _text(share, "some words ", 12),
    "controls": lambda share: _text(share, "\x01", 140_000),
    "messages": _messages,
    "tools": _tools,
    "keys": lambda share: _errors(share, {f"key{n}": n for n in range(KEYS)}),
    "depth": lambda share: _errors(share, {"a": [_nested()] * CHAINS}, 2 + CHAINS * (LEVELS + 1)),
    "plan": _plan,
    "custom": _custom,
}
"""By name: the events, given the share of what there may be that is wanted."""


def batches(shape: str, share: float) -> Iterator[bytes]:
    """The events, as NDJSON."""
    lines: list[bytes] = []
    size = 0
    for type, payload in SHAPES[shape](share):
        line = dumps({"type": type, "payload": payload}).encode()
        if lines and (len(lines) == BATCH_EVENTS or size + len(line) > BATCH_BYTES):
            yield b"\n".join(lines)
            lines, size = [], 0
        lines.append(line)
        size += len(line) + 1
    yield b"\n".join(lines)
