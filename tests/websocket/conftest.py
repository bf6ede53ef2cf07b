"""What the tests of WebSocket windows share: servers, clients of raw sockets, and a log that a test writes."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.conftest import StackMaker
from tests.harness import Stack
from tests.log_author import LogAuthor
from tests.socket_client import SocketClient
from tests.test_hub import UNLIMITED

ORIGIN = "https://console.example.com"

Connect = Callable[..., SocketClient]


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """A web process, and no worker: logs are written by the tests."""
    stack = module_stack(**UNLIMITED, REPLAY_MAX_BYTES="0", CORS_ORIGINS=ORIGIN)
    stack.start_web()
    return stack


@pytest.fixture(scope="module")
def guarded(module_stack: StackMaker) -> Stack:
    """A web process that wants keys."""
    stack = module_stack(**UNLIMITED, RUNTAIL_DEV="", CORS_ORIGINS=ORIGIN)
    stack.start_web()
    return stack


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connects clients, any number, and closes them."""
    with ExitStack() as opened:
        yield lambda web, **options: opened.enter_context(SocketClient(web.port, **options))


@pytest.fixture
def author(web: Stack) -> LogAuthor:
    """Of a run of the web process."""
    return LogAuthor(web)


@pytest.fixture
def client(web: Stack, author: LogAuthor, connect: Connect) -> SocketClient:
    """A window that has the first event."""
    client = connect(web).open(author.run_id)
    client.messages(1)
    return client


def texts(author: LogAuthor) -> list[str]:
    """Of the events so far."""
    return [event.text for event in author.events]
