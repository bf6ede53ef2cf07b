"""The streams in Redis: who may append, under which id, for how long, and how readers wait."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from redis import Redis
from redis.connection import _HiredisParser

from app.config import Config
from app.errors import Behind, Fenced, StoreUnavailable
from app.identifiers import new_id
from app.protocol.events import Event, encode
from app.storage import event_log
from app.storage.event_log import Append, EventLog, channel
from app.storage.redis_connections import borrowed, connect, transaction
from tests.harness import eventually, free_port

TTL = 100


@pytest.fixture
def log(config: Config) -> Iterator[EventLog]:
    log = EventLog(config.events_redis_url, ttl_seconds=TTL, max_connections=8)
    yield log
    log.close()


@pytest.fixture
def redis(config: Config) -> Iterator[Redis]:
    with Redis.from_url(config.events_redis_url) as client:
        yield client


@pytest.fixture
def run_id(redis: Redis) -> Iterator[str]:
    run_id = new_id("run")
    yield run_id
    redis.delete(*_keys(run_id))


def _keys(run_id: str) -> tuple[str, str]:
    return f"rt:{{{run_id}}}:events", f"rt:{{{run_id}}}:meta"


def _events(run_id: str, first: int, last: int, type: str = "custom.tick") -> list[Event]:
    return [encode(run_id, seq, type, {"n": seq}, op=str(seq)) for seq in range(first, last + 1)]


def test_ids_are_contiguous_and_the_text_is_kept_verbatim(log: EventLog, redis: Redis, run_id: str) -> None:
    events = _events(run_id, 1, 5)
    assert log.append(Append(run_id, 1, events[:2])) == 2
    assert log.append(Append(run_id, 1, events[2:])) == 5
    assert [entry_id for entry_id, _ in redis.xrange(_keys(run_id)[0])] == [b"1-0", b"2-0", b"3-0", b"4-0", b"5-0"]
    assert log.read(run_id, 0, 10) == events
    assert log.head(run_id) == 5


def test_a_text_of_any_content_survives(log: EventLog, run_id: str) -> None:
    event = encode(run_id, 1, "custom.tick", {"text": "\r\n\u2028 😀 " + "x" * 1_000_000})
    log.append(Append(run_id, 1, [event]))
    assert log.read(run_id, 0, 1) == [event]


def test_a_fenced_writer_cannot_append(log: EventLog, run_id: str) -> None:
    log.append(Append(run_id, 1, _events(run_id, 1, 2)))
    assert log.raise_epoch(run_id, 2, "w") == 2
    with pytest.raises(Fenced):
        log.append(Append(run_id, 1, _events(run_id, 3, 3)))
    assert log.head(run_id) == 2
    assert log.append(Append(run_id, 2, _events(run_id, 3, 3))) == 3


def test_an_epoch_is_never_lowered(log: EventLog, run_id: str) -> None:
    log.raise_epoch(run_id, 3, "w")
    with pytest.raises(Fenced):
        log.raise_epoch(run_id, 2, "w")
    assert log.raise_epoch(run_id, 3, "w") == 0


def test_a_writer_that_is_not_at_the_head_is_told_where_it_is(log: EventLog, run_id: str) -> None:
    log.append(Append(run_id, 1, _events(run_id, 1, 3)))
    for first in (2, 3, 5):
        with pytest.raises(Behind) as behind:
            log.append(Append(run_id, 1, _events(run_id, first, first + 1)))
        assert behind.value.head == 3
    assert [event.seq for event in log.read(run_id, 0, 10)] == [1, 2, 3]


def test_of_two_writers_at_the_same_head_one_gets_its_event_in(log: EventLog, run_id: str) -> None:
    outcomes: list[object] = []

    def write(name: str) -> None:
        try:
            outcomes.append(log.append(Append(run_id, 1, [encode(run_id, 1, "custom.tick", {"by": name})])))
        except Behind as behind:
            outcomes.append(("behind", behind.head))

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(str, outcomes)) == sorted(["1", *[str(("behind", 1))] * 7])
    assert len(log.read(run_id, 0, 10)) == 1


def test_an_append_writes_what_it_brings_and_leaves_the_rest(log: EventLog, redis: Redis, run_id: str) -> None:
    def meta() -> dict[str, str]:
        fields: dict[bytes, bytes] = redis.hgetall(_keys(run_id)[1])  # type: ignore[assignment]  # it is not async
        return {name.decode(): value.decode() for name, value in fields.items()}

    log.append(Append(run_id, 0, _events(run_id, 1, 1), archived=1))
    assert meta() == {"epoch": "0", "head": "1"}
    log.raise_epoch(run_id, 1, "one")
    log.append(Append(run_id, 1, _events(run_id, 2, 2), owner="one", batch=7))
    assert meta() == {"epoch": "1", "head": "2", "owner": "1 one", "batch": "7"}
    log.append(Append(run_id, 1, _events(run_id, 3, 3), owner="one"))
    assert meta() == {"epoch": "1", "head": "3", "owner": "1 one", "batch": "7"}
    log.append(Append(run_id, 2, _events(run_id, 4, 4), owner="two"))
    assert meta() == {"epoch": "2", "head": "4", "owner": "2 two", "batch": "7"}
    log.append(Append(run_id, 3, _events(run_id, 5, 5), archived=5))
    assert meta() == {"epoch": "3", "head": "5", "owner": "2 two", "batch": "7"}


def test_the_time_to_live_is_set_by_the_terminal_event_only(log: EventLog, redis: Redis, run_id: str) -> None:
    log.append(Append(run_id, 1, _events(run_id, 1, 3)))
    assert [redis.ttl(key) for key in _keys(run_id)] == [-1, -1]
    log.append(Append(run_id, 1, _events(run_id, 4, 4, "run.completed")))
    assert all(TTL - 2 <= redis.ttl(key) <= TTL for key in _keys(run_id))


def test_nothing_is_trimmed_above_what_is_archived(log: EventLog, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "LIVE_EVENTS", 100)
    for first in range(1, 2_001, 100):
        log.append(Append(run_id, 1, _events(run_id, first, first + 99), archived=min(500, first - 1)))
    kept = [event.seq for event in log.read(run_id, 0, 5_000)]
    assert kept[0] <= 501
    assert kept[0] > 1, "nothing was trimmed at all"
    assert kept == list(range(kept[0], 2_001))
    assert log.head(run_id) == 2_000


def test_the_live_events_stay_however_far_they_are_archived(log: EventLog, run_id: str) -> None:
    log.append(Append(run_id, 1, _events(run_id, 1, 3_000), archived=3_000))
    assert len(log.read(run_id, 0, 5_000)) == 3_000


def test_scripts_that_redis_has_lost_are_brought_again(log: EventLog, redis: Redis, run_id: str) -> None:
    log.append(Append(run_id, 1, _events(run_id, 1, 1)))
    redis.script_flush()
    other = new_id("run")
    outcomes = log.append_all([Append(run_id, 1, _events(run_id, 2, 3)), Append(other, 1, _events(other, 1, 1))])
    redis.delete(*_keys(other))
    assert outcomes == [3, 1]
    redis.script_flush()
    assert log.raise_epoch(run_id, 2, "w") == 3


def test_each_run_of_a_batch_has_its_own_outcome(log: EventLog, redis: Redis) -> None:
    fine, fenced, behind = (new_id("run") for _ in range(3))
    log.raise_epoch(fenced, 5, "w")
    outcomes = log.append_all(
        [
            Append(fenced, 4, _events(fenced, 1, 1)),
            Append(behind, 1, _events(behind, 3, 3)),
            Append(fine, 1, _events(fine, 1, 2)),
        ]
    )
    for run_id in (fine, fenced, behind):
        redis.delete(*_keys(run_id))
    assert isinstance(outcomes[0], Fenced)
    assert isinstance(outcomes[1], Behind)
    assert outcomes[1].head == 0
    assert outcomes[2] == 2


def test_a_reader_waits_for_the_next_event(log: EventLog, run_id: str) -> None:
    log.append(Append(run_id, 1, _events(run_id, 1, 2)))
    assert log.wait(run_id, 2, 20, 10) == []
    got: list[Event] = []
    reader = threading.Thread(target=lambda: got.extend(log.wait(run_id, 2, 4_000, 10)))
    reader.start()
    eventually(lambda: log._redis.info("clients")["blocked_clients"] > 0)
    log.append(Append(run_id, 1, _events(run_id, 3, 4)))
    reader.join(2)
    assert got[0].seq == 3
    assert [event.seq for event in log.wait(run_id, 0, 20, 3)] == [1, 2, 3]


def test_every_append_rings_once(log: EventLog, redis: Redis, run_id: str) -> None:
    with closing(redis.pubsub(ignore_subscribe_messages=True)) as pubsub:
        pubsub.subscribe(channel(run_id))
        pubsub.get_message(timeout=1)
        log.append(Append(run_id, 1, _events(run_id, 1, 5)))
        log.append(Append(run_id, 1, _events(run_id, 6, 6)))
        rings = [eventually(lambda: pubsub.get_message(timeout=0.1)) for _ in range(2)]
        assert [ring["data"] for ring in rings] == [b"", b""]
        assert pubsub.get_message(timeout=0.05) is None


def test_an_owner_hears_its_doorbell(log: EventLog) -> None:
    bell = log.rings("worker-1")
    next(bell)  # subscribed
    log.ring("worker-2")
    log.ring("worker-1")
    next(bell)
    bell.close()


def test_a_redis_that_cannot_be_reached_is_said_so() -> None:
    log = EventLog(f"redis://127.0.0.1:{free_port()}/0", ttl_seconds=TTL, max_connections=2)
    for call in (log.ping, lambda: log.head("run_1"), lambda: log.append(Append("run_1", 1, _events("run_1", 1, 1)))):
        with pytest.raises(StoreUnavailable):
            call()
    log.close()


def test_a_lost_connection_is_not_replaced_behind_an_owners_back(log: EventLog, redis: Redis, run_id: str) -> None:
    """Redis may have been rolled back meanwhile: an owner confirms its epoch before it appends again."""
    log.append(Append(run_id, 1, _events(run_id, 1, 1)))
    confirmed = log.connects
    assert log.append_all([Append(run_id, 1, _events(run_id, 2, 2))], confirmed=confirmed) == [2]
    redis.client_kill_filter(_id=str(log._redis.client_id()))
    with pytest.raises(StoreUnavailable):
        log.append_all([Append(run_id, 1, _events(run_id, 3, 3))], confirmed=confirmed)
    assert log.head(run_id) == 2
    assert log.append_all([Append(run_id, 1, _events(run_id, 3, 3))], confirmed=log.connects) == [3]


def test_an_idle_connection_that_was_lost_or_has_something_unread_is_replaced_before_it_is_used(
    log: EventLog, redis: Redis, run_id: str
) -> None:
    log.append(Append(run_id, 1, _events(run_id, 1, 1)))
    redis.client_kill_filter(_id=str(log._redis.client_id()))
    assert log.head(run_id) == 1
    with borrowed(log._redis) as connection:
        connection.send_command("PING")
        assert connection.can_read(timeout=5)
    assert log.head(run_id) == 1
    assert log.connects == 3


def test_what_goes_along_is_carried_out_with_the_appends(log: EventLog, redis: Redis, run_id: str) -> None:
    key = f"along:{run_id}"
    along = transaction([("RPUSH", key, "a"), ("RPUSH", key, "b")])
    later = new_id("run")
    appends = [Append(run_id, 1, _events(run_id, 1, 1)), Append(later, 1, _events(later, 2, 2))]
    one, other = log.append_all(appends, along=along)
    assert one == 1
    assert isinstance(other, Behind)
    assert redis.lrange(key, 0, -1) == [b"a", b"b"]
    with pytest.raises(StoreUnavailable):
        log.append_all([Append(run_id, 1, _events(run_id, 2, 2))], along=transaction([("SET", key)]))
    with pytest.raises(StoreUnavailable):
        log.append_all([Append(run_id, 1, _events(run_id, 3, 3))], along=transaction([("HSET", key, "a", "b")]))
    assert log.append_all([Append(run_id, 1, _events(run_id, 4, 4))]) == [4]  # each reply was read
    redis.script_flush()
    assert log.append_all([Append(run_id, 1, _events(run_id, 5, 5))], along=transaction([("DEL", key)])) == [5]
    assert not redis.exists(key)
    redis.delete(*_keys(later))


def test_a_question_that_was_broken_off_leaves_no_reply_to_the_next(
    log: EventLog, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(Append(run_id, 1, _events(run_id, 1, 1)))

    def stopped(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as broken:
        broken.setattr(_HiredisParser, "read_from_socket", stopped)
        with pytest.raises(SystemExit):
            log.append(Append(run_id, 1, _events(run_id, 2, 2)))
    assert log.read(run_id, 0, 10)[-1].seq == 2
    assert log.append(Append(run_id, 1, _events(run_id, 3, 3))) == 3


def test_callers_wait_for_a_free_connection(config: Config) -> None:
    client = connect(config.events_redis_url, 1)
    pool = client.connection_pool
    taken = pool.get_connection()
    threading.Timer(0.1, pool.release, [taken]).start()
    assert client.ping()
    client.close()
    pool.disconnect()
