"""Reading the logs of many runs over two connections, however many: the reader asks, the doorbell rings.

Speaks to redis-py's connections without its pool and client, which cost more than the reads themselves. RESP2 on
both: its replies have one shape. Not responsible for who reads what (`app.streaming`).
Every method may raise StoreUnavailable; the connection is then closed, and the next call makes a new one.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.errors import StoreUnavailable
from app.protocol.events import Event
from app.storage.event_log import SOCKET_TIMEOUT_SECONDS, channel, meta_key, stream_key, tolerate_self_signed

SILENCE_SECONDS = 10
"""A doorbell that has not said a word for so long is dead. Ping it twice as often."""

Command = tuple[str | int, ...]


class LogReader:
    """Reads over one connection. Callers take turns; a call is one round trip."""

    def __init__(self, url: str) -> None:
        self._connection = _connection(url, SOCKET_TIMEOUT_SECONDS)
        self._turn = threading.Lock()

    def read_many(self, cursors: Mapping[str, int], limit: int) -> dict[str, list[Event]]:
        """For each run that has events after its cursor: those, in order, at most `limit`. Never waits for any.

        The first need not be cursor + 1: callers check.
        """
        keys = [stream_key(run_id) for run_id in cursors]
        ids = [f"{seq}-0" for seq in cursors.values()]
        (reply,) = self._ask([("XREAD", "COUNT", limit, "STREAMS", *keys, *ids)])
        return {key[4:-8].decode(): list(map(_event, entries)) for key, entries in reply or ()}

    def read(self, run_id: str, after: int, limit: int) -> list[Event]:
        """As `read_many`, for one run."""
        (reply,) = self._ask([("XRANGE", stream_key(run_id), f"({after}-0", "+", "COUNT", limit)])
        return list(map(_event, reply))

    def entries(self, seqs: Mapping[str, int]) -> dict[str, Event]:
        """Of each run the event of that seq, where Redis has it."""
        replies = self._ask([("XRANGE", stream_key(run_id), f"{n}-0", f"{n}-0") for run_id, n in seqs.items()])
        return {run_id: _event(reply[0]) for run_id, reply in zip(seqs, replies, strict=True) if reply}

    def heads(self, run_ids: Sequence[str]) -> dict[str, int]:
        """Of each run the seq of its last event; 0 where Redis knows nothing."""
        replies = self._ask([("HGET", meta_key(run_id), "head") for run_id in run_ids])
        return {run_id: int(reply or 0) for run_id, reply in zip(run_ids, replies, strict=True)}

    def head(self, run_id: str) -> int:
        """As `heads`, of one run."""
        return self.heads([run_id])[run_id]

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    def _ask(self, commands: Sequence[Command]) -> list[Any]:
        with self._turn, _reachable(self._connection):
            self._connection.send_packed_command(self._connection.pack_commands(commands))
            return [self._connection.read_response() for _ in commands]


class Doorbell:
    """One subscribed connection, which rings when runs have something new. One greenlet hears, one other subscribes."""

    def __init__(self, url: str) -> None:
        self._connection = _connection(url, SILENCE_SECONDS)

    def connect(self) -> None:
        """Connect anew, subscribed to nothing."""
        self._connection.disconnect()
        with _reachable(self._connection):
            self._connection.connect()

    def subscribe(self, run_ids: Iterable[str]) -> None:
        """From the confirmation on, that `hear` returns, these runs ring."""
        self._send("SUBSCRIBE", *map(channel, run_ids))

    def unsubscribe(self, run_ids: Iterable[str]) -> None:
        """These runs need not ring any more."""
        self._send("UNSUBSCRIBE", *map(channel, run_ids))

    def ping(self) -> None:
        """Make it say something."""
        self._send("PING")

    def hear(self) -> tuple[bytes, str]:
        """Wait for a word: b"message" (it rang) or b"subscribe" (confirmed), and the run; anything else means nothing.

        :raises StoreUnavailable: the connection is lost, closed, or silent for SILENCE_SECONDS.
        """
        with _reachable(self._connection):
            reply = self._connection.read_response()
        # Without a subscription the answer to PING is one word.
        return (reply[0], reply[1][4:-1].decode()) if isinstance(reply, list) else (reply, "")

    def close(self) -> None:
        """Close the connection; whoever hears is told."""
        self._connection.disconnect()

    def _send(self, *command: str) -> None:
        if not self._connection.is_connected:
            raise StoreUnavailable("The doorbell is not connected.")  # sending would connect, unsubscribed
        with _reachable(self._connection):
            self._connection.send_packed_command(self._connection.pack_command(*command))


def _connection(url: str, socket_timeout: float) -> Any:  # a redis.Connection, whose methods carry no types
    pool = redis.ConnectionPool.from_url(
        tolerate_self_signed(url),
        protocol=2,
        socket_timeout=socket_timeout,
        socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    return pool.make_connection()


def _event(entry: Any) -> Event:
    entry_id, (_, type, _, text, _, op) = entry
    return Event(int(entry_id[:-2]), type.decode(), text.decode(), op.decode())


@contextmanager
def _reachable(connection: Any) -> Iterator[None]:
    """Whatever goes wrong in the middle of a reply leaves the rest of it unread: the connection is of no more use."""
    try:
        yield
    except BaseException as error:
        connection.disconnect()
        if isinstance(error, redis.RedisError | OSError):
            raise StoreUnavailable("Redis cannot be reached.") from error
        raise
