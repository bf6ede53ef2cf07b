"""Reading the logs of many runs over two connections, however many: the reader asks, the doorbell rings.

Speaks to redis-py's connections without its pool and client, which cost more than the reads themselves.
Not responsible for who reads what (`app.streaming`).

Every method may raise StoreUnavailable. The connection is then closed, and stays so until `connect`: behind a new one
may be a Redis that has lost its last second, which somebody has to look into before anything is read.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import redis

from app.errors import StoreUnavailable
from app.protocol.events import Event
from app.storage.event_log import SOCKET_TIMEOUT_SECONDS, channel, meta_key, one_connection, stream_key

SILENCE_SECONDS = 10
"""A doorbell that has not said a word for so long is dead. Ping it twice as often."""

T = TypeVar("T")
Command = tuple[str | int, ...]


class LogReader:
    """Reads over one connection. Callers take turns; a call is one round trip."""

    def __init__(self, url: str) -> None:
        self._connection = one_connection(url, SOCKET_TIMEOUT_SECONDS)
        self._turn = threading.Lock()

    def connect(self) -> None:
        """Connect anew."""
        with self._turn:
            _connect(self._connection)

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

    def last_events(self, run_ids: Sequence[str]) -> dict[str, Event]:
        """Of each run its last event, where Redis knows one."""
        replies = self._ask([("XREVRANGE", stream_key(run_id), "+", "-", "COUNT", 1) for run_id in run_ids])
        return {run_id: _event(reply[0]) for run_id, reply in zip(run_ids, replies, strict=True) if reply}

    def head(self, run_id: str) -> int:
        """Seq of the last event that Redis holds (held, where it was trimmed); 0 where it knows nothing."""
        (reply,) = self._ask([("HGET", meta_key(run_id), "head")])
        return int(reply or 0)

    def close(self) -> None:
        """Close the connection."""
        self._connection.disconnect()

    def _ask(self, commands: Sequence[Command]) -> list[Any]:
        with self._turn:
            return _use(self._connection, lambda: self._exchange(commands))

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        self._connection.send_packed_command(self._connection.pack_commands(commands))
        return [self._connection.read_response() for _ in commands]


class Doorbell:
    """One subscribed connection, which rings when runs have something new. One greenlet hears, one other subscribes."""

    def __init__(self, url: str) -> None:
        self._connection = one_connection(url, SILENCE_SECONDS)

    def connect(self) -> None:
        """Connect anew, subscribed to nothing."""
        _connect(self._connection)

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
        reply = _use(self._connection, self._connection.read_response)
        # Without a subscription the answer to PING is one word.
        return (reply[0], reply[1][4:-1].decode()) if isinstance(reply, list) else (reply, "")

    def close(self) -> None:
        """Close the connection; whoever hears is told."""
        self._connection.disconnect()

    def _send(self, *command: str) -> None:
        packed = self._connection.pack_command(*command)
        _use(self._connection, lambda: self._connection.send_packed_command(packed))


def _event(entry: Any) -> Event:
    entry_id, (_, type, _, text, _, op) = entry
    return Event(int(entry_id[:-2]), type.decode(), text.decode(), op.decode())


def _connect(connection: Any) -> None:
    connection.disconnect()
    try:
        connection.connect()
    except (redis.RedisError, OSError) as error:
        raise StoreUnavailable("Redis cannot be reached.") from error


def _use(connection: Any, act: Callable[[], T]) -> T:
    """Whatever goes wrong in the middle of a reply leaves the rest of it unread: the connection is of no more use."""
    if not connection.is_connected:
        raise StoreUnavailable("The connection to Redis was lost.")
    try:
        return act()
    except (redis.RedisError, OSError) as error:
        connection.disconnect()
        raise StoreUnavailable("Redis cannot be reached.") from error
    except BaseException:
        connection.disconnect()
        raise
