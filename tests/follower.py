"""A client that follows one run over any number of connections and checks every byte that it gets.

It resumes with its last seq, as an EventSource does, and never waits: when it reads is up to the test.
Not responsible for what becomes of a connection: the test says when one may break.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from app.protocol import framing
from app.protocol.events import TERMINAL, Event
from app.protocol.reducer import fold, initial
from tests.log_author import LogAuthor
from tests.raw_client import Incoming, RawClient

HEARTBEATS: Final = (framing.SSE_HEARTBEAT, framing.NDJSON_HEARTBEAT)


@dataclass(frozen=True, slots=True)
class Form:
    """How a client asks, and what one event is to it."""

    accept: str
    query: str
    frame: Callable[[Event], bytes]

    @property
    def sse(self) -> bool:
        """Server-sent events."""
        return self.accept == "text/event-stream"

    @property
    def capped(self) -> bool:
        """A snapshot may take the place of many events."""
        return self.accept != "application/x-ndjson"


NAMED: Final = Form("text/event-stream", "", framing.sse)
UNNAMED: Final = Form("text/event-stream", "named=0&", partial(framing.sse, named=False))
LINES: Final = Form("application/x-ndjson", "", framing.ndjson)


@dataclass(frozen=True, slots=True)
class Cap:
    """From where on an SSE window may get a snapshot in place of events; 0 = never."""

    events: int = 0
    size: int = 0
    """Bytes."""

    def allows(self, events: int, size: int) -> bool:
        """A snapshot in place of so many events, after so many bytes of them."""
        return 0 < self.events < events or 0 < self.size <= size


@dataclass(slots=True)
class Connection:
    """One window. The test sets `may_break` and `draining`."""

    client: RawClient
    cursor: int | None
    """With which it was opened."""
    least: int
    """Of the seq of a snapshot."""
    may_break: bool = False
    """The client has not read for a while, or its server was killed."""
    draining: bool = False
    """Its server was told to end."""
    incoming: Incoming = field(default_factory=Incoming)
    text: bytes = field(default=b"", repr=False)
    """What has arrived of an unfinished frame."""
    opened: bool = False
    parted: bool = False
    """The server has said that the client is to come back."""
    replayed: int = 0
    """Bytes of events."""

    @property
    def speaks(self) -> bool:
        """What belongs between the opening and the farewell may come."""
        return self.opened and not self.parted


class Follower:
    """One client of one run. Raises AssertionError at anything that it should not have got."""

    def __init__(
        self, port: int, log: LogAuthor, cursor: int | None, cap: Cap, form: Form, version: str, buffer: int | None
    ) -> None:
        """
        :param cursor: None: it begins with a snapshot at the head.
        :param version: of HTTP.
        :param buffer: bytes that its kernel takes for it; None: as many as usual.
        """
        self.log = log
        self.cursor = cursor
        self.reading = True
        """Set by the test: it is to be read from when there is something."""
        self.away = False
        """Set by the test: it is not to connect."""
        self.finished = False
        """It has the terminal event, came back, and was told that there is no more."""
        self.connection: Connection | None = None
        self.delivered = self.snapshots = self.connections = self.rotations = self.heartbeats = self.broken = 0
        self._port = port
        self._form = form
        self._version = version
        self._buffer = buffer
        self._cap = cap

    def __repr__(self) -> str:
        how = f"{self._form.accept}?{self._form.query} HTTP/{self._version} buffer={self._buffer}"
        return f"<{how} at {self.cursor} of {self.log.head}, connection {self.connections}: {self.connection}>"

    @property
    def owed(self) -> bool:
        """It has said something that is to be answered."""
        return False

    def fileno(self) -> int:
        """Of its connection, for `select`."""
        assert self.connection is not None
        return self.connection.client.socket.fileno()

    def connect(self) -> None:
        """Ask for what follows its cursor. Nothing happens where nobody listens."""
        client = self._open()
        if client is None:
            return
        since = "latest" if self.cursor is None else self.cursor
        client.ask(f"{self.log.path}?{self._form.query}since_seq={since}", self._form.accept, version=self._version)
        client.socket.setblocking(False)
        # What a small buffer takes between two steps of a test is little: to the server this is a slow reader.
        self.connection = Connection(client, self.cursor, self.log.archived, may_break=self._buffer is not None)
        self.connections += 1

    def _open(self) -> RawClient | None:
        try:
            return RawClient(self._port, receive_buffer=self._buffer)
        except ConnectionRefusedError:
            return None

    def disconnect(self, reset: bool = False) -> None:
        """Leave."""
        if self.connection is not None:
            client = self.connection.client
            self.connection = None
            client.reset() if reset else client.socket.close()

    def read(self) -> None:
        """Read once, and check what came."""
        connection = self.connection
        assert connection is not None
        try:
            data = connection.client.socket.recv(65_536)
        except BlockingIOError:
            return
        except ConnectionError:
            return self._ended(connection)
        if data:
            self._take(connection, connection.incoming.feed(data))
        else:
            connection.incoming.closed()
        if connection.incoming.complete or not data:
            self._ended(connection)

    # What came.

    def _take(self, connection: Connection, body: bytes) -> None:
        connection.text += body
        start = 0
        while end := self._end_of_frame(connection.text, start):
            self._take_frame(connection, connection.text[start:end])
            start = end
        connection.text = connection.text[start:]

    def _end_of_frame(self, text: bytes, start: int) -> int:
        """Where the frame that begins at `start` ends; 0 where it has not arrived whole."""
        short = not self._form.sse or text.startswith((b":", b"retry"), start)
        mark = b"\n" if short else b"\n\n"
        found = text.find(mark, start)
        return found + len(mark) if found >= 0 else 0

    def _take_frame(self, connection: Connection, frame: bytes) -> None:
        if frame in HEARTBEATS:
            connection.opened |= not self._form.sse
            self.heartbeats += 1
        elif frame.startswith(b"retry: "):
            self._take_retry(connection, int(frame[7:]))
        elif self._next() is not None and frame == self._form.frame(self._next()):
            assert self.cursor is not None
            assert connection.speaks, self
            self.cursor += 1
            self.delivered += 1
            connection.replayed += len(frame)
        else:
            self._take_control(connection, frame)

    def _next(self) -> Any:
        return None if self.cursor is None or self.cursor >= self.log.head else self.log.events[self.cursor]

    def _take_retry(self, connection: Connection, ms: int) -> None:
        if connection.opened or "content-length" in connection.incoming.headers:
            assert ms >= 100, self
            connection.parted = True
        else:
            assert ms == 1_000, self
        connection.opened = True

    def _take_control(self, connection: Connection, frame: bytes) -> None:
        assert connection.speaks, self
        lines = frame.decode().split("\n")
        (text,) = [line.removeprefix("data: ") for line in lines if line.startswith(("data: ", "{"))]
        envelope = json.loads(text)
        assert "seq" not in envelope, f"{frame[:300]!r} is not what follows: {self}"
        assert envelope["type"] in ("stream.snapshot", "stream.expired"), f"{frame[:300]!r}: {self}"
        seq = envelope["payload"].get("seq")
        named = self._form is NAMED
        data = text.encode()
        wanted = framing.sse_control(envelope["type"], data, seq, named) if self._form.sse else data + b"\n"
        assert frame == wanted
        if seq is None:
            self.rotations += 1
            connection.parted = True
        else:
            self._take_snapshot(connection, seq, envelope["payload"]["state"])

    def _take_snapshot(self, connection: Connection, seq: int, state: dict[str, Any]) -> None:
        if self.cursor is None:
            assert seq >= connection.least, self
        else:
            assert seq > self.cursor, f"back to {seq}: {self}"
            behind = self.log.head - self.cursor  # while Redis is away a snapshot may go less far
            allowed = self._form.capped and self._cap.allows(behind, connection.replayed)
            assert allowed, f"to {seq} unasked: {self}"
        events = self.log.events[:seq]
        assert state == fold((event.envelope() for event in events), initial(self.log.run_id)), self
        assert state["last_seq"] == seq, self
        self.cursor = seq
        self.snapshots += 1
        connection.replayed = 0

    # The end of a connection.

    @property
    def complete(self) -> bool:
        """It has the terminal event."""
        return self.cursor == self.log.head and self.log.events[-1].type in TERMINAL

    def _ended(self, connection: Connection) -> None:
        incoming = connection.incoming
        whole = incoming.complete and not connection.text
        # NDJSON has no word for a server that ends.
        told = self.complete or connection.parted or (connection.draining and not self._form.sse)
        if whole and told:
            self._ended_in_order(connection, incoming)
        else:
            unheard = connection.draining and incoming.status is None
            assert connection.may_break or unheard, f"a broken end: {incoming.status} {incoming.headers} {self}"
            self.broken += 1
        self.disconnect()

    def _ended_in_order(self, connection: Connection, incoming: Incoming) -> None:
        assert incoming.status in (200, 204), self
        had_all = self.complete and connection.cursor == self.cursor
        by_204 = had_all and self._form.sse
        assert (incoming.status == 204) == by_204 or connection.draining, f"{incoming.status}: {self}"
        self.finished = had_all and (incoming.status == 204 or not self._form.sse)
