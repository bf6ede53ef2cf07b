"""The writer of baseline (c): the same events, over HTTP to nchan's publisher location, on one kept connection.

The requests are pipelined: nchan answers one when its message is on its way to every subscriber, and a writer that
waited for that would let nchan set the pace.
"""

import re
import socket
from collections.abc import Sequence
from contextlib import closing
from urllib.parse import urlsplit

from app.protocol.events import Event
from bench.pacing import Due, arguments, write
from bench.ticks import end, tick

TIMEOUT_SECONDS = 60
# Not only at the beginning of a line: the text of an answer ends without one.
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
KEPT = len(b"HTTP/1.1 200")
"""Bytes of one read that may be the beginning of a status line that the next completes."""


class NchanSink:
    """Publishes to the channel named like the run."""

    def __init__(self, connection: socket.socket, payload_bytes: int) -> None:
        self._connection = connection
        self._payload_bytes = payload_bytes
        self._unanswered = 0
        self._rest = b""

    def write(self, events: Sequence[Due]) -> None:
        """Publish them; does not wait for the answers."""
        for run, seq in events:
            self._publish(run, tick(run, seq, self._payload_bytes))
        self._answers(socket.MSG_DONTWAIT)

    def end(self, ends: Sequence[Due]) -> None:
        """Publish the terminal events."""
        for run, seq in ends:
            self._publish(run, end(run, seq))

    def flush(self) -> None:
        """Wait until everything is answered."""
        while self._unanswered:
            self._answers(0)

    def _publish(self, run: str, event: Event) -> None:
        body = event.text.encode()
        head = f"POST /pub/{run} HTTP/1.1\r\nHost: nchan\r\nX-EventSource-Event: {event.type}\r\n"
        self._connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        self._unanswered += 1

    def _answers(self, flags: int) -> None:
        try:
            received = self._connection.recv(1 << 20, flags)
        except BlockingIOError:
            return
        if not received:
            raise RuntimeError("nchan closed the connection")
        text = self._rest + received
        found = list(STATUS.finditer(text))
        if refused := [match[1] for match in found if match[1] >= b"300"]:
            raise RuntimeError(f"nchan answered {refused[0].decode()}")
        self._unanswered -= len(found)
        self._rest = text[max(found[-1].end() if found else 0, len(text) - KEPT + 1) :]


def main() -> None:
    """Write as the arguments say."""
    options = arguments().parse_args()
    where = urlsplit(options.url)
    with closing(socket.create_connection((where.hostname, where.port), TIMEOUT_SECONDS)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sink = NchanSink(connection, options.payload_bytes)
        write(sink, options)
        sink.flush()


if __name__ == "__main__":
    main()
