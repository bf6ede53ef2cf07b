"""The bytes of events on SSE, NDJSON and WebSocket wires.

Responsible for framing only: text in, bytes out. Not responsible for which events a window gets or when.
"""

import re
import struct

from app.protocol.events import Event

SSE_HEARTBEAT = b":\n"
"""A comment of one line. With a second newline httpx-sse would deliver a phantom message."""

NDJSON_HEARTBEAT = b"\n"

WEBSOCKET_PING = b"\x89\x00"
"""A server's frames are not masked, so that every window can be sent the same bytes."""

_CLOSE, _PONG, _TEXT = 0x88, 0x8A, 0x81
_SHORT_MAX, _TWO_BYTES_MAX = 125, 0xFFFF
_TWO_BYTES, _EIGHT_BYTES = 126, 127

_LINE_END = re.compile("\r\n|\r|\n")


def sse(event: Event, named: bool = True) -> bytes:
    """One SSE message; its id is the seq. Without a name a browser hands it to `onmessage`."""
    name = f"event: {event.type}\n" if named else ""
    return f"id: {event.seq}\n{name}{_data(event.text)}\n".encode()


def sse_control(type: str, text: str, id: int | None = None, named: bool = True) -> bytes:
    """One control frame. Only a snapshot has an `id`, its seq: another would corrupt the reader's cursor."""
    cursor = "" if id is None else f"id: {id}\n"
    name = f"event: {type}\n" if named else ""
    if "\n" in text or "\r" in text:
        return f"{cursor}{name}{_data(text)}\n".encode()
    return b"".join((f"{cursor}{name}data: ".encode(), text.encode(), b"\n\n"))  # megabytes: copied once


def split_id(frame: bytes) -> tuple[bytes, bytes]:
    """The id of an SSE message, and the message without it. A frame without an id: empty, and the frame."""
    if not frame.startswith(b"id: "):
        return b"", frame
    id, _, rest = frame[4:].partition(b"\n")
    return id, rest


def sse_retry(ms: int) -> bytes:
    """After how long a client reconnects. One newline: the field counts at once and starts no message."""
    return b"retry: %d\n" % ms


def ndjson(event: Event) -> bytes:
    """One line."""
    return f"{event.text}\n".encode()


def ndjson_control(text: str) -> bytes:
    """One line."""
    return f"{text}\n".encode()


def websocket(event: Event) -> bytes:
    """One text frame, which is one message."""
    return websocket_text(event.text)


def websocket_text(text: str) -> bytes:
    """One text frame, which is one message."""
    return _frame(_TEXT, text.encode())


def websocket_pong(payload: bytes) -> bytes:
    """The answer to a ping with that payload, of at most 125 bytes."""
    return _frame(_PONG, payload)


def websocket_close(code: int | None = None) -> bytes:
    """The last frame of a side."""
    return _frame(_CLOSE, b"" if code is None else struct.pack("!H", code))


def websocket_boundary(frames: bytes, position: int) -> int:
    """Where the frame ends that is under way at `position`; `position` itself where none is.

    :param frames: whole frames of a server.
    """
    end = 0
    while end < position:
        end = _end_of_frame(frames, end)
    return end


def _frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size <= _SHORT_MAX:
        return struct.pack("!BB", first, size) + payload
    if size <= _TWO_BYTES_MAX:
        return struct.pack("!BBH", first, _TWO_BYTES, size) + payload
    return struct.pack("!BBQ", first, _EIGHT_BYTES, size) + payload


def _end_of_frame(frames: bytes, start: int) -> int:
    size = frames[start + 1]
    if size == _TWO_BYTES:
        return start + 4 + int.from_bytes(frames[start + 2 : start + 4])
    if size == _EIGHT_BYTES:
        return start + 10 + int.from_bytes(frames[start + 2 : start + 10])
    return start + 2 + size


def _data(text: str) -> str:
    if "\n" not in text and "\r" not in text:
        return f"data: {text}\n"
    return "".join(f"data: {line}\n" for line in _LINE_END.split(text))
