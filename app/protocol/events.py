"""Events and their envelopes: the text that is made once and kept verbatim everywhere.

Responsible for the envelope and, as the package's front, for re-exporting `clean`, `validate` and schemas.
Not responsible for what an event does to the state (`reducer`) or for how it looks on a wire (`framing`).
"""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from json.encoder import encode_basestring as _quoted
from typing import Any, NamedTuple, NewType

from app.protocol.payloads import CONTROL_SCHEMAS, SCHEMAS, json_schema, schema_json, validate
from app.protocol.sizes import PART_CHARS, pieces
from app.protocol.writing import Pace, bits
from runtail.checks import CUSTOM_TYPE
from runtail.texts import clean_text
from runtail.values import MAX_DEPTH, MAX_INT, Json, clean, dumps, timestamp

__all__ = [
    "CONTROL_SCHEMAS",
    "CUSTOM_TYPE",
    "MAX_DEPTH",
    "MAX_INT",
    "SCHEMAS",
    "TERMINAL",
    "VERSION",
    "Event",
    "Json",
    "Outbound",
    "clean",
    "clean_text",
    "control",
    "dumps",
    "encode",
    "exceeds",
    "json_schema",
    "schema_json",
    "snapshot",
    "snapshot_parts",
    "timestamp",
    "unbroken",
    "validate",
]

Outbound = NewType("Outbound", dict[str, Any])
"""A payload as it goes out: only `app.hooks` makes one, and only such a one gets into a log."""

VERSION = 1
TERMINAL = frozenset({"run.completed", "run.failed", "run.cancelled"})

# JSON lets these stand raw, but many readers (Python's str.splitlines among them) end a line there.
_LINE_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


class Event(NamedTuple):
    """One stored event. `text` is the envelope verbatim: compact JSON on one line, fit for UTF-8, no NUL."""

    seq: int
    type: str
    text: str
    op: str = ""
    """The operation the event belongs to; kept beside the envelope, never sent."""

    def envelope(self) -> dict[str, Any]:
        """The parsed envelope: {v, seq, run_id, type, ts, payload}."""
        envelope: dict[str, Any] = json.loads(self.text)
        return envelope


def encode(
    run_id: str, seq: int, type: str, payload: Outbound, ts: datetime | str | None = None, op: str = ""
) -> Event:
    """Makes the event's text. `payload` is clean and valid already: this is the hot path and checks neither.

    :param ts: a moment with a time zone, or what `timestamp` returned; None: now.
    :param op: the operation the event belongs to.
    """
    text = (
        f'{{"v":{VERSION},"seq":{seq},"run_id":{_quoted(run_id)},"type":{_quoted(type)},'
        f'"ts":"{ts if isinstance(ts, str) else timestamp(ts)}","payload":{dumps(payload)}}}'
    )
    return Event(seq, type, _one_line(text), op)


def control(run_id: str, type: str, payload: Mapping[str, Any], ts: datetime | None = None) -> str:
    """The text of a control frame: an envelope without seq, which is sent and never stored."""
    return _control(run_id, type, dumps(payload), ts)


def _control(run_id: str, type: str, payload: str, ts: datetime | None = None) -> str:
    return _one_line(
        f'{{"v":{VERSION},"run_id":{_quoted(run_id)},"type":{_quoted(type)},"ts":"{timestamp(ts)}","payload":{payload}}}'
    )


def snapshot(run_id: str, seq: int, state: str) -> str:
    """The text of `stream.snapshot`.

    :param state: JSON of the state at `seq`.
    """
    return _control(run_id, "stream.snapshot", f'{{"seq":{seq},"state":{state}}}')


def snapshot_parts(run_id: str, seq: int, state: str) -> Iterator[str]:
    """The texts of the `stream.snapshot.part` that are a snapshot together. Parameters as of `snapshot`."""
    # On one line before: so what is escaped is escaped within the bound.
    texts = list(pieces(_one_line(state), PART_CHARS))
    about = {"seq": seq, "parts": len(texts)}
    for n, text in enumerate(texts, 1):
        yield control(run_id, "stream.snapshot.part", {**about, "part": n, "text": text})


def exceeds(payload: Mapping[str, Any], most: int, pace: Pace = iter) -> bool:
    """Whether a clean payload, as it stands in an envelope, has more bytes in UTF-8. No more than those is made."""
    size = 0
    for bit in pace(bits(payload)):
        size += len(_one_line(bit).encode())
        if size > most:
            return True
    return False


def unbroken(events: list[Event]) -> list[Event]:
    """The events up to the first seq that is missing among them: what a page of a log may show."""
    if not events or events[-1].seq - events[0].seq == len(events) - 1:
        return events
    first = events[0].seq
    return events[: next(n for n, event in enumerate(events) if event.seq != first + n)]


def _one_line(text: str) -> str:
    # `in` is far faster than `translate`, which the few texts that need it can afford.
    if text.isascii() or not ("\u2028" in text or "\u2029" in text or "\x85" in text):
        return text
    return text.translate(_LINE_BREAKS)
