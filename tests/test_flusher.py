"""From an agent's calls to the log: what is coalesced, what waits, what is pushed back, and what a lost run is told.

The flusher's greenlets run on this thread's loop; its calls to Redis and Postgres block here, which a worker's do not.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from typing import Any

import gevent
import psycopg2
import pytest
from redis import Redis

from app.config import Config
from app.dev.services import EmbeddedServices
from app.errors import StoreUnavailable
from app.protocol.ending import Ending
from app.protocol.events import Event, Outbound
from app.protocol.reducer import initial
from app.storage.event_log import EventLog
from app.storage.log_writer import LogWriter
from app.storage.ownership import Ownership
from app.storage.run_store import RunRecord, migrate
from app.wiring import Services
from runtail.deltas import DELTA_CHARS, DELTA_SECONDS
from runtail.interrupts import Interrupted
from tests.harness import eventually, pending_run
from workers.execution.flusher import Flusher
from workers.execution.interrupts import Cancelled, Lost, Unstorable
from workers.execution.outbox import UNAPPENDED_BYTES, UNARCHIVED_BYTES, Outbox

Open = Callable[..., "Writing"]


class Writing:
    """A run that is being written, and what its executor was told."""

    def __init__(self, ownership: Ownership, flusher: Flusher, run: RunRecord) -> None:
        claimed = ownership.claim(run.id, "a-worker")
        assert claimed is not None
        self.ownership = ownership
        self.flusher = flusher
        self.run, writer = claimed
        self.told: list[Interrupted] = []
        self.outbox: Outbox = flusher.open(writer, self.told.append)

    def deltas(self, *texts: str) -> None:
        for text in texts:
            self.outbox.delta(Outbound({"message_id": "msg_1", "text": text}), "1")

    def begin(self) -> None:
        self.outbox.emit("message.started", {"message_id": "msg_1", "role": "assistant"}, "1")

    def in_redis(self) -> list[Event]:
        return self.ownership.log.read(self.run.id, 1, 100_000)

    def archived(self) -> list[Event]:
        return self.ownership.store.events(self.run.id, 1, 100_000)

    def texts(self) -> list[str]:
        return [e.envelope()["payload"]["text"] for e in self.in_redis() if e.type == "message.delta"]

    def finish(self) -> None:
        self.flusher.close(self.outbox)
        self.ownership.finish(self.outbox.writer, Ending.completed(None))


@pytest.fixture
def started() -> Iterator[Callable[[Ownership], Flusher]]:
    """Starts flushers, and ends their greenlets."""
    before = {g for g in gc.get_objects() if isinstance(g, gevent.Greenlet)}

    def start(ownership: Ownership) -> Flusher:
        flusher = Flusher(ownership)
        flusher.start()
        return flusher

    yield start
    gevent.killall([g for g in gc.get_objects() if isinstance(g, gevent.Greenlet) and g not in before])


@pytest.fixture
def opened(apart: Services, started: Callable[[Ownership], Flusher]) -> Open:
    flusher = started(apart.ownership)
    return lambda: Writing(apart.ownership, flusher, pending_run(apart))


def _until(condition: Callable[[], Any], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        gevent.sleep(0.002)


# Coalescing.


def test_the_first_text_after_a_pause_goes_at_once(opened: Open) -> None:
    writing = opened()
    writing.begin()
    _until(lambda: writing.in_redis())
    gevent.sleep(2 * DELTA_SECONDS)
    begun = time.monotonic()
    writing.deltas("first")
    _until(lambda: writing.texts() == ["first"])
    assert time.monotonic() - begun < DELTA_SECONDS


def test_texts_in_quick_succession_leave_together(opened: Open) -> None:
    writing = opened()
    begun = time.monotonic()
    words = [f"w{n} " for n in range(100)]
    for word in words:
        writing.deltas(word)
        gevent.sleep(0.004)
    took = time.monotonic() - begun
    _until(lambda: "".join(writing.texts()) == "".join(words))
    texts = writing.texts()
    assert texts[0] == "w0 "
    assert 3 < len(texts) <= took / DELTA_SECONDS + 2
    stamps = [event.envelope()["ts"] for event in writing.in_redis()]
    print(f"{len(words)} writes in {took * 1_000:.0f} ms became {len(texts)} events")
    assert stamps == sorted(stamps)


def test_what_is_held_back_leaves_without_another_write(opened: Open) -> None:
    writing = opened()
    writing.deltas("a", "b", "c")
    _until(lambda: writing.texts() == ["a", "bc"], seconds=1)


def test_two_kilobytes_do_not_wait(opened: Open) -> None:
    writing = opened()
    writing.deltas("-", *["x" * 512] * 40)

    def sizes() -> list[int]:
        return [len(e.envelope()["payload"]["text"]) for e in writing.in_redis() if e.type == "message.delta"]

    _until(lambda: len(sizes()) == 11)  # the flusher may have brought some already
    assert sizes() == [1, *[DELTA_CHARS] * 10]


def test_any_other_event_flushes_the_text_before_it(opened: Open) -> None:
    writing = opened()
    writing.begin()
    writing.deltas("a", "b")
    writing.outbox.emit("custom.tick", {"n": 1}, "2")
    writing.deltas("c")
    writing.outbox.commit("custom.fact", {}, "3")
    writing.deltas("d")
    writing.outbox.delta(Outbound({"message_id": "msg_2", "text": "other"}), "4")
    writing.deltas("e")
    writing.finish()
    got = [(e.type, e.envelope()["payload"].get("text")) for e in writing.in_redis()]
    assert got == [
        ("message.started", None),
        ("message.delta", "a"),
        ("message.delta", "b"),
        ("custom.tick", None),
        ("message.delta", "c"),
        ("custom.fact", None),
        ("message.delta", "de"),
        ("message.delta", "other"),
        ("message.completed", None),
        ("run.completed", None),
    ]
    assert [b.seq - a.seq for a, b in pairwise(writing.in_redis())] == [1] * (len(got) - 1)


# Facts and the archive.


def test_a_fact_is_archived_before_it_is_in_redis(apart: Services, opened: Open) -> None:
    """While Postgres holds the commit up, Redis has what was before the fact, and neither it nor what follows."""
    writing = opened()
    writing.outbox.emit("custom.before", {}, "1")
    _until(lambda: len(writing.in_redis()) == 1)
    seen: list[int] = []
    with closing(psycopg2.connect(apart.config.database_url)) as lock:
        lock.cursor().execute("SELECT 1 FROM runs WHERE id = %s FOR UPDATE", (writing.run.id,))

        def watch() -> None:
            until = time.monotonic() + 0.3
            while time.monotonic() < until:
                seen.append(apart.log.head(writing.run.id))
            lock.rollback()

        watcher = threading.Thread(target=watch)
        watcher.start()
        writing.outbox.commit("custom.fact", {}, "2")
        watcher.join()
    assert set(seen) == {2}
    assert [event.type for event in writing.archived()] == ["custom.before", "custom.fact"]
    _until(lambda: writing.in_redis() == writing.archived())


def test_a_fact_waits_with_those_behind_it(opened: Open) -> None:
    writing = opened()
    fact = gevent.spawn(writing.outbox.commit, "custom.fact", {}, "1")
    gevent.sleep(0)
    writing.outbox.emit("custom.behind", {}, "2")
    fact.join(5)
    assert fact.successful()
    assert writing.archived()[0].type == "custom.fact"
    _until(lambda: [e.type for e in writing.in_redis()] == ["custom.fact", "custom.behind"])


def test_events_are_archived_within_about_a_second(opened: Open) -> None:
    writing = opened()
    writing.outbox.emit("custom.tick", {}, "1")
    begun = time.monotonic()
    _until(lambda: writing.archived(), 3)
    assert time.monotonic() - begun < 2
    assert not writing.outbox.writer.remembers(1), "and forgotten"


def test_a_cancel_is_heard_from_the_archive_too(apart: Services, opened: Open) -> None:
    writing = opened()
    apart.store.request_cancel(writing.run.id)
    writing.outbox.commit("custom.fact", {}, "1")
    assert isinstance(writing.told[0], Cancelled)


# Owners that are no more.


def _take_over(apart: Services, writing: Writing) -> None:
    assert apart.store.release(writing.run.id, writing.run.epoch, "worker_lost")
    assert apart.store.claim(writing.run.id, "b", start=True)


def test_who_was_fenced_in_redis_is_told_that_the_run_is_lost(apart: Services, opened: Open) -> None:
    writing, other = opened(), opened()
    apart.log.raise_epoch(writing.run.id, 9, "another")
    writing.outbox.emit("custom.tick", {}, "1")
    other.outbox.emit("custom.tick", {}, "1")
    _until(lambda: writing.told)
    assert isinstance(writing.told[0], Lost)
    _until(lambda: len(other.in_redis()) == 1)
    assert not other.told, "it is lost alone"


def test_who_was_fenced_in_postgres_is_told_that_the_run_is_lost(apart: Services, opened: Open) -> None:
    writing, other = opened(), opened()
    _take_over(apart, writing)
    waiting = gevent.spawn(writing.outbox.commit, "custom.fact", {}, "1")
    other.outbox.commit("custom.fact", {}, "1")
    _until(lambda: writing.told)
    assert isinstance(writing.told[0], Lost)
    assert not waiting.ready(), "a call whose commit failed never returns"
    assert writing.archived() == writing.in_redis() == []
    assert not other.told
    waiting.kill()


def test_after_a_lost_connection_an_owner_is_confirmed_before_it_appends(apart: Services, opened: Open) -> None:
    """Redis was restarted and has lost its last second: the epoch of the next owner, too."""
    writing, other = opened(), opened()
    for each in (writing, other):
        each.outbox.emit("custom.tick", {}, "1")
        _until(lambda each=each: len(each.in_redis()) == 1)
    _take_over(apart, writing)
    with Redis.from_url(apart.config.redis_url) as redis:
        redis.client_kill_filter(_id=str(apart.log._redis.client_id()))
    writing.outbox.emit("custom.late", {}, "2")
    other.outbox.emit("custom.tick", {}, "2")
    _until(lambda: writing.told)
    assert isinstance(writing.told[0], Lost)
    _until(lambda: len(other.in_redis()) == 2)
    assert [event.type for event in writing.in_redis()] == ["custom.tick"]
    assert not other.told


def test_a_run_that_is_opened_while_the_others_are_confirmed_is_not_called_lost(apart: Services, opened: Open) -> None:
    writing, later = opened(), []
    with closing(psycopg2.connect(apart.config.database_url)) as lock:
        lock.cursor().execute("SELECT 1 FROM runs WHERE id = %s FOR UPDATE", (writing.run.id,))

        def open_later() -> None:
            blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
            with apart.database.session() as db:
                eventually(lambda: db.execute_sql(blocked).fetchone(), what="the confirmation")
            later.append(opened())
            lock.rollback()

        opener = threading.Thread(target=open_later)
        opener.start()
        writing.outbox.emit("custom.tick", {}, "1")
        _until(lambda: len(writing.in_redis()) == 1)
        opener.join()
    assert not writing.told
    assert not later[0].told


# Redis that has lost something.


def test_a_log_that_went_away_is_refilled_from_memory(apart: Services, opened: Open) -> None:
    writing = opened()
    for n in range(5):
        writing.outbox.emit("custom.tick", {"n": n}, str(n))
    _until(lambda: len(writing.in_redis()) == 5)
    before = writing.in_redis()
    apart.log.delete(writing.run.id)
    writing.outbox.emit("custom.tick", {"n": 5}, "5")
    _until(lambda: len(writing.in_redis()) == 6)
    assert apart.log.read(writing.run.id, 0, 1)[0].type == "run.created"
    assert writing.in_redis()[:5] == before
    writing.finish()


def test_a_log_that_went_away_is_refilled_from_the_archive(apart: Services, opened: Open) -> None:
    writing = opened()
    for n in range(5):
        writing.outbox.emit("custom.tick", {"n": n}, str(n))
    writing.outbox.commit("custom.fact", {}, "5")
    _until(lambda: len(writing.in_redis()) == 6 and not writing.outbox.writer.remembers(6))
    before = writing.in_redis()
    apart.log.delete(writing.run.id)
    writing.outbox.emit("custom.tick", {"n": 6}, "6")
    _until(lambda: len(writing.in_redis()) == 7)
    assert writing.in_redis()[:6] == before
    writing.finish()


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServices]:
    with EmbeddedServices(tmp_path_factory.mktemp("own")) as servers:
        yield servers


def test_an_agent_is_blocked_while_redis_is_away_and_goes_on_after(
    apart: Services, own_redis: EmbeddedServices, started: Callable[[Ownership], Flusher]
) -> None:
    log = EventLog(own_redis.redis_url, ttl_seconds=60, max_connections=2)
    ownership = Ownership(apart.store, log, apart.hooks)
    writing = Writing(ownership, started(ownership), pending_run(apart, announce=False))
    texts = [f"{n:03}" + "x" * 4_093 for n in range(150)]
    own_redis.kill("redis")
    agent = gevent.spawn(writing.deltas, *texts)
    writer = writing.outbox.writer
    _until(lambda: writer.unappended_bytes > UNAPPENDED_BYTES)
    head = writer.head
    gevent.sleep(0.3)
    assert writer.head == head, "it is blocked"
    assert not agent.ready()
    assert writer.unappended_bytes < UNAPPENDED_BYTES + 5_000
    with pytest.raises(StoreUnavailable):
        log.ping()
    own_redis.start("redis")
    agent.join(10)
    assert agent.successful()
    _until(lambda: "".join(writing.texts()) == "".join(texts))
    writing.finish()
    assert [e.seq for e in writing.in_redis()] == list(range(2, len(writing.in_redis()) + 2))
    log.close()


def test_a_run_that_cannot_be_archived_keeps_no_other_from_it(opened: Open) -> None:
    poisoned, innocent = opened(), opened()
    poisoned.outbox.writer.state["usage"]["cost"] = float("inf")  # past every check: a state that is not JSON
    poisoned.outbox.emit("custom.tick", {}, "1")
    innocent.outbox.commit("custom.tick", {"n": 1}, "1")
    _until(lambda: poisoned.told)
    innocent.outbox.commit("custom.tick", {"n": 2}, "2")
    assert len(innocent.archived()) == 2
    assert [str(told) for told in poisoned.told] == [
        "The run's state cannot be stored. It has no form that can be stored."
    ]
    assert isinstance(poisoned.told[0], Unstorable)
    innocent.finish()


def test_a_run_that_waits_for_postgres_to_level_its_log_does_not_hold_up_the_others(
    own_redis: EmbeddedServices, started: Callable[[Ownership], Flusher]
) -> None:
    migrate(own_redis.database_url)
    urls = {"DATABASE_URL": own_redis.database_url, "REDIS_URL": own_redis.redis_url}
    services = Services.for_worker(Config.from_env(urls))
    flusher = started(services.ownership)
    pair = [Writing(services.ownership, flusher, pending_run(services)) for _ in range(2)]
    for writing in pair:
        writing.outbox.emit("custom.tick", {}, "1")
    _until(lambda: all(len(writing.in_redis()) == 1 for writing in pair))
    own_redis.kill("postgres")
    for writing in pair:  # as `emit`, which may give way: both are to be in the same turn
        writing.outbox.writer.add("custom.tick", {})
        flusher.append_soon(writing.outbox)
    first = next(iter(flusher._to_append))
    behind, other = sorted(pair, key=lambda writing: writing.outbox is not first)
    services.log.delete(behind.run.id)
    _until(lambda: other.outbox.writer.unappended_bytes == 0)
    assert behind.outbox.writer.unappended_bytes > 0
    own_redis.start("postgres")
    _until(lambda: len(behind.in_redis()) == 2)
    for writing in pair:
        writing.finish()
        assert not writing.told
    services.close()


class OnlyToRedis:
    """Moves events as the flusher does while Postgres is away: appended at once, archived when it is told."""

    def append_soon(self, outbox: Outbox) -> None:
        outbox.writer.mark_appended(outbox.writer.head)

    def archive_soon(self, outbox: Outbox) -> None:
        outbox.writer.mark_archived(outbox.writer.head)
        outbox.moved.set()


def test_an_agent_is_blocked_while_postgres_takes_nothing_and_goes_on_after() -> None:
    writer = LogWriter("run_1", 1, initial("run_1"), appended=0, archived=0)
    mover = OnlyToRedis()
    outbox = Outbox(writer, mover, lambda interruption: None)
    payload = {"text": "x" * 100_000}
    agent = gevent.spawn(lambda: [outbox.emit("custom.tick", payload, "1") for _ in range(100)])
    _until(lambda: writer.unarchived_bytes > UNARCHIVED_BYTES)
    head = writer.head
    assert not agent.ready()
    assert head < 100
    mover.archive_soon(outbox)
    agent.join(5)
    assert agent.successful()
    assert writer.head == 100
