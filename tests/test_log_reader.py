"""The reader, whose reads may be begun without waiting, and the doorbell, which the event loop hears."""

import socket
import threading
import time
from collections.abc import Iterator

import gevent
import pytest
from gevent.queue import Queue
from redis import Redis

from app.errors import StoreUnavailable
from app.protocol.events import Outbound, encode
from app.storage.event_log import Append, stream_key
from app.storage.log_reader import Doorbell, LogReader
from app.wiring import Services
from tests.harness import pending_run

MANY = 50_000
"""Runs whose XREAD is longer than what the kernel takes at once."""


@pytest.fixture
def reader(environment: dict[str, str]) -> Iterator[LogReader]:
    """A connected one."""
    reader = LogReader(environment["REDIS_URL"])
    reader.connect()
    yield reader
    reader.close()


@pytest.fixture
def run_id(services: Services) -> str:
    """A run with one event."""
    return pending_run(services).id


def connection(reader: LogReader) -> socket.socket:
    made: socket.socket = reader._line.socket
    return made


def begin_in_part(reader: LogReader, **cursors: int) -> None:
    """Begin a question so long that Redis has not got it all: no answer is on its way."""
    connection(reader).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    assert reader.begin({**{f"run_{n}": 0 for n in range(MANY)}, **cursors}, 10)
    assert reader._line._unsent


def test_what_was_begun_is_what_a_read_brings(reader: LogReader, run_id: str) -> None:
    assert reader.begin({run_id: 0}, 10)
    assert reader.finish() == reader.read_many({run_id: 0}, 10)
    assert reader.begin({run_id: 1}, 10)
    assert reader.finish() == {}


@pytest.mark.parametrize(
    ("seqs", "cursor", "told"),
    [
        ((2, 3, 4), None, [4]),
        ((2, 3, 4), 4, [4]),
        ((2, 3, 4), 9, [4]),
        ((2, 3, 4), 1, [2, 3, 4]),
        ((2, 3, 4), 3, [4]),
        ((2, 3, 4, 5, 6), 1, [4, 5, 6]),  # there are more
        ((2, 5, 6), 1, [5, 6]),  # two are missing
        ((2, 5, 6), 0, [5, 6]),
        ((4, 5), 1, [4, 5]),
        ((2, 3), 0, [1, 2, 3]),
        ((), 1, [1]),
    ],
)
def test_the_end_of_a_run_is_what_follows_a_cursor_or_the_last_of_it_else_its_last_event(
    reader: LogReader,
    environment: dict[str, str],
    run_id: str,
    seqs: tuple[int, ...],
    cursor: int | None,
    told: list[int],
) -> None:
    with Redis.from_url(environment["REDIS_URL"]) as redis:
        for seq in seqs:
            event = encode(run_id, seq, "custom.tick", {"n": seq})
            redis.xadd(stream_key(run_id), {"t": event.type, "e": event.text, "o": event.op}, f"{seq}-0")
    cursors = {"run_nothing": 0} | ({run_id: cursor} if cursor is not None else {})
    ends = reader.ends(["run_nothing", run_id], cursors, 3)
    assert {log: [event.seq for event in events] for log, events in ends.items()} == {run_id: told}
    assert ends[run_id] == reader.read(run_id, told[0] - 1, len(told))


def test_a_question_of_any_length_is_begun_without_a_wait_and_answered(reader: LogReader, run_id: str) -> None:
    begin_in_part(reader, **{run_id: 0})
    assert list(reader.finish()) == [run_id]
    assert list(reader.read_many({run_id: 0}, 10)) == [run_id], "and the connection is as before"


def test_nothing_is_begun_while_another_asks(reader: LogReader, run_id: str) -> None:
    assert reader.begin({run_id: 0}, 10)
    assert not reader.begin({run_id: 0}, 10)
    other = threading.Thread(target=reader.head, args=(run_id,))
    other.start()
    reader.finish()
    other.join(10)
    assert not other.is_alive(), "its turn came"
    assert reader.begin({run_id: 0}, 10)
    reader.finish()


def test_what_is_begun_on_a_lost_connection_is_said_and_keeps_nobody_s_turn(reader: LogReader, run_id: str) -> None:
    reader.close()
    with pytest.raises(StoreUnavailable):
        reader.begin({run_id: 0}, 10)
    assert reader.is_lost(time.monotonic())
    reader.connect()
    assert list(reader.read_many({run_id: 0}, 10)) == [run_id]


@pytest.mark.parametrize("who", ["the network", "the hub"])
def test_what_was_begun_and_lost_is_said_and_keeps_nobody_s_turn(reader: LogReader, run_id: str, who: str) -> None:
    begin_in_part(reader)
    if who == "the network":
        connection(reader).shutdown(socket.SHUT_RDWR)
    else:
        reader.close()
    with pytest.raises(StoreUnavailable):
        reader.finish()
    reader.connect()
    assert list(reader.read_many({run_id: 0}, 10)) == [run_id]


def test_a_redis_that_refuses_keeps_nobody_s_turn(reader: LogReader, services: Services, run_id: str) -> None:
    services.log._redis.set(stream_key("run_none"), "not a stream")
    assert reader.begin({"run_none": 0}, 10)
    with pytest.raises(StoreUnavailable):
        reader.finish()
    services.log._redis.delete(stream_key("run_none"))
    assert list(reader.read_many({run_id: 0}, 10)) == [run_id], "the connection is whole"


@pytest.fixture
def doorbell(environment: dict[str, str]) -> Iterator[Doorbell]:
    """A connected one."""
    doorbell = Doorbell(environment["REDIS_URL"])
    doorbell.connect()
    yield doorbell
    doorbell.close()


def hear(doorbell: Doorbell) -> "tuple[gevent.Greenlet[..., None], Queue[tuple[list[str], list[str]]]]":
    """Somebody who hears it, and what is heard."""
    heard: Queue[tuple[list[str], list[str]]] = Queue()

    def told(rang: list[str], confirmed: list[str]) -> None:
        if not (rang or confirmed):
            raise LookupError("Nothing was told.")
        heard.put((rang, confirmed))

    return gevent.spawn(doorbell.hear, told), heard


def test_what_rings_and_what_is_confirmed_is_told(doorbell: Doorbell, services: Services, run_id: str) -> None:
    _, heard = hear(doorbell)
    doorbell.subscribe([run_id])
    assert heard.get(timeout=10) == ([], [run_id])
    services.log.raise_epoch(run_id, 1, "one")
    services.log.append(Append(run_id, 1, [encode(run_id, 2, "custom.tick", Outbound({}))], owner="one"))
    assert heard.get(timeout=10) == ([run_id], [])


@pytest.mark.parametrize("who", ["Redis", "the hub", "who hears", "who is told"])
def test_whoever_ends_it_the_descriptor_is_not_watched_any_longer(doorbell: Doorbell, run_id: str, who: str) -> None:
    hearing, heard = hear(doorbell)
    doorbell.subscribe([run_id])
    assert heard.get(timeout=10) == ([], [run_id])
    if who == "Redis":
        doorbell._line.socket.shutdown(socket.SHUT_RDWR)
    elif who == "the hub":
        doorbell.close()
    elif who == "who hears":
        hearing.kill()
    else:
        doorbell.ping()  # of which nothing is told
    hearing.join(10)
    assert hearing.dead
    assert doorbell._watcher is None
    why = {"Redis": StoreUnavailable, "the hub": StoreUnavailable, "who hears": type(None), "who is told": LookupError}
    assert isinstance(hearing.exception, why[who])


def test_a_ring_on_a_lost_connection_ends_the_hearing(doorbell: Doorbell, run_id: str) -> None:
    hearing, heard = hear(doorbell)
    doorbell.subscribe([run_id])
    assert heard.get(timeout=10) == ([], [run_id])
    doorbell._line.close()
    with pytest.raises(StoreUnavailable):
        doorbell.ping()
    assert doorbell._watcher is None
    hearing.join(10)
    assert isinstance(hearing.exception, StoreUnavailable)
