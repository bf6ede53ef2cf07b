"""What a WebSocket client says, and what it is answered. Bytes in, messages out; no connections.

Made for a window at the first byte that needs it: most clients never say more than that they are there.
"""

from collections.abc import Iterator
from typing import Final

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.frame_protocol import CloseReason

from app.protocol.framing import websocket_pong, websocket_text

MESSAGE_BYTES = 65_536
"""The largest message that is taken."""
COMMANDS_MAX = 8
"""Commands of one window that have not been answered yet."""

_PONG: Final = 0x8A
_MASKED: Final = 0x80
_CONTROL_BYTES: Final = 125
_MASKED_HEAD_BYTES: Final = 6


class Violation(Exception):
    """The client may not say that. The connection is to be closed with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Goodbye:
    """The client's close frame. `code` is None where it gave none."""

    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = None if code == CloseReason.NO_STATUS_RCVD else int(code)


class Dialogue:
    """Of one window: the message that is arriving, the commands under way, the answers that are still to be sent."""

    __slots__ = ("_connection", "_parts", "_pong", "_size", "answers", "commands", "obeying")

    def __init__(self) -> None:
        self.commands: list[str] = []
        """Not answered yet; the first one is under way."""
        self.obeying = False
        """Somebody goes through the commands."""
        self.answers: list[str] = []
        """Not handed to the socket yet."""
        self._connection = Connection(ConnectionType.SERVER)
        self._parts: list[str] = []
        self._size = 0
        self._pong = b""

    def take(self, data: bytes) -> Iterator[Goodbye | None]:
        """Take in what has arrived. Messages go to `commands`; yields as soon as there is something to do.

        None: there is a command, or something to send. A Goodbye is the last one.

        :raises Violation: the client broke a rule, or has too many commands open. Nothing more may be taken in.
        """
        self._connection.receive_data(data)
        for event in self._connection.events():
            if isinstance(event, TextMessage):
                if self._complete(event):
                    yield None
            elif isinstance(event, Ping):
                self._pong = websocket_pong(bytes(event.payload))  # of several, the last one is to be answered
                yield None
            elif isinstance(event, BytesMessage):
                raise Violation(CloseReason.UNSUPPORTED_DATA)
            elif isinstance(event, CloseConnection):
                if self._connection.state is ConnectionState.OPEN:  # what it sent is no frame
                    raise Violation(event.code)
                yield Goodbye(event.code)

    def frames(self) -> bytes:
        """What is to be sent, which counts as sent from then on."""
        found, self._pong = self._pong + b"".join(websocket_text(answer.encode()) for answer in self.answers), b""
        self.answers.clear()
        return found

    def _complete(self, event: TextMessage) -> bool:
        self._size += len(event.data.encode())
        if self._size > MESSAGE_BYTES:
            raise Violation(CloseReason.MESSAGE_TOO_BIG)
        if event.data:
            self._parts.append(event.data)
        if event.message_finished:
            if len(self.commands) + len(self.answers) >= COMMANDS_MAX:
                raise Violation(CloseReason.POLICY_VIOLATION)
            self.commands.append("".join(self._parts))
            self._parts, self._size = [], 0
        return event.message_finished


def is_pong(data: bytes) -> bool:
    """One whole pong and no more, as every client answers a heartbeat: there is nothing to do."""
    size = len(data) - _MASKED_HEAD_BYTES
    return 0 <= size <= _CONTROL_BYTES and data[0] == _PONG and data[1] == _MASKED | size
