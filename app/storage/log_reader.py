"""Reading the logs of many runs over two connections, however many: the reader asks, the doorbell rings.

Not responsible for who reads what (`app.streaming`), nor for what a connection is (`redis_line`).

Every method may raise StoreUnavailable. Unless Redis only refuses, the connection is then closed, and stays so until
`connect`: behind a new one may be a Redis that has lost its last second, which somebody has to look into before
anything is read.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import gevent
import hiredis
from gevent.event import AsyncResult

from app.errors import StoreUnavailable
from app.pace import paced
from app.protocol.events import Event, unbroken
from app.storage.event_log import channel, meta_key, stream_key
from app.storage.redis_connections import SOCKET_TIMEOUT_SECONDS, Command
from app.storage.redis_line import Line

SILENCE_SECONDS = 10
"""A doorbell that has not said a word for so long is dead. Ping it twice as often."""
READABLE: Final = 1
"""What a watcher of the event loop is told to look for."""
Heard = Callable[[Sequence[str], Sequence[str]], None]
"""Runs that rang, and runs that do from now on."""


class LogReader:
    """Reads over one connection. Callers take turns; a call, or `begin` with its `finish`, is one round trip."""

    def __init__(self, url: str) -> None:
        self._line = Line(url)
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
        (reply,) = self._ask([_xread(cursors, limit)])
        return _found(reply)

    def begin(self, cursors: Mapping[str, int], limit: int) -> bool:
        """Ask for what `read_many` brings, without any wait: `finish` waits for it. False: others have their turn."""
        if not self._turn.acquire(blocking=False):
            return False
        self._asked_at = time.monotonic()
        try:
            self._line.begin(_xread(cursors, limit))
        except BaseException:
            self._over(whole=False)
            raise
        return True

    def finish(self) -> dict[str, list[Event]]:
        """What was begun."""
        with self._answering():
            reply = self._line.receive()
        return _found(_granted(reply))

    def read(self, run_id: str, after: int, limit: int) -> list[Event]:
        """As `read_many`, for one run."""
        (reply,) = self._ask([("XRANGE", stream_key(run_id), f"({after}-0", "+", "COUNT", limit)])
        return unbroken(list(map(_event, reply)))

    def entries(self, seqs: Mapping[str, int]) -> dict[str, Event]:
        """Of each run the event of that seq, where Redis has it."""
        replies = self._ask([("XRANGE", stream_key(run_id), f"{n}-0", f"{n}-0") for run_id, n in seqs.items()])
        return {run_id: _event(reply[0]) for run_id, reply in zip(seqs, replies, strict=True) if reply}

    def ends(self, run_ids: Sequence[str], cursors: Mapping[str, int], limit: int) -> dict[str, list[Event]]:
        """Of each run its last events, where Redis knows any: consecutive ones, in order.

        :param cursors: of some of these runs. Of these at most `limit` events that follow the cursor are told; the
            last one alone where none follows, or where the run has no cursor.
        """
        commands = [_last(run_id, cursors.get(run_id, 0), limit if run_id in cursors else 1) for run_id in run_ids]
        replies = dict(zip(run_ids, self._ask(commands), strict=True))
        if beyond := [run_id for run_id, reply in replies.items() if not reply and cursors.get(run_id)]:
            replies.update(zip(beyond, self._ask([_last(run_id, 0, 1) for run_id in beyond]), strict=True))
        return {run_id: _following(reply, cursors.get(run_id, 0)) for run_id, reply in replies.items() if reply}

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
        self._turn.acquire()
        self._asked_at = time.monotonic()
        with self._answering():
            self._line.send(commands)
            replies = [self._line.receive() for _ in commands]
        return list(map(_granted, replies))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """The turn ends with this, however it ends."""
        whole = False
        try:
            yield
            whole = True
        finally:
            self._over(whole=whole)

    def _over(self, *, whole: bool) -> None:
        if not whole:
            self._line.close()  # in the middle of a reply the rest of it is unread
        self._asked_at = None
        self._turn.release()


class Doorbell:
    """One subscribed connection, which rings when runs have something new. One greenlet hears, one other subscribes."""

    def __init__(self, url: str) -> None:
        self._line = Line(url)
        self._heard_at = 0.0
        self._watcher: Any = None
        self._hearing: AsyncResult[None] = AsyncResult()
        """How it ends."""

    def connect(self) -> None:
        """Connect anew, subscribed to nothing."""
        self._line.connect()
        self._heard_at = time.monotonic()

    def subscribe(self, run_ids: Iterable[str]) -> None:
        """From the confirmation on, that `hear` tells of, these runs ring."""
        self._say("SUBSCRIBE", *map(channel, run_ids))

    def unsubscribe(self, run_ids: Iterable[str]) -> None:
        """These runs need not ring any more."""
        self._say("UNSUBSCRIBE", *map(channel, run_ids))

    def ping(self) -> None:
        """Make it say something."""
        self._say("PING")

    def hear(self, heard: Heard) -> None:
        """Tell of each ring and each confirmation, until the connection is lost.

        :param heard: called by the event loop, for all that has come at once. It must not wait.
        :raises StoreUnavailable: the connection is lost, or was closed.
        """
        self._hearing = AsyncResult()
        self._watcher = gevent.get_hub().loop.io(self._line.socket.fileno(), READABLE)
        self._watcher.start(self._hear, heard)
        try:
            self._hearing.get()
        finally:
            self._end(StoreUnavailable("Nobody hears the doorbell."))

    def _hear(self, heard: Heard) -> None:
        rang: list[str] = []
        confirmed: list[str] = []
        try:
            for reply in self._line.at_hand():
                if isinstance(reply, list):  # without a subscription the answer to PING is one word
                    group = rang if reply[0] == b"message" else confirmed if reply[0] == b"subscribe" else None
                    if group is not None:
                        group.append(reply[1][4:-1].decode())
            self._heard_at = time.monotonic()
            heard(rang, confirmed)
        except BaseException as error:
            self._end(error)

    def is_silent(self, now: float) -> bool:
        """It has not said a word for SILENCE_SECONDS."""
        return now - self._heard_at > SILENCE_SECONDS

    def close(self) -> None:
        """Close the connection; whoever hears is told."""
        self._end(StoreUnavailable("The connection to Redis was lost."))
        self._line.close()

    def _say(self, *command: Any) -> None:
        try:
            self._line.send([command])
        except StoreUnavailable as error:
            self._end(error)
            raise

    def _end(self, error: BaseException) -> None:
        """No more is heard, for that reason. A descriptor that was closed must not be watched any longer."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher.close()
            self._watcher = None
            self._hearing.set_exception(error)


def _xread(cursors: Mapping[str, int], limit: int) -> Command:
    return ("XREAD", "COUNT", limit, "STREAMS", *map(stream_key, cursors), *[f"{seq}-0" for seq in cursors.values()])


def _last(run_id: str, first: int, limit: int) -> Command:
    return ("XREVRANGE", stream_key(run_id), "+", f"{first}-0", "COUNT", limit)


def _following(newest_first: Any, cursor: int) -> list[Event]:
    """Of what `_last` brought: the consecutive events after the cursor up to the last one; the last one in any case."""
    events = [_event(newest_first[0])]
    for event in map(_event, newest_first[1:]):
        if event.seq <= cursor or event.seq != events[-1].seq - 1:
            break
        events.append(event)
    return events[::-1]


def _found(reply: Any) -> dict[str, list[Event]]:
    return {key[4:-8].decode(): unbroken(list(paced(map(_event, entries)))) for key, entries in reply or ()}


def _granted(reply: Any) -> Any:
    """The reply.

    :raises StoreUnavailable: Redis refuses: it loads its data, is busy, or the keys are not ours.
    """
    if isinstance(reply, hiredis.ReplyError):
        raise StoreUnavailable("Redis refuses to read.") from reply
    return reply


def _event(entry: Any) -> Event:
    entry_id, (_, type, _, text, _, op) = entry
    return Event(int(entry_id[:-2]), type.decode(), text.decode(), op.decode())
