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
