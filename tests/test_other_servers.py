"""Windows where the connection cannot be taken over: other workers of gunicorn, TLS, other servers. The same bytes."""

import re
import signal
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import StackMaker
from tests.harness import READY_SECONDS, ROOT, Process, Stack, eventually, free_port
from tests.raw_client import RawClient

SSE, NDJSON = "text/event-stream", "application/x-ndjson"
ENDLESS = {"count": 100_000, "interval_ms": 20, "type": "custom.tick"}
QUIET = {"count": 100_000, "interval_ms": 59_000, "type": "custom.tick"}
HEARTBEAT_SECONDS = 2
"""Longer than any pause in the other tests: where a heartbeat comes is not the same everywhere."""
THE_END = b"\r\n0\r\n\r\n"
CERTIFICATE = ROOT / "tests" / "localhost.pem"
THREADS = 8

GUNICORN = [sys.executable, "-m", "gunicorn", "wsgi:app"]
WERKZEUG = [sys.executable, "-m", "flask", "--app", "wsgi:app", "run", "--no-reload", "--port"]
PYWSGI = """
from gevent import monkey
monkey.patch_all()
import sys
from gevent.pywsgi import WSGIServer
from wsgi import app
WSGIServer(("127.0.0.1", int(sys.argv[1])), app).serve_forever()
"""
SERVERS = {
    "gunicorn, gevent": [*GUNICORN, "--worker-class", "gevent"],
    "gunicorn, threads": [*GUNICORN, "--worker-class", "gthread", "--threads", str(THREADS)],
    "gunicorn, TLS": [*GUNICORN, "--certfile", str(CERTIFICATE), "--keyfile", str(CERTIFICATE)],
    "werkzeug": WERKZEUG,
    "gevent.pywsgi": [sys.executable, "-c", PYWSGI],
}
SYNC = [*GUNICORN, "--worker-class", "sync"]


class TlsClient(RawClient):
    """The same over TLS."""

    def __init__(self, port: int, **options: Any) -> None:
        super().__init__(port, **options)
        self.socket = _trust().wrap_socket(self.socket, server_hostname="localhost")


def _trust() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTIFICATE))


@dataclass(frozen=True, slots=True)
class Server:
    """A server of the same runs as `ours`."""

    http: httpx.Client
    connect: Callable[[], RawClient]
    """A connection of its own."""
    process: Process


@pytest.fixture(scope="module")
def ours(module_stack: StackMaker) -> Stack:
    """Our own worker class, and a worker."""
    stack = module_stack(STREAM_HEARTBEAT_SECONDS=str(HEARTBEAT_SECONDS))
    stack.start_web()
    stack.start_worker()
    return stack


@pytest.fixture(scope="module")
def start(ours: Stack) -> Iterator[Callable[[list[str]], Server]]:
    """Starts another server beside ours."""
    with ExitStack() as opened:
        yield lambda command: _started(ours, command, opened)


@pytest.fixture(scope="module", params=SERVERS.values(), ids=SERVERS.keys())
def server(request: pytest.FixtureRequest, start: Callable[[list[str]], Server]) -> Server:
    return start(request.param)


@pytest.fixture
def running(ours: Stack) -> Iterator[Callable[[dict[str, Any]], str]]:
    """Starts runs that do not end by themselves, and cancels them."""
    started: list[str] = []

    def run(input: dict[str, Any]) -> str:
        started.append(ours.start("emit", input))
        eventually(lambda: ours.read(started[-1])["state"]["last_seq"] >= 3)
        return started[-1]

    yield run
    for run_id in started:
        ours.http.post(f"/runs/{run_id}/cancel")


@pytest.fixture(scope="module")
def finished(ours: Stack) -> str:
    """The path of a finished run's windows."""
    run_id = ours.start("emit", {"count": 700, "text": "🚚 ", "type": "custom.tick"})
    ours.ended(run_id)
    return f"/runs/{run_id}/events"


def _started(ours: Stack, command: list[str], opened: ExitStack) -> Server:
    port, tls = free_port(), "--certfile" in command
    arguments = command if command[:3] == GUNICORN[:3] else [*command, str(port)]
    process = Process("other", arguments, {**ours.env, "PORT": str(port)}, ours.folder)
    opened.callback(process.stop)
    url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    http = opened.enter_context(httpx.Client(base_url=url, verify=_trust() if tls else False, timeout=15))

    def ready() -> bool:
        assert process.popen.poll() is None, process.log.read_text()[-3000:]
        with suppress(httpx.TransportError):
            return http.get("/readyz").status_code == 200
        return False

    eventually(ready, READY_SECONDS, f"readiness of {command}")
    return Server(http, lambda: (TlsClient if tls else RawClient)(port), process)


def body(client: RawClient, path: str, accept: str = SSE) -> bytes:
    """The body of a window that ends by itself."""
    with client:
        return client.ask(path, accept).until(THE_END).body


def timeless(snapshot: bytes) -> bytes:
    """The body without the time at which the snapshot was sent."""
    text, found = re.subn(rb'"type":"stream.snapshot","ts":"[^"]*"', b"", snapshot)
    assert found == 1
    return text


def open_windows(server: Server) -> float:
    """As that server counts them."""
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    return next(family.samples[0].value for family in families if family.name == "runtail_open_windows")


@pytest.mark.parametrize("accept", [SSE, NDJSON])
@pytest.mark.parametrize("query", ["", "?named=0", "?since_seq=350"])
def test_a_finished_run_has_the_same_bytes(ours: Stack, server: Server, finished: str, accept: str, query: str) -> None:
    expected = body(RawClient(ours.port), finished + query, accept)
    assert b"run.completed" in expected
    assert body(server.connect(), finished + query, accept) == expected


def test_a_client_of_http_1_0_gets_the_same_bytes(ours: Stack, server: Server, finished: str) -> None:
    with server.connect() as client:
        client.ask(finished, version="1.0").to_the_end()
        assert client.body == body(RawClient(ours.port), finished)


def test_the_sync_worker_serves_a_finished_run_in_the_same_bytes(
    ours: Stack, start: Callable[[list[str]], Server], finished: str
) -> None:
    assert body(start(SYNC).connect(), finished) == body(RawClient(ours.port), finished)


@pytest.mark.parametrize("accept", [SSE, NDJSON])
def test_a_run_that_goes_on_has_the_same_bytes(
    ours: Stack, server: Server, running: Callable[[dict[str, Any]], str], accept: str
) -> None:
    run_id = running(ENDLESS)
    with RawClient(ours.port) as one, server.connect() as two:
        for client in (one, two):
            client.ask(f"/runs/{run_id}/events", accept).until(b'"seq":3,')
        head = ours.read(run_id)["state"]["last_seq"]
        two.until(b'"seq":%d,' % (head + 5))
        ours.http.post(f"/runs/{run_id}/cancel")
        for client in (one, two):
            client.until(THE_END)
        assert two.body == one.body
        assert two.seqs == list(range(1, ours.read(run_id)["state_seq"] + 1))


def test_a_quiet_window_has_heartbeats(server: Server, running: Callable[[dict[str, Any]], str]) -> None:
    with server.connect() as client:
        started = time.monotonic()
        client.ask(f"/runs/{running(QUIET)}/events?since_seq=3").until(b":\n")
        assert HEARTBEAT_SECONDS * 0.9 < time.monotonic() - started < HEARTBEAT_SECONDS * 2
        assert client.body == b"retry: 1000\n:\n"


def test_a_window_at_the_head_of_a_run_begins_with_the_same_snapshot(
    ours: Stack, server: Server, running: Callable[[dict[str, Any]], str]
) -> None:
    path = f"/runs/{running(QUIET)}/events?since_seq=latest"
    with RawClient(ours.port) as one, server.connect() as two:
        for client in (one, two):
            client.ask(path).until(b"stream.snapshot").until(b"}\n\n")
        assert timeless(two.body) == timeless(one.body)


def test_a_finished_run_is_the_same_snapshot(ours: Stack, server: Server, finished: str) -> None:
    path = f"{finished}?since_seq=latest"
    assert timeless(body(server.connect(), path)) == timeless(body(RawClient(ours.port), path))


def test_a_client_that_leaves_gives_back_its_place(server: Server, running: Callable[[dict[str, Any]], str]) -> None:
    path = f"/runs/{running(ENDLESS)}/events"
    with ExitStack() as opened, ThreadPoolExecutor(THREADS) as pool:
        clients = [opened.enter_context(server.connect()) for _ in range(THREADS - 2)]
        list(pool.map(lambda client: client.ask(path).until(b'"seq":3,'), clients))
        assert open_windows(server) == len(clients)
    eventually(lambda: open_windows(server) == 0)


def test_other_processes_see_the_windows_of_a_run(
    ours: Stack, server: Server, running: Callable[[dict[str, Any]], str]
) -> None:
    run_id = running(ENDLESS)

    def windows() -> int:
        return ours.services.leases.look([run_id])[run_id].windows

    with server.connect() as client:
        client.ask(f"/runs/{run_id}/events").until(b'"seq":3,')
        eventually(lambda: windows() == 1, seconds=3)
    eventually(lambda: windows() == 0, seconds=5)


def test_a_server_of_threads_that_is_told_to_stop_ends_its_windows_in_order(
    ours: Stack, start: Callable[[list[str]], Server], running: Callable[[dict[str, Any]], str]
) -> None:
    run_id = running(QUIET)
    server = start(SERVERS["gunicorn, threads"])
    with server.connect() as client:
        client.ask(f"/runs/{run_id}/events").until(b'"seq":3,')
        server.process.send(signal.SIGTERM)
        client.to_the_end()
    assert client.ended_in_order
    assert b"retry: " in client.body.rpartition(b"\n\n")[2]
