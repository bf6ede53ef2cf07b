"""Reading the logs of many runs over two connections, however many: the reader asks, the doorbell rings.

redis-py makes the connections; what goes over them is packed and parsed here, with hiredis, because its client and
pool cost more than the reads themselves. Not responsible for who reads what (`app.streaming`).

Every method may raise StoreUnavailable. The connection is then closed, and stays so until `connect`: behind a new one
may be a Redis that has lost its last second, which somebody has to look into before anything is read.
"""

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import hiredis
import redis

from app.errors import StoreUnavailable
from app.pace import paced
from app.protocol.events import Event, unbroken
from app.storage.event_log import SOCKET_TIMEOUT_SECONDS, channel, meta_key, one_connection, stream_key
from app.turns import give_way

SILENCE_SECONDS = 10
"""A doorbell that has not said a word for so long is dead. Ping it twice as often."""
READ_BYTES = 65_536
NOTHING: Final = object()

Command = tuple[Any, ...]


class _Line:
    """One connection: commands out, replies in. Whoever uses it while it is not connected is told so."""

    def __init__(self, url: str) -> None:
        self._connection = one_connection(url, SOCKET_TIMEOUT_SECONDS)
        self._socket: Any = None
        self._replies = hiredis.Reader(notEnoughData=NOTHING)

    def connect(self) -> None:
        """Connect anew."""
        self.close()
        try:
            self._connection.connect()
        except (redis.RedisError, OSError) as error:
            raise StoreUnavailable("Redis cannot be reached.") from error
        self._replies = hiredis.Reader(notEnoughData=NOTHING)
        self._socket = self._connection._sock
        self._socket.settimeout(None)  # whoever waits for too long has the connection closed

    @property
    def connected(self) -> bool:
        """It is open as far as is known."""
        return self._socket is not None

    def send(self, commands: Iterable[Command]) -> None:
        """Send them all."""
        data = b"".join([hiredis.pack_command(command) for command in commands])
        if self._socket is None:
            raise StoreUnavailable("The connection to Redis was lost.")
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise self._broken() from error

    def receive(self) -> Any:
        """Wait for the next reply."""
        while (reply := self._replies.gets()) is NOTHING:
            if self._socket is None:
                raise StoreUnavailable("The connection to Redis was lost.")
            try:
                data = self._socket.recv(READ_BYTES)
            except OSError as error:
                raise self._broken() from error
            if not data:
                raise self._broken()
            self._replies.feed(data)
            give_way()
        return reply

    def close(self) -> None:
        """Close it; whoever waits for a reply is told."""
        self._socket = None
        self._connection.disconnect()

    def _broken(self) -> StoreUnavailable:
        self.close()
        return StoreUnavailable("Redis cannot be reached.")


class LogReader:
    """Reads over one connection. Callers take turns; a call is one round trip."""

    def __init__(self, url: str) -> None:
        self._line = _Line(url)
        self._turn = threading.Lock()
        self._asked_at: float | None = None

    def connect(self) -> None:
        """Connect anew."""
        with self._turn:
            self._line.connect()

    def read_many(self, cursors: Mapping[str, int], limit: int) -> dict[str, list[Event]]:
        """For each run that has events after its cursor: consecutive ones, at most `limit`. Never waits for any.

        The first need not be cursor + 1: callers check.
        """
        keys = map(stream_key, cursors)
        ids = [f"{seq}-0" for seq in cursors.values()]
        (reply,) = self._ask([("XREAD", "COUNT", limit, "STREAMS", *keys, *ids)])
        return {key[4:-8].decode(): unbroken(list(paced(map(_event, entries)))) for key, entries in reply or ()}

    def read(self, run_id: str, after: int, limit: int) -> list[Event]:
        """As `read_many`, for one run."""
        (reply,) = self._ask([("XRANGE", stream_key(run_id), f"({after}-0", "+", "COUNT", limit)])
        return unbroken(list(map(_event, reply)))

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

    def is_lost(self, now: float) -> bool:
        """The connection is closed, or Redis has not answered for SOCKET_TIMEOUT_SECONDS."""
        stuck = self._asked_at is not None and now - self._asked_at > SOCKET_TIMEOUT_SECONDS
        return stuck or not self._line.connected

    def close(self) -> None:
        """Close the connection; whoever waits for an answer is told."""
        self._line.close()

    def _ask(self, commands: Sequence[Command]) -> list[Any]:
        with self._turn:
            self._asked_at = time.monotonic()
            try:
                self._line.send(commands)
                replies = [self._line.receive() for _ in commands]
            except BaseException:
                self._line.close()  # in the middle of a reply the rest of it is unread
                raise
            finally:
                self._asked_at = None
        for reply in replies:
            if isinstance(reply, hiredis.ReplyError):  # loading, busy, not our keys
                raise StoreUnavailable("Redis refuses to read.") from reply
        return replies


class Doorbell:
    """One subscribed connection, which rings when runs have something new. One greenlet hears, one other subscribes."""

    def __init__(self, url: str) -> None:
        self._line = _Line(url)
        self._heard_at = 0.0

    def connect(self) -> None:
        """Connect anew, subscribed to nothing."""
        self._line.connect()
        self._heard_at = time.monotonic()

    def subscribe(self, run_ids: Iterable[str]) -> None:
        """From the confirmation on, that `hear` returns, these runs ring."""
        self._line.send([("SUBSCRIBE", *map(channel, run_ids))])

    def unsubscribe(self, run_ids: Iterable[str]) -> None:
        """These runs need not ring any more."""
        self._line.send([("UNSUBSCRIBE", *map(channel, run_ids))])

    def ping(self) -> None:
        """Make it say something."""
        self._line.send([("PING",)])

    def hear(self) -> tuple[bytes, str]:
        """Wait for a word: b"message" (it rang) or b"subscribe" (confirmed), and the run; anything else means nothing.

        :raises StoreUnavailable: the connection is lost, or was closed.
        """
        reply = self._line.receive()
        self._heard_at = time.monotonic()
        # Without a subscription the answer to PING is one word.
        return (reply[0], reply[1][4:-1].decode()) if isinstance(reply, list) else (b"", "")

    def is_silent(self, now: float) -> bool:
        """It has not said a word for SILENCE_SECONDS."""
        return now - self._heard_at > SILENCE_SECONDS

    def close(self) -> None:
        """Close the connection; whoever hears is told."""
        self._line.close()


def _event(entry: Any) -> Event:
    entry_id, (_, type, _, text, _, op) = entry
    return Event(int(entry_id[:-2]), type.decode(), text.decode(), op.decode())
