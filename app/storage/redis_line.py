"""One connection to Redis, without a pool: commands out, replies in.

redis-py makes it; what goes over it is packed and parsed here, with hiredis, because its client and pool cost more than
the reads themselves. Not responsible for what is asked.

Every method may raise StoreUnavailable. The connection is then closed, and stays so until `connect`. That Redis refuses
something is a reply.
"""

import ssl
from collections.abc import Iterable
from typing import Any, Final

import hiredis
import redis

from app.errors import StoreUnavailable
from app.storage.redis_connections import SOCKET_TIMEOUT_SECONDS, Command, one_connection
from app.turns import give_way

READ_BYTES = 65_536
NOTHING: Final = object()
NOT_NOW: Final = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Line:
    """The connection. Whoever uses it while it is not connected is told so."""

    def __init__(self, url: str) -> None:
        self._connection = one_connection(url, SOCKET_TIMEOUT_SECONDS)
        self._socket: Any = None
        self._replies = hiredis.Reader(notEnoughData=NOTHING)
        self._unsent = b""
        """The rest of a command that was begun."""

    def connect(self) -> None:
        """Connect anew."""
        self.close()
        try:
            self._connection.connect()
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailable("Redis cannot be reached.") from error
        self._replies = hiredis.Reader(notEnoughData=NOTHING)
        self._unsent = b""
        self._socket = self._connection._sock
        self._socket.settimeout(None)  # whoever waits for too long has the connection closed

    @property
    def connected(self) -> bool:
        """It is open as far as is known."""
        return self._socket is not None

    @property
    def socket(self) -> Any:
        """The open connection's."""
        if self._socket is None:
            raise StoreUnavailable("The connection to Redis was lost.")
        return self._socket

    def send(self, commands: Iterable[Command]) -> None:
        """Send them all."""
        self._send(b"".join([hiredis.pack_command(command) for command in commands]))

    def begin(self, command: Command) -> None:
        """Send it as far as the connection takes it at once: never waits. `receive` sends the rest."""
        data = hiredis.pack_command(command)
        sock = self.socket
        sock.settimeout(0)
        try:
            self._unsent = data[sock.send(data) :]
        except NOT_NOW:
            self._unsent = data
        except OSError as error:
            raise self._broken() from error
        sock.settimeout(None)

    def receive(self) -> Any:
        """Wait for the next reply."""
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            self._send(unsent)
        while (reply := self._replies.gets()) is NOTHING:
            try:
                self._feed(self.socket.recv(READ_BYTES))
            except OSError as error:
                raise self._broken() from error
            give_way()
        return reply

    def at_hand(self) -> list[Any]:
        """The replies that are there: never waits."""
        sock = self.socket
        sock.settimeout(0)
        try:
            self._feed(sock.recv(READ_BYTES))
            while isinstance(sock, ssl.SSLSocket) and sock.pending():  # of that no descriptor tells
                self._feed(sock.recv(READ_BYTES))
        except NOT_NOW:
            pass
        except OSError as error:
            raise self._broken() from error
        sock.settimeout(None)
        replies = []
        while (reply := self._replies.gets()) is not NOTHING:
            replies.append(reply)
        return replies

    def _send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise self._broken() from error

    def _feed(self, data: bytes) -> None:
        if not data:
            raise self._broken()
        self._replies.feed(data)

    def close(self) -> None:
        """Close it; whoever waits for a reply is told."""
        self._socket = None
        self._connection.disconnect()

    def _broken(self) -> StoreUnavailable:
        self.close()
        return StoreUnavailable("Redis cannot be reached.")
