"""Reads that are begun without waiting, over one connection to a real Redis."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from app.errors import StoreUnavailable
from app.storage.event_log import stream_key
from app.storage.log_reader import LogReader
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


def test_what_was_begun_is_what_a_read_brings(reader: LogReader, run_id: str) -> None:
    assert reader.begin({run_id: 0}, 10)
    assert reader.finish() == reader.read_many({run_id: 0}, 10)
    assert reader.begin({run_id: 1}, 10)
    assert reader.finish() == {}


def test_a_question_of_any_length_is_begun_without_a_wait_and_answered(reader: LogReader, run_id: str) -> None:
    connection(reader).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    cursors = {**{f"run_{n}": 0 for n in range(MANY)}, run_id: 0}
    assert reader.begin(cursors, 10)
    assert reader._line._unsent, "the kernel did not take it all"
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


def test_what_was_begun_and_lost_is_said_and_keeps_nobody_s_turn(reader: LogReader, run_id: str) -> None:
    assert reader.begin({run_id: 0}, 10)
    connection(reader).shutdown(socket.SHUT_RDWR)
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
