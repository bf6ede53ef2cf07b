"""The bytes of events on SSE and NDJSON wires.

Responsible for framing only: text in, bytes out. Not responsible for which events a window gets or when.
"""

import re

from app.protocol.events import Event

SSE_HEARTBEAT = b":\n"
"""A comment of one line. With a second newline httpx-sse would deliver a phantom message."""

NDJSON_HEARTBEAT = b"\n"

_LINE_END = re.compile("\r\n|\r|\n")


def sse(event: Event, named: bool = True) -> bytes:
    """One SSE message; its id is the seq. Without a name a browser hands it to `onmessage`."""
    name = f"event: {event.type}\n" if named else ""
    return f"id: {event.seq}\n{name}{_data(event.text)}\n".encode()


def sse_control(type: str, text: str, id: int | None = None, named: bool = True) -> bytes:
    """One control frame. Only a snapshot has an `id`, its seq: another would corrupt the reader's cursor."""
    cursor = "" if id is None else f"id: {id}\n"
    name = f"event: {type}\n" if named else ""
    return f"{cursor}{name}{_data(text)}\n".encode()


def sse_retry(ms: int) -> bytes:
    """After how long a client reconnects. One newline: the field counts at once and starts no message."""
    return b"retry: %d\n" % ms


def ndjson(event: Event) -> bytes:
    """One line."""
    return f"{event.text}\n".encode()


def ndjson_control(text: str) -> bytes:
    """One line."""
    return f"{text}\n".encode()


def _data(text: str) -> str:
    if "\n" not in text and "\r" not in text:
        return f"data: {text}\n"
    return "".join(f"data: {line}\n" for line in _LINE_END.split(text))
