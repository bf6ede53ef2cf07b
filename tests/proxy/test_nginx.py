"""Windows through nginx: as it comes, and as the operations guide says."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.protocol import framing
from tests.conftest import StackMaker
from tests.harness import DEV, Stack, eventually
from tests.log_author import LogAuthor
from tests.proxy.conftest import BARE, READ_TIMEOUT_SECONDS, Nginx, NginxMaker, documented
from tests.raw_client import RawClient
from tests.socket_client import SocketClient

SSE, NDJSON = "text/event-stream", "application/x-ndjson"
THE_END = b"\r\n0\r\n\r\n"
AT_ONCE_SECONDS = 0.3
PER_ADDRESS = 3


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """A web process that believes one proxy, and no worker: logs are written by the tests."""
    stack = module_stack(STREAM_HEARTBEAT_SECONDS="1", TRUSTED_PROXY_HOPS="1", STREAM_MAX_PER_ADDRESS=str(PER_ADDRESS))
    stack.start_web()
    return stack


@pytest.fixture(scope="module", params=["as it comes", "as documented"])
def proxy(request: pytest.FixtureRequest, web: Stack, nginx: NginxMaker) -> Nginx:
    """An nginx in front of the web process."""
    return nginx(web, BARE if request.param == "as it comes" else documented())


@pytest.fixture
def author(web: Stack) -> LogAuthor:
    return LogAuthor(web)


def open_windows(web: Stack) -> float:
    """As the web process counts them."""
    families = text_string_to_metric_families(web.http.get("/metrics").text)
    return next(family.samples[0].value for family in families if family.name == "runtail_open_windows")


def expected(author: LogAuthor) -> bytes:
    """The SSE body of all events."""
    return framing.sse_retry(1_000) + b"".join(framing.sse(event) for event in author.events)


@contextmanager
def window(proxy: Nginx, author: LogAuthor, address: str, **headers: str) -> Iterator[Iterator[str]]:
    """The lines of a window that a client of that address opens."""
    transport = httpx.HTTPTransport(local_address=address)
    with (
        httpx.Client(base_url=proxy.url, transport=transport, timeout=10) as client,
        client.stream("GET", author.path, headers={"Accept": SSE, **headers}) as response,
    ):
        assert response.status_code == 200
        yield response.iter_lines()


def is_let_in(proxy: Nginx, author: LogAuthor, address: str, **headers: str) -> bool:
    """Whether one more window of that address gets events."""
    with window(proxy, author, address, **headers) as lines:
        return next(line for line in lines if line.startswith("event:")) == "event: run.created"


@pytest.mark.parametrize("accept", [SSE, NDJSON])
def test_each_event_comes_through_at_once(proxy: Nginx, author: LogAuthor, accept: str) -> None:
    with RawClient(proxy.port) as client:
        client.ask(author.path, accept).until(b"run.created")
        for _ in range(20):
            started = time.monotonic()
            author.append()
            client.until(b'"seq":%d,' % author.head)
            assert time.monotonic() - started < AT_ONCE_SECONDS
            assert client.seqs == list(range(1, author.head + 1))


def test_a_websocket_comes_through_as_documented(web: Stack, nginx: NginxMaker, author: LogAuthor) -> None:
    with SocketClient(nginx(web, documented()).port) as client:
        client.open(author.run_id).messages(1)
        author.append()
        author.end()
        assert client.messages(3) == [event.envelope() for event in author.events]
        while client.code is None:  # after it nginx may reset the connection, on which the answer is under way
            assert client.read()
        assert client.code == 1000


def test_heartbeats_keep_a_quiet_window_open(proxy: Nginx, author: LogAuthor) -> None:
    until = time.monotonic() + 3 * READ_TIMEOUT_SECONDS
    with RawClient(proxy.port) as client:
        client.ask(author.path)
        while time.monotonic() < until:
            assert client.read()
        author.end()
        client.until(THE_END)
        assert client.seqs == [1, 2]
        assert client.body.split(b"\n").count(b":") >= 2 * READ_TIMEOUT_SECONDS


def test_a_window_that_ends_in_order_does_so_behind_it(proxy: Nginx, author: LogAuthor) -> None:
    with RawClient(proxy.port) as client:
        client.ask(author.path).until(b"run.created")
        author.append(500, "🚚" * 50)
        author.end()
        client.until(THE_END)
        assert client.body == expected(author)


@pytest.mark.parametrize("leave", [RawClient.reset, lambda client: client.socket.close()], ids=["reset", "close"])
def test_a_client_that_leaves_is_noticed(proxy: Nginx, author: LogAuthor, leave: Callable[[RawClient], None]) -> None:
    eventually(lambda: open_windows(proxy.stack) == 0)
    client = RawClient(proxy.port).ask(author.path).until(b"run.created")
    eventually(lambda: open_windows(proxy.stack) == 1)
    leave(client)
    eventually(lambda: open_windows(proxy.stack) == 0, seconds=3)


def test_addresses_are_the_clients_and_not_the_one_of_the_proxy(
    web: Stack, nginx: NginxMaker, author: LogAuthor
) -> None:
    proxy = nginx(web, documented())
    with window(proxy, author, "127.0.0.2"), window(proxy, author, "127.0.0.2"), window(proxy, author, "127.0.0.2"):
        assert not is_let_in(proxy, author, "127.0.0.2")
        key = web.services.registry.create_key(DEV)  # with a header of its own nobody is the developer
        invented = {"X-Forwarded-For": "127.0.0.4", "Authorization": f"Bearer {key}"}
        assert not is_let_in(proxy, author, "127.0.0.2", **invented), "an invented address"
        assert is_let_in(proxy, author, "127.0.0.3")
    eventually(lambda: is_let_in(proxy, author, "127.0.0.2"))


def test_a_server_that_stops_ends_its_windows_in_order(stack: StackMaker, nginx: NginxMaker) -> None:
    web = stack(TRUSTED_PROXY_HOPS="1")
    process = web.start_web()
    author = LogAuthor(web)
    with RawClient(nginx(web, BARE).port) as bare, RawClient(nginx(web, documented()).port) as client:
        for each in (bare, client):
            each.ask(author.path).until(b"run.created")
        assert process.stop() == 0
        for each in (bare, client):
            each.until(THE_END)


def test_with_http_1_1_a_window_that_breaks_off_can_be_told_from_one_that_ends(
    stack: StackMaker, nginx: NginxMaker
) -> None:
    web = stack(TRUSTED_PROXY_HOPS="1")
    [process] = psutil.Process(web.start_web().pid).children()
    author = LogAuthor(web)
    with RawClient(nginx(web, BARE).port) as bare, RawClient(nginx(web, documented()).port) as client:
        for each in (bare, client):
            each.ask(author.path).until(b"run.created")
        process.kill()
        bare.until(THE_END)
        assert not client.to_the_end().ended_in_order
