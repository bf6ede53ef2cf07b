"""A WebSocket client of raw sockets: reads as much as it is told to, when it is told to. Frames by wsproto."""

import base64
import hashlib
import json
import secrets
import struct
from typing import Any, Self

from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Event, Ping, Pong, TextMessage

from tests.raw_client import RawClient

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def handshake(path: str, **headers: str | None) -> bytes:
    """The head of a request. A header that is None is left out; `_` stands for `-`."""
    usual: dict[str, str | None] = {
        "Host": "localhost",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": base64.b64encode(secrets.token_bytes(16)).decode(),
    }
    usual |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in usual.items() if value is not None]
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode()


def masked(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = True) -> bytes:
    """A client's frame, good or bad."""
    size = len(payload)
    key = b"\x01\x02\x03\x04" if mask else b""
    if size < 126:
        length = bytes([size])
    else:
        length = b"\x7e" + struct.pack("!H", size) if size < 65_536 else b"\x7f" + struct.pack("!Q", size)
    head = bytes([fin << 7 | rsv << 4 | opcode, length[0] | mask << 7]) + length[1:] + key
    return head + (bytes(byte ^ key[i % 4] for i, byte in enumerate(payload)) if mask else payload)


class SocketClient(RawClient):
    """One connection. `texts` are the messages, and `code` is that of the server's close frame, once they are there."""

    def __init__(self, port: int, **options: Any) -> None:
        super().__init__(port, **options)
        self.nonce = base64.b64encode(secrets.token_bytes(16)).decode()
        self.status: int | None = None
        self.texts: list[str] = []
        self.pings = 0
        self.pongs: list[bytes] = []
        self.code: int | None = None
        self.polite = True
        """Answers pings and a close frame."""
        self._frames = Connection(ConnectionType.CLIENT)
        self._parts: list[str] = []
        self._taken = 0
        """Bytes that were taken apart."""
        self._asked = 0
        """Answers that were asked for."""

    def shake(self, run_id: str, query: str = "", behind: bytes = b"", **headers: str | None) -> Self:
        """Send a handshake.

        :param behind: what is sent with it.
        """
        head = handshake(f"/runs/{run_id}/ws{query}", **{"Sec_WebSocket_Key": self.nonce, **headers})
        self.socket.sendall(head + behind)
        return self

    def open(self, run_id: str, query: str = "", **headers: str | None) -> Self:
        """Shake hands; fails unless the server does."""
        self.shake(run_id, query, **headers).until(b"\r\n\r\n")
        assert self.status == 101, self.received
        accept = base64.b64encode(hashlib.sha1(self.nonce.encode() + GUID).digest())
        assert b"Sec-WebSocket-Accept: " + accept in self.received
        return self

    def read(self, most: int = 65_536) -> bytes:
        """As in `RawClient`; takes the frames apart."""
        data = super().read(most)
        self._take()
        return data

    def say(self, **command: Any) -> Self:
        """Send a command."""
        return self.send(TextMessage(json.dumps(command)))

    def send(self, event: Event) -> Self:
        """Send a frame."""
        self.socket.sendall(self._frames.send(event))
        return self

    def frame(self, event: Event) -> bytes:
        """The frame, not sent."""
        return bytes(self._frames.send(event))

    def messages(self, count: int) -> list[dict[str, Any]]:
        """The first so many messages, once they are there."""
        while len(self.texts) < count:
            assert self.read(), f"the connection ended after {self.texts[-3:]}, {self.code}"
        return self.envelopes[:count]

    def answer(self) -> dict[str, Any]:
        """The payload of the next `stream.answer`."""
        while len(self.answers) == self._asked:
            assert self.read(), f"the connection ended after {self.texts[-3:]}, {self.code}"
        self._asked += 1
        return self.answers[self._asked - 1]

    def ask_for(self, **command: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        return self.say(**command).answer()

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The payloads of the answers so far."""
        return [e["payload"] for e in self.envelopes if e["type"] == "stream.answer"]

    @property
    def envelopes(self) -> list[dict[str, Any]]:
        """The messages so far."""
        return [json.loads(text) for text in self.texts]

    def _take(self) -> None:
        if self.status is None:
            head, found, rest = self.received.partition(b"\r\n\r\n")
            if not found:
                return
            self.status = int(head.split()[1])
            self._taken = len(self.received) - len(rest)
        if self.status != 101 or self._taken == len(self.received):
            return
        data, self._taken = self.received[self._taken :], len(self.received)
        self._frames.receive_data(data)
        for event in self._frames.events():
            self._take_event(event)

    def _take_event(self, event: Event) -> None:
        if isinstance(event, TextMessage):
            self._parts.append(event.data)
            if event.message_finished:
                self.texts.append("".join(self._parts))
                self._parts = []
        elif isinstance(event, Ping):
            self.pings += 1
            if self.polite:
                self.send(event.response())
        elif isinstance(event, Pong):
            self.pongs.append(bytes(event.payload))
        else:
            assert isinstance(event, CloseConnection), event
            assert self.code is None, "a second close frame"
            self.code = event.code
            assert self._frames.state.name == "REMOTE_CLOSING", f"no frame: {event.reason}"
            if self.polite:
                self.send(event.response())
