"""The bytes of events on SSE, NDJSON and WebSocket wires.

Responsible for framing only. Not responsible for which events a window gets or when.
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

_LINE_END = re.compile(b"\r\n|\r|\n")


def sse(event: Event, named: bool = True) -> bytes:
    """One SSE message; its id is the seq. Without a name a browser hands it to `onmessage`."""
    if "\n" in event.text or "\r" in event.text:
        return _message(event.seq, event.type if named else None, event.text.encode())
    name = f"event: {event.type}\n" if named else ""  # as `_message`, in half the time: this is the hot path
    return f"id: {event.seq}\n{name}data: {event.text}\n\n".encode()


def sse_control(type: str, data: bytes, id: int | None = None, named: bool = True) -> bytes:
    """One control frame. Only a snapshot has an `id`, its seq: another would corrupt the reader's cursor."""
    return _message(id, type if named else None, data)


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


def ndjson_control(data: bytes) -> bytes:
    """One line."""
    return data + b"\n"


def websocket(event: Event) -> bytes:
    """One text frame, which is one message."""
    return websocket_text(event.text.encode())


def websocket_text(data: bytes) -> bytes:
    """One text frame, which is one message."""
    return _frame(_TEXT, data)


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


def _message(id: int | None, name: str | None, data: bytes) -> bytes:
    head = b"" if id is None else b"id: %d\n" % id
    if name is not None:
        head += b"event: %b\n" % name.encode()
    if b"\n" in data or b"\r" in data:
        return b"".join((head, *(b"data: %b\n" % line for line in _LINE_END.split(data)), b"\n"))
    return b"".join((head, b"data: ", data, b"\n\n"))  # one copy of what may be megabytes
