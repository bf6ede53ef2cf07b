"""The event log of each run in Redis. Stream commands are issued here, by `log_reader` and by `feed_log` only.

Keys, all of a run in one cluster slot:

    rt:{run_id}:events   stream   entry `n-0` is event n: `t` type, `e` the envelope's text, `o` the op it belongs to
    rt:{run_id}:meta     hash     `epoch` of the owner, `head`: seq of the last event, `owner`: an epoch and whose it is
                                  (another epoch than `epoch`: a version without this field has claimed the run),
                                  `batch`: the last one of an external run's writer
    rt:{run_id}:windows  hash     the open windows, see `app.storage.leases`; only deleted here
    rt:ping              string   empty: written to see whether Redis takes writes

Channels, which carry no data:

    rt:{run_id}          rings after every append
    rt:worker:{id}       rings when the worker's commands in Postgres have changed

What was appended goes to the feed of all runs too, while somebody wants one (`app.storage.feed_log`).

It enforces who may append, by epoch and owner; who that is, Postgres decides (`app.storage.ownership`). The scripts
repair what was evicted: the head comes from the stream, the epoch from the next owner that has confirmed its own.
Every method may raise StoreUnavailable; what an append that raised it has done is unknown.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from app.errors import Behind, EpochTaken, Fenced, StoreUnavailable
from app.protocol.events import TERMINAL, Event, unbroken
from app.storage.breaker import Breaker
from app.storage.feed_log import FeedWriter
from app.storage.redis_connections import Command, borrowed, committed, connect, exchange

LIVE_EVENTS = 10_000
"""Events of a running run that stay in Redis once they are archived; windows further behind read Postgres."""
SWEEP_SECONDS = 2.0
PING_SECONDS = 60
KEEPS = "noeviction"
"""The `maxmemory-policy` of a Redis that loses nothing when its memory is full."""
EVICTS = "Redis has the maxmemory-policy {}: once its memory is full it throws away parts of logs. Set noeviction."

Outcome = int | Fenced | Behind | StoreUnavailable
"""Of one append: the new head, or why there is none."""

_LUA = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Append:
    """Consecutive events of one run to append under an epoch."""

    run_id: str
    epoch: int
    events: Sequence[Event]
    archived: int = 0
    """How far Postgres has the log."""
    owner: str = ""
    """Whose epoch it is. Empty: the events are archived, and it does not matter who brings them."""
    batch: int = 0
    """The number of the last batch of an external run's writer that is among them; 0: there is none."""


class EventLog:
    """Append to and read from the streams of all runs, over one pool of connections."""

    def __init__(self, url: str, *, ttl_seconds: int, max_connections: int) -> None:
        self.breaker = Breaker()
        """Of this Redis, for all that ask it."""
        self._redis = connect(url, max_connections, on_connect=self._connected)
        self.connects = 0
        """Counts connections made. Whoever meets a new one may meet a Redis that has lost its last second."""
        self._ttl_seconds = ttl_seconds
        self._feed = FeedWriter(self._redis)
        self._append = self._redis.register_script((_LUA / "append.lua").read_text())
        self._raise_epoch = self._redis.register_script((_LUA / "raise_epoch.lua").read_text())

    # Writing.

    def append(self, append: Append) -> int:
        """Append the events and ring. Returns the new head.

        :raises Fenced: a later epoch owns the run.
        :raises Behind: the head is not the event before the first one.
        """
        (outcome,) = self.append_all([append])
        if isinstance(outcome, int):
            return outcome
        raise outcome

    def append_all(
        self, appends: Sequence[Append], *, confirmed: int | None = None, along: Sequence[Command] = ()
    ) -> list[Outcome]:
        """Append to many runs in one round trip; each run's new head or its own error, in order.

        :param confirmed: `connects` as it was before the epochs were last confirmed in Postgres. If a connection was
            made since, nothing is appended and StoreUnavailable raised. None: the events are archived, which needs
            no confirmation.
        :param along: a transaction that is sent behind the appends, in the same round trip. Where it is refused
            StoreUnavailable is raised, whatever was appended.
        """
        with self.breaker.asking():
            return self._ask(appends, confirmed, along)

    def _ask(self, appends: Sequence[Append], confirmed: int | None, along: Sequence[Command]) -> list[Outcome]:
        commands: list[Command] = [
            ("EVALSHA", self._append.sha, 2, *_keys(append.run_id), *self._arguments(append)) for append in appends
        ]
        if question := self._feed.question():
            commands.append(question)
        with borrowed(self._redis) as connection:
            # The pool replaces a connection that was lost without a word; here is the moment to notice.
            if confirmed is not None and confirmed != self.connects:
                raise StoreUnavailable("The connection to Redis was lost.")
            replies = exchange(connection, [*commands, *along])
        done = replies[-1] if along else None
        del replies[len(commands) :]
        if question:
            self._feed.learn(replies.pop())
        for index, reply in enumerate(replies):
            if isinstance(reply, redis.exceptions.NoScriptError):  # a Redis that was just restarted
                append = appends[index]
                replies[index] = self._append(keys=_keys(append.run_id), args=self._arguments(append))
        outcomes = [_refused(reply) if isinstance(reply, redis.RedisError) else _outcome(*reply) for reply in replies]
        self._feed.write([a for a, outcome in zip(appends, outcomes, strict=True) if isinstance(outcome, int)])
        committed(done)
        return outcomes

    def _arguments(self, append: Append) -> list[str | int]:
        first, last = append.events[0], append.events[-1]
        trim_to = max(0, min(append.archived, last.seq - LIVE_EVENTS))
        ttl = self._ttl_seconds if last.type in TERMINAL else 0
        arguments: list[str | int] = [channel(append.run_id), append.epoch, append.owner, first.seq - 1, trim_to, ttl]
        arguments.append(append.batch)
        for event in append.events:
            arguments += (event.type, event.text, event.op)
        return arguments

    def raise_epoch(self, run_id: str, epoch: int, owner: str, *, known: bool = False, anew: bool = False) -> int:
        """Fence every earlier owner of the run. Returns the head.

        :param known: Redis has to know an earlier epoch: where it knows none, it has lost who else may have this one.
        :param anew: drop the stream, which is then to be filled from the archive.
        :raises EpochTaken: a later epoch is known, or this one as another owner's.
        """
        with self.breaker.asking():
            word, number = self._raise_epoch(keys=_keys(run_id), args=[epoch, owner, int(known), int(anew)])
        if word == b"TAKEN":
            raise EpochTaken(number)
        return int(number)

    def delete(self, *run_ids: str) -> None:
        """Remove every key of the runs, in one round trip."""
        with self.breaker.asking(), self._redis.pipeline(transaction=False) as pipeline:
            for run_id in run_ids:
                pipeline.delete(*_keys(run_id), f"{channel(run_id)}:windows")
            pipeline.execute()

    # Reading.

    def head(self, run_id: str) -> int:
        """Seq of the last event that Redis holds (held, where it was trimmed); 0 where it knows nothing."""
        with self.breaker.asking():
            return int(self._redis.hget(_keys(run_id)[1], "head") or 0)

    def heads(self, run_ids: Sequence[str]) -> list[int]:
        """As `head`, for many runs in one round trip."""
        with self.breaker.asking(), self._redis.pipeline(transaction=False) as pipeline:
            for run_id in run_ids:
                pipeline.hget(meta_key(run_id), "head")
            return [int(head or 0) for head in pipeline.execute()]

    def batch(self, run_id: str) -> int:
        """The number of the last batch of an external run's writer that Redis was brought; 0: not known."""
        with self.breaker.asking():
            return int(self._redis.hget(meta_key(run_id), "batch") or 0)

    def read(self, run_id: str, after: int, limit: int) -> list[Event]:
        """Consecutive events with seq > `after`, at most `limit`. The first need not be `after` + 1: callers check."""
        with self.breaker.asking():
            reply: Any = self._redis.xrange(_keys(run_id)[0], min=f"({after}-0", max="+", count=limit)
            return unbroken([_event(entry_id, fields) for entry_id, fields in reply])

    def wait(self, run_id: str, after: int, timeout_ms: int, limit: int) -> list[Event]:
        """As `read`, but block up to `timeout_ms` (> 0) for the first of them; then empty."""
        key = _keys(run_id)[0]
        with self.breaker.asking():
            reply: Any = self._redis.xread({key: f"{after}-0"}, count=limit, block=timeout_ms)
            return unbroken([_event(entry_id, fields) for _, entries in reply for entry_id, fields in entries])

    # Doorbells of owners.

    def ring(self, owner: str) -> None:
        """Tell an owner that its commands in Postgres have changed."""
        with self.breaker.asking():
            self._redis.publish(f"rt:worker:{owner}", "")

    def rings(self, owner: str) -> Iterator[None]:
        """Yield once when subscribed, then at each ring, and at least every SWEEP_SECONDS in case one was lost.

        Holds a connection until Redis is lost.
        """
        with _reachable(), self._redis.pubsub() as pubsub:  # type: ignore[no-untyped-call]
            pubsub.subscribe(f"rt:worker:{owner}")
            while True:
                pubsub.get_message(timeout=SWEEP_SECONDS)
                yield

    def ping(self) -> None:
        """:raises StoreUnavailable: Redis cannot be reached, or takes no writes, as one without memory."""
        with self.breaker.asking():
            self._redis.set("rt:ping", "", ex=PING_SECONDS)

    def evicts(self) -> str | None:
        """A sentence about the `maxmemory-policy` of this Redis, where it throws keys away once its memory is full."""
        with self.breaker.asking():
            memory: Any = self._redis.info("memory")
        policy = memory.get("maxmemory_policy", KEEPS)
        return None if policy == KEEPS else EVICTS.format(policy)

    def _connected(self, connection: Any) -> None:
        connection.on_connect()
        self.connects += 1

    def close(self) -> None:
        """Close every connection."""
        self._redis.close()
        self._redis.connection_pool.disconnect()


def channel(run_id: str) -> str:
    """The channel that rings after every append to the run."""
    return f"rt:{{{run_id}}}"


def stream_key(run_id: str) -> str:
    """The key of the run's stream."""
    return f"rt:{{{run_id}}}:events"


def meta_key(run_id: str) -> str:
    """The key of the run's epoch and head."""
    return f"rt:{{{run_id}}}:meta"


def _keys(run_id: str) -> list[str]:
    return [stream_key(run_id), meta_key(run_id)]


def _event(entry_id: bytes, fields: dict[bytes, bytes]) -> Event:
    seq = int(entry_id.partition(b"-")[0])
    return Event(seq, fields[b"t"].decode(), fields[b"e"].decode(), fields[b"o"].decode())


def _outcome(word: bytes, number: int) -> Outcome:
    if word == b"OK":
        return number
    if word == b"BEHIND":
        return Behind(number)
    return EpochTaken(number)


def _refused(error: redis.RedisError) -> StoreUnavailable:
    """Redis did not carry out this append: out of memory, loading, read only, or its keys are not ours."""
    unavailable = StoreUnavailable("Redis refuses to append.")
    unavailable.__cause__ = error
    return unavailable


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:  # connection lost, timeout, loading, out of memory, script busy
        raise StoreUnavailable("Redis cannot be reached.") from error
