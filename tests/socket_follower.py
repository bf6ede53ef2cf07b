"""The follower that uses WebSockets: its messages are checked like everybody's, its end by the close code."""

import json
from dataclasses import dataclass, field
from typing import Any, Final

from wsproto.connection import Connection as Frames
from wsproto.connection import ConnectionType
from wsproto.events import CloseConnection, Ping, Pong, TextMessage

from app.protocol import framing
from tests.follower import Connection, Follower, Form
from tests.socket_client import handshake

SOCKET: Final = Form("websocket", "", framing.websocket)
ASK_EVERY = 20
"""Events after which the client acknowledges what it has."""


@dataclass(slots=True)
class SocketConnection(Connection):
    """One window."""

    frames: Frames = field(default_factory=lambda: Frames(ConnectionType.CLIENT), repr=False)
    parts: list[str] = field(default_factory=list, repr=False)
    code: int | None = None
    """Of the server's close frame."""
    asked: int | None = None
    """The seq that it has acknowledged, and was not answered about yet."""


class SocketFollower(Follower):
    """As `Follower`. Now and then it acknowledges what it has, which is to be answered between events."""

    answers = 0
    connection: SocketConnection | None

    @property
    def owed(self) -> bool:
        """As in `Follower`. What crosses the server's close frame is not answered."""
        return self.connection is not None and self.connection.asked is not None

    def connect(self) -> None:
        """As in `Follower`."""
        client = self._open()
        if client is None:
            return
        since = "latest" if self.cursor is None else self.cursor
        client.socket.sendall(handshake(f"/runs/{self.log.run_id}/ws?since_seq={since}"))
        client.socket.setblocking(False)
        self.connection = SocketConnection(client, self.cursor, self.log.archived, may_break=self._buffer is not None)
        self.connections += 1

    def read(self) -> None:
        """As in `Follower`."""
        connection = self.connection
        assert connection is not None
        try:
            data = connection.client.socket.recv(65_536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if data:
            self._take_bytes(connection, data)
        if connection.code is not None or not data:
            self._closed(connection)

    def _take_bytes(self, connection: SocketConnection, data: bytes) -> None:
        body = connection.incoming.feed(data)
        assert connection.incoming.status in (None, 101), f"{connection.incoming.status}: {self}"
        if connection.incoming.status == 101:
            connection.opened = True
        connection.frames.receive_data(body)
        for event in connection.frames.events():
            self._take_event(connection, event)

    def _take_event(self, connection: SocketConnection, event: Any) -> None:
        if isinstance(event, TextMessage):
            connection.parts.append(event.data)
            if event.message_finished:
                text, connection.parts = "".join(connection.parts), []
                self._take_text(connection, text)
        elif isinstance(event, Ping):
            self.heartbeats += 1
            self._say(connection, event.response())
        else:
            assert isinstance(event, CloseConnection), event
            connection.code = int(event.code)

    def _take_text(self, connection: SocketConnection, text: str) -> None:
        assert connection.speaks, self
        following = self._next()
        if following is not None and text == following.text:
            assert self.cursor is not None
            self.cursor += 1
            self.delivered += 1
            connection.replayed += len(framing.websocket_text(text.encode()))
            if self.cursor % ASK_EVERY == 0 and connection.asked is None:
                connection.asked = self.cursor
                self._say(connection, TextMessage(json.dumps({"type": "ack", "seq": self.cursor})))
        else:
            self._take_other(connection, json.loads(text))

    def _take_other(self, connection: SocketConnection, envelope: dict[str, Any]) -> None:
        assert "seq" not in envelope, f"{str(envelope)[:300]} is not what follows: {self}"
        type, payload = envelope["type"], envelope["payload"]
        if type == "stream.answer":
            assert payload["ok"], f"{payload}: {self}"
            assert payload["result"]["seq"] == connection.asked <= payload["result"]["head"] <= self.log.head, self
            connection.asked = None
            self.answers += 1
        elif type == "stream.snapshot":
            self._take_snapshot(connection, payload["seq"], payload["state"])
        else:
            assert type == "stream.expired", f"{type}: {self}"
            self.rotations += 1
            connection.parted = True

    def _say(self, connection: SocketConnection, event: TextMessage | Pong) -> None:
        try:
            connection.client.socket.sendall(connection.frames.send(event))
        except ConnectionError:
            connection.may_break = True  # the server has gone: whatever it has said before is still read

    def _closed(self, connection: SocketConnection) -> None:
        if connection.code is None:
            unheard = connection.draining and connection.incoming.status is None
            assert connection.may_break or unheard, f"a broken end: {connection.incoming.status} {self}"
            self.broken += 1
        elif connection.code == 1000:
            assert self.complete, f"told to stay away: {self}"
            self.finished = True
        else:
            expected = {1001: connection.parted, 1012: connection.draining, 4008: connection.may_break}
            assert expected.get(connection.code), f"closed with {connection.code}: {self}"
            self.broken += connection.code == 4008
        self.disconnect()
