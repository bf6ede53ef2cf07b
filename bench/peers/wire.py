"""HTTP and server-sent events as the one client of all servers speaks them.

Responsible for requests, frames, and ends of connections of every kind. Not responsible for what a frame means.
"""

import math
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from types import MappingProxyType
from typing import NamedTuple, Self

HOST = "127.0.0.1"
READ_BYTES = 65_536
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a RST, as a link does that is cut."""
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Request(NamedTuple):
    """What opens a stream."""

    method: str
    path: str
    headers: Mapping[str, str] = NO_HEADERS
    body: bytes = b""

    def encoded(self) -> bytes:
        """As HTTP/1.1 has it, for those who read no answer."""
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {HOST}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        lines += [f"Content-Length: {len(self.body)}"] if self.body else []
        return "\r\n".join([*lines, "", ""]).encode() + self.body


class Frame(NamedTuple):
    """One server-sent event."""

    event: str
    id: str
    data: str
    characters: int
    """Since the end of the frame before, line ends and comments included."""
    at: float = 0.0
    """When it was read, by `time.monotonic`."""


class Refused(Exception):
    """The answer is no stream: its status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"The answer has the status {status}.")
        self.status = status


@dataclass(slots=True)
class Parser:
    """Bytes in, frames out. LF and CRLF end a line; a comment is counted and passed over."""

    _rest: bytes = b""
    _lines: list[tuple[str, str]] = field(default_factory=list)
    _characters: int = 0

    def feed(self, read: bytes) -> list[Frame]:
        """The frames that these bytes complete."""
        *lines, self._rest = (self._rest + read).split(b"\n")
        return [frame for line in lines if (frame := self._line(line.decode())) is not None]

    def _line(self, line: str) -> Frame | None:
        self._characters += len(line) + 1
        line = line.removesuffix("\r")
        if line:
            name, _, value = line.partition(":")
            self._lines.append((name, value.removeprefix(" ")))
            return None
        lines, self._lines = self._lines, []
        data = [value for name, value in lines if name == "data"]
        if not data:
            return None
        named = dict(lines)
        frame = Frame(named.get("event", ""), named.get("id", ""), "\n".join(data), self._characters)
        self._characters = 0
        return frame


class Stream:
    """A connection that was asked for a stream. The answer's head is read with the first frame: some send it late."""

    def __init__(self, port: int, request: Request, timeout: float) -> None:
        """:raises OSError: nobody listens there."""
        self._connection = HTTPConnection(HOST, port, timeout=timeout)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._connection.request(request.method, request.path, request.body or None, dict(request.headers))
        self._response: HTTPResponse | None = None

    def frames(self, deadline: float = math.inf) -> Iterator[Frame]:
        """Each as it comes, until the server ends the stream, in order or not, or says nothing for `timeout`.

        :param deadline: by `time.monotonic`: what says no more than that it is alive does not go on beyond that.
        :raises Refused: there is no stream.
        """
        parser = Parser()
        with suppress(OSError, HTTPException):
            while time.monotonic() < deadline and (read := self._opened().read1(READ_BYTES)):
                at = time.monotonic()
                yield from (frame._replace(at=at) for frame in parser.feed(read))

    def _opened(self) -> HTTPResponse:
        if self._response is None:
            self._response = self._connection.getresponse()
            if self._response.status != 200:
                raise Refused(self._response.status)
        return self._response

    def cut(self) -> None:
        """Be gone without a word."""
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()


def ask(port: int, request: Request, timeout: float) -> bytes:
    """The whole answer to a request that opens no stream.

    :raises Refused: it is an error.
    """
    connection = HTTPConnection(HOST, port, timeout=timeout)
    try:
        connection.request(request.method, request.path, request.body or None, dict(request.headers))
        response = connection.getresponse()
        read = response.read()
        if response.status >= 400:
            raise Refused(response.status)
        return read
    finally:
        connection.close()
