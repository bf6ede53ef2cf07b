"""Connections to Redis: how they are made, pooled and looked at, and one round trip over one of them.

Not responsible for what is asked, or for a Redis that hangs (`breaker`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from app.storage.peek import peek

SOCKET_TIMEOUT_SECONDS = 3
"""A Redis that has not answered for so long is away. Blocking reads end well before."""
POOL_WAIT_SECONDS = 5
"""Who has waited so long for a connection to come free is told that Redis cannot be reached."""
PIECE_BYTES = 65_536
"""Of what is sent in one go, unless one command has more."""

NO_NOTIFICATIONS = MaintNotificationsConfig(enabled=False)
"""With them a pool would hand out connections on which something has come."""

Command = tuple[Any, ...]


def connect(url: str, max_connections: int, *, on_connect: Callable[[Any], None] | None = None) -> redis.Redis:
    """A client whose callers wait for a free connection, and that never repeats a command by itself.

    :param on_connect: called with each new connection, in place of its own `on_connect`.
    """
    plain: dict[str, Any] = {"connection_class": _Connection} if url.startswith("redis://") else {}
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=POOL_WAIT_SECONDS,
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        redis_connect_func=on_connect,
        maint_notifications_config=NO_NOTIFICATIONS,
        **plain,
    )
    return redis.Redis(connection_pool=pool)


def one_connection(url: str, socket_timeout: float, on_connect: Callable[[Any], None] | None = None) -> Any:
    """A connection without a pool, which nobody checks before it is used: who uses it notices that it is lost.

    RESP2, in which replies have one shape. A `redis.connection.Connection`, whose methods carry no types.
    """
    pool = redis.ConnectionPool.from_url(
        url,
        protocol=2,
        socket_timeout=socket_timeout,
        socket_connect_timeout=min(socket_timeout, SOCKET_TIMEOUT_SECONDS),
        retry=Retry(NoBackoff(), 0),
        redis_connect_func=on_connect,
    )
    return pool.make_connection()


@contextmanager
def borrowed(client: redis.Redis) -> Iterator[Any]:
    """A connection of the client's pool for the block, connected: the pool has replaced one that was lost."""
    pool = client.connection_pool
    connection = pool.get_connection()
    try:
        yield connection
    finally:
        pool.release(connection)


def exchange(connection: Any, commands: Sequence[Command]) -> list[Any]:
    """The replies to some commands, in one round trip. A command that was refused has its `redis.ResponseError`.

    It does what a pipeline of redis-py does without a transaction, in half of the time. Raises redis-py's errors; the
    connection is closed then. An argument is a text, bytes or a number; of anything else it raises TypeError, and
    nothing is sent.
    """
    packed = list(_packed(commands))
    try:
        connection.send_packed_command(packed)
        return [_reply(connection) for _ in commands]
    except BaseException:
        connection.disconnect()  # the rest of the replies is unread
        raise


def _packed(commands: Iterable[Command]) -> Iterator[bytes]:
    """The commands as bytes, small ones together. Each piece has the time that the connection gives to one."""
    pieces, size = [], 0
    for command in commands:
        pieces.append(hiredis.pack_command(command))
        size += len(pieces[-1])
        if size >= PIECE_BYTES:
            yield b"".join(pieces)
            pieces, size = [], 0
    if pieces:
        yield b"".join(pieces)


def transaction(commands: Iterable[Command]) -> list[Command]:
    """Commands that are carried out together or not at all. `committed` looks at the last of the replies."""
    return [("MULTI",), *commands, ("EXEC",)]


def committed(reply: Any) -> None:
    """See to it that a transaction was carried out.

    :param reply: to its end.
    :raises redis.ResponseError: something in it was refused.
    """
    for outcome in reply if isinstance(reply, list) else [reply]:
        if isinstance(outcome, redis.ResponseError):
            raise outcome


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.ResponseError as refused:
        return refused


class _Connection(redis.Connection):
    """Over TCP, without TLS. The pool looks at each before it hands it out; gevent's `select` would take 50 µs."""

    def can_read(self, timeout: float = 0) -> bool:
        """As redis-py has it: something has come.

        :raises ConnectionError: redis-py's; the connection was lost.
        """
        sock: Any = self._sock
        parser: Any = self._parser
        if timeout != 0 or sock is None or parser._reader.has_data():
            return bool(super().can_read(timeout))
        first_byte = peek(sock.fileno())
        if first_byte == b"":
            raise redis.ConnectionError("The connection was lost.")
        return first_byte is not None
