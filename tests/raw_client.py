"""An HTTP client of raw sockets: reads as much as it is told to, when it is told to, and keeps every byte."""

import json
import socket
import struct
from typing import Any, Self

RESET = struct.pack("ii", 1, 0)


class RawClient:
    """One connection. `received` is everything that has been read from it."""

    def __init__(self, port: int, *, receive_buffer: int | None = None, timeout: float = 15) -> None:
        self.received = b""
        self.ended = False
        self.socket = socket.socket()
        self.socket.settimeout(timeout)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect(("127.0.0.1", port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, path: str, accept: str = "text/event-stream", method: str = "GET", version: str = "1.1") -> Self:
        """Send a request."""
        head = f"{method} {path} HTTP/{version}\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
        self.socket.sendall(head.encode())
        return self

    def read(self, most: int = 65_536) -> bytes:
        """Read once. Empty at the end of the connection.

        :raises ConnectionResetError: the server has reset it.
        """
        data = self.socket.recv(most)
        self.received += data
        self.ended = not data
        return data

    def until(self, text: bytes) -> Self:
        """Read until that has been received."""
        while text not in self.received:
            assert self.read(), f"the connection ended before {text!r}: {self.received[-300:]!r}"
        return self

    def to_the_end(self, most: int = 65_536) -> Self:
        """Read until the server closes the connection."""
        while self.read(most):
            pass
        return self

    def reset(self) -> None:
        """Vanish."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.socket.close()

    @property
    def head(self) -> bytes:
        """The head of the response."""
        return self.received.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        """The body so far, without its chunks' frames."""
        rest = self.received.partition(b"\r\n\r\n")[2]
        if b"transfer-encoding: chunked" not in self.head.lower():
            return rest
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            body, rest = body + rest[:length], rest[length + 2 :]
        return body

    @property
    def ended_in_order(self) -> bool:
        """The chunked body has its end."""
        return self.received.endswith(b"\r\n0\r\n\r\n")

    @property
    def envelopes(self) -> list[dict[str, Any]]:
        """The complete SSE messages or NDJSON lines so far."""
        lines = self.body.decode(errors="replace").split("\n")[:-1]
        texts = [line.removeprefix("data: ") for line in lines if line.startswith(("data: ", "{"))]
        return [json.loads(text) for text in texts]

    @property
    def seqs(self) -> list[int]:
        """Of the events so far."""
        return [envelope["seq"] for envelope in self.envelopes if "seq" in envelope]


class Incoming:
    """A response that is taken apart while it arrives, by its own rules: chunks, a length, or the connection's end."""

    def __init__(self) -> None:
        self.status: int | None = None
        """None: the head has not arrived yet."""
        self.headers: dict[str, str] = {}
        """Names in lower case."""
        self.complete = False
        """Its end has arrived."""
        self.length: int | None = None
        """Of the rest of the body, in bytes, where that is known."""
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """What these bytes add to the body."""
        assert not self.complete, f"bytes after the end: {data[:100]!r}"
        self._rest += data
        if self.status is None and not self._take_head():
            return b""
        if "transfer-encoding" in self.headers:
            return b"".join(iter(self._take_chunk, b""))
        body, self._rest = self._rest, b""
        if self.length is not None:
            self.length -= len(body)
            assert self.length >= 0, f"bytes after the end: {body[-100:]!r}"
            self.complete = self.length == 0
        return body

    def closed(self) -> None:
        """The connection has ended: so has a response without any other end."""
        self.complete |= self.status is not None and "transfer-encoding" not in self.headers and self.length is None

    def _take_head(self) -> bool:
        head, found, rest = self._rest.partition(b"\r\n\r\n")
        if found:
            first, *lines = head.decode().split("\r\n")
            pairs = (line.partition(": ") for line in lines)
            self.headers = {name.lower(): value for name, _, value in pairs}
            self.status = int(first.split()[1])
            length = "0" if self.status == 204 else self.headers.get("content-length")
            self.length = None if length is None else int(length)
            self._rest = rest
        return bool(found)

    def _take_chunk(self) -> bytes:
        """The next chunk; empty where it is not whole yet, and at the last one."""
        size, found, _ = self._rest.partition(b"\r\n")
        start = len(size) + 2
        end = start + int(size, 16) if found else 0
        if not found or len(self._rest) < end + 2:
            return b""
        chunk = self._rest[start:end]
        assert self._rest[end : end + 2] == b"\r\n", f"a chunk of another length: {self._rest[end:][:100]!r}"
        self._rest = self._rest[end + 2 :]
        self.complete = not chunk
        assert chunk or not self._rest, f"bytes after the end: {self._rest[:100]!r}"
        return chunk
