"""Whether an idle connection was lost is seen without waiting and without taking anything."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from app.storage.peek import peek


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with ExitStack() as closing:
        here, there = map(closing.enter_context, socket.socketpair())
        yield here, there


def test_what_has_come_is_seen_and_stays(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    assert peek(here.fileno()) is None
    there.sendall(b"xy")
    assert peek(here.fileno()) == b"x"
    assert here.recv(2) == b"xy"


def test_an_end_is_seen_also_that_of_a_socket_that_is_closed_here(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    there.close()
    assert peek(here.fileno()) == b""
    descriptor = here.fileno()
    here.close()
    assert peek(descriptor) == peek(-1) == b""


def test_a_default_timeout_of_somebody_else_is_not_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    here, _ = pair
    here.setblocking(True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5)
    try:
        began = time.monotonic()
        assert peek(here.fileno()) is None
        assert time.monotonic() - began < 2
    finally:
        socket.setdefaulttimeout(before)
    assert here.getblocking()
