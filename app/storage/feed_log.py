"""The feed of all runs in Redis: what writers add to it beside their runs' logs, and how it is read.

Keys:

    rt:feed          stream   `r` run, `s` seq, `t` type, `e` the envelope's text; the last ENTRIES, as they came
    rt:feed:wanted   hash     `highest`: the sample that writers go by; process → `sample expires`, see want_feed.lua

Writers sample: an event that no open feed wants does not get here, and while no feed is open nothing does. What is in
the feed is a copy that may be lost; nothing depends on it.
"""

import logging
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import redis

from app.errors import StoreUnavailable
from app.protocol.events import Event
from app.storage.redis_connections import Command

ENTRIES = 20_000
"""What the stream keeps, or a little more."""
STREAM_SECONDS = 60
"""How long an entry is kept, so that nothing stays here of a run that is erased, and how long the stream after its
last entry."""
WANTED_SECONDS = 6
"""For how long a wish holds. Renew it three times as often."""
ASK_SECONDS = 1.0
"""How often a writer asks what is wanted."""

FEED, WANTED, HIGHEST = "rt:feed", "rt:feed:wanted", "highest"
_DRAW_BYTES = 4
_WANT = (Path(__file__).parent / "want_feed.lua").read_text()

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """One event in the feed. `text` is the envelope verbatim."""

    run_id: str
    seq: int
    type: str
    text: str


class Appended(Protocol):
    """Events that were appended to a run's log."""

    @property
    def run_id(self) -> str:
        """The run."""

    @property
    def events(self) -> Sequence[Event]:
        """The events, in order."""


def is_shown(run_id: str, seq: int, type: str, sample: float) -> bool:
    """Whether a feed of that sample shows the event: the same answer everywhere, and of a larger sample never less."""
    if type.startswith("run."):
        return True
    if type == "message.delta":
        return False
    return sample >= 1 or _draw(run_id, seq) < sample


def _draw(run_id: str, seq: int) -> float:
    """A number in [0, 1) that belongs to the event."""
    digest = blake2b(f"{run_id}:{seq}".encode(), digest_size=_DRAW_BYTES).digest()
    return int.from_bytes(digest, "big") / (1 << 8 * _DRAW_BYTES)


class FeedWriter:
    """The writing side, in every process that appends. It never raises: a feed must not cost a run its event."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._sample = 0.0
        """The highest that is wanted; 0: there is no feed."""
        self._ask_at = 0.0
        self._failed = False

    def question(self) -> Command | None:
        """Where it is time, the command that asks Redis what is wanted; `learn` is to be told the reply."""
        now = time.monotonic()
        if now < self._ask_at:
            return None
        self._ask_at = now + ASK_SECONDS
        return "HGET", WANTED, HIGHEST

    def learn(self, reply: Any) -> None:
        """The reply to the `question`: an error counts as no wish."""
        self._sample = float(reply) if isinstance(reply, bytes) else 0.0

    def write(self, appended: Sequence[Appended]) -> None:
        """Add to the feed what it wants of these events."""
        if not self._sample:
            return
        entries = [
            (append.run_id, event)
            for append in appended
            for event in append.events
            if is_shown(append.run_id, event.seq, event.type, self._sample)
        ]
        if not entries:
            return
        try:
            self._add(entries)
            self._failed = False
        except redis.RedisError as error:
            if not self._failed:
                log.warning("The feed misses events. %s", error)
            self._failed = True

    def _add(self, entries: Sequence[tuple[str, Event]]) -> None:
        pipeline: Any
        with self._redis.pipeline(transaction=False) as pipeline:
            for run_id, event in entries:
                fields = ("r", run_id, "s", event.seq, "t", event.type, "e", event.text)
                pipeline.execute_command("XADD", FEED, "MAXLEN", "~", ENTRIES, "*", *fields)
            pipeline.expire(FEED, STREAM_SECONDS)
            pipeline.execute()


class FeedReader:
    """The reading side, over one connection. One caller at a time. Every method may raise StoreUnavailable."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._process = secrets.token_hex(6)
        self._cursor = "0-0"
        self._level_at = 0.0
        """Until when, as far as is known, nothing was trimmed that was not read."""
        self._want = client.register_script(_WANT)

    def want(self, sample: float) -> None:
        """Have writers feed events of that sample, for WANTED_SECONDS; forget what is too old."""
        with _reachable():
            self._want(keys=[WANTED], args=[self._process, repr(sample), WANTED_SECONDS])
            now: Any = self._redis.time()
            self._redis.xtrim(FEED, minid=(now[0] - STREAM_SECONDS) * 1_000, approximate=False)

    def start(self) -> None:
        """Go to the end: only what is written from here on is read."""
        with _reachable():
            last: Any = self._redis.xrevrange(FEED, count=1)
        self._cursor, self._level_at = last[0][0].decode() if last else "0-0", time.monotonic()

    def read(self, limit: int, block_ms: int) -> tuple[list[Entry], bool]:
        """The next entries, at most `limit`, after a wait of up to `block_ms` for the first; and whether some are lost.

        Lost are entries that were trimmed, or went with their Redis, before they were read. It is told with those that
        follow.
        """
        here, entries = self._ask(limit, block_ms)
        now = time.monotonic()
        # The last entry that was read may be gone because of its age: nothing is lost, if there were few after it.
        late = now - self._level_at > STREAM_SECONDS / 2 or len(entries) == limit
        lost = late and not here and self._cursor != "0-0" and bool(entries)
        if entries or not late:
            self._level_at = now
        if entries:
            self._cursor = entries[-1][0].decode()
        return [_entry(fields) for _, fields in entries], lost

    def _ask(self, limit: int, block_ms: int) -> tuple[bool, list[Any]]:
        """Whether the last entry that was read is still there, and those after it."""
        try:
            with _reachable(), self._redis.pipeline(transaction=False) as pipeline:
                pipeline.xrange(FEED, min=self._cursor, max=self._cursor)
                pipeline.xread({FEED: self._cursor}, count=limit, block=block_ms)
                here, found = pipeline.execute()
        except StoreUnavailable:
            self._level_at = float("-inf")  # it may be another Redis after that, or one that has lost its last second
            raise
        return bool(here), [entry for _, stream in found or () for entry in stream]

    def close(self) -> None:
        """Close the connection; the next call makes a new one."""
        self._redis.connection_pool.disconnect()


def _entry(fields: dict[bytes, bytes]) -> Entry:
    return Entry(fields[b"r"].decode(), int(fields[b"s"]), fields[b"t"].decode(), fields[b"e"].decode())


@contextmanager
def _reachable() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        raise StoreUnavailable("Redis cannot be reached.") from error
