"""The proxy of examples/nextjs-proxy.md: its own code, in node, between a client and a real server."""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse

from app.storage.run_store import Principal
from tests.conftest import StackMaker
from tests.harness import ROOT, Process, Stack, eventually, free_port, problem
from tests.programs import needed

DOCUMENT = (ROOT / "examples" / "nextjs-proxy.md").read_text()
SERVER = ROOT / "tests" / "fetch_server.mjs"
SESSION = """
export const signedInUser = async (request) => request.headers.get("cookie")?.match(/user=(\\w+)/)?.[1] ?? null;
"""
"""Stands in for the reader's own: the cookie says who it is."""
SLOW = {"agent": "emit", "input": {"count": 60, "interval_ms": 50, "type": "custom.tick"}}
ENDLESS = {"agent": "emit", "input": {"count": 100_000, "interval_ms": 50, "type": "custom.tick"}}
EVENTS = ("text/event-stream", "application/x-ndjson")


def handler(folder: Path) -> Path:
    """The document's handler as a module, where `@/lib/session` is found."""
    code = re.search(r"```js\n(// app/api/.*?)```", DOCUMENT, re.DOTALL)
    assert code is not None
    library = folder / "node_modules" / "@" / "lib"
    library.mkdir(parents=True)
    (library / "package.json").write_text('{"type": "module", "exports": {"./session": "./session.js"}}')
    (library / "session.js").write_text(SESSION)
    module = folder / "route.mjs"
    module.write_text(code[1])
    return module


class Proxy:
    """A node process with the handler, in front of a server of its own."""

    def __init__(self, server: Stack) -> None:
        self.server = server
        self.port = free_port()
        key = server.services.registry.create_key(Principal("acme", "web", writer=True))
        self._clients: dict[str | None, httpx.Client] = {}
        self._env = {**server.env, "RUNTAIL_URL": server.url, "RUNTAIL_KEY": key}

    def start(self) -> Process:
        """Start node and wait until it listens."""
        folder = self.server.folder
        command = [needed("node"), str(SERVER), str(handler(folder)), str(self.port)]
        process = Process("node", command, self._env, folder)

        def listens() -> bool:
            assert process.popen.poll() is None, process.log.read_text()
            try:
                return self.as_user("nobody").get("/api/agents").status_code > 0
            except httpx.TransportError:
                return False

        eventually(listens, 20, "readiness of node")
        return process

    def as_user(self, user: str | None) -> httpx.Client:
        """A browser with that user's session, or with none."""
        if user not in self._clients:
            headers = {"Cookie": f"user={user}"} if user else {}
            self._clients[user] = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=30)
        return self._clients[user]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def start_run(self, body: dict[str, Any], user: str = "alice") -> str:
        answer = self.as_user(user).post("/api/runs", json=body)
        assert answer.status_code == 202, answer.text
        run_id: str = answer.json()["run_id"]
        return run_id

    def open_windows(self) -> float:
        metrics = self.server.http.get("/metrics").text
        return float(re.findall(r"^runtail_open_windows (\S+)", metrics, re.MULTILINE)[0])


@pytest.fixture(scope="module")
def proxy(module_stack: StackMaker) -> Iterator[Proxy]:
    server = module_stack()
    server.start_web()
    server.start_worker()
    proxy = Proxy(server)
    process = proxy.start()
    yield proxy
    proxy.close()
    process.kill()


@contextmanager
def window(
    proxy: Proxy, run_id: str, user: str = "alice", **headers: str
) -> Iterator[tuple[httpx.Response, Iterator[ServerSentEvent]]]:
    path = f"/api/runs/{run_id}/events"
    with connect_sse(proxy.as_user(user), "GET", path, headers=headers) as source:
        yield source.response, source.iter_sse()


def test_events_come_through_while_the_run_goes_on(proxy: Proxy) -> None:
    run_id = proxy.start_run(SLOW)
    with window(proxy, run_id, **{"Accept-Encoding": "gzip"}) as (answer, events):
        assert [next(events).id for _ in range(5)] == ["1", "2", "3", "4", "5"]
        assert proxy.as_user("alice").get(f"/api/runs/{run_id}").json()["status"] == "running"
        rest = [int(event.id) for event in events]
    assert rest == list(range(6, rest[-1] + 1))
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache, no-transform"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert "Content-Encoding" not in answer.headers


def test_a_reconnect_goes_on_after_its_cursor_and_one_at_the_end_is_told_so(proxy: Proxy) -> None:
    run_id = proxy.start_run(SLOW)
    with window(proxy, run_id) as (_, events):
        cursor = [next(events).id for _ in range(3)][-1]
    with window(proxy, run_id, **{"Last-Event-ID": cursor}) as (_, events):
        ids = [int(event.id) for event in events]
    assert ids == list(range(4, ids[-1] + 1))
    with window(proxy, run_id, **{"Last-Event-ID": str(ids[-1])}) as (answer, _):
        assert (answer.status_code, answer.read()) == (204, b"")


def test_a_client_that_leaves_closes_the_window_at_the_server(proxy: Proxy) -> None:
    run_id = proxy.start_run(ENDLESS)
    before = proxy.open_windows()
    with window(proxy, run_id) as (_, events):
        next(events)
        assert proxy.open_windows() == before + 1
    eventually(lambda: proxy.open_windows() == before, what="the end of the window")
    assert proxy.as_user("alice").post(f"/api/runs/{run_id}/cancel").status_code in (200, 202)


@pytest.mark.parametrize("accept", EVENTS)
def test_the_response_of_a_start_can_be_the_stream(proxy: Proxy, accept: str) -> None:
    with proxy.as_user("alice").stream("POST", "/api/runs", json=SLOW, headers={"Accept": accept}) as answer:
        assert answer.headers["Content-Type"].startswith(accept)
        run_id = answer.headers["X-Run-Id"]
        lines = "".join(answer.iter_text())
    assert "run.completed" in lines
    assert run_id in lines


def test_a_start_is_repeated_by_its_key(proxy: Proxy) -> None:
    key = {"Idempotency-Key": "twice"}
    starts = [proxy.as_user("alice").post("/api/runs", json=SLOW, headers=key) for _ in range(2)]
    assert starts[0].json()["run_id"] == starts[1].json()["run_id"]


def test_an_error_of_the_server_comes_through(proxy: Proxy) -> None:
    problem(proxy.as_user("alice").get("/api/runs/run_none"), 404, "run_not_found")
    problem(proxy.as_user("alice").post("/api/runs", json={"agent": "nobody"}), 422, "unknown_agent")


def test_runs_belong_to_who_is_signed_in(proxy: Proxy) -> None:
    run_id = proxy.start_run(SLOW, "alice")
    problem(proxy.as_user("bob").get(f"/api/runs/{run_id}"), 404, "run_not_found")
    mallory = {"Runtail-User": "alice"}
    problem(proxy.as_user("bob").get(f"/api/runs/{run_id}", headers=mallory), 404, "run_not_found")
    assert proxy.as_user(None).get(f"/api/runs/{run_id}").status_code == 401
    assert proxy.as_user("alice").delete(f"/api/runs/{run_id}").status_code in (200, 202)


def test_while_the_server_is_away_an_event_source_is_told_to_come_back(stack: StackMaker) -> None:
    with closing(Proxy(stack())) as proxy:
        process = proxy.start()
        with window(proxy, "run_1") as (answer, events):
            assert answer.status_code == 200
            assert list(events) == []
        sse = {"Accept": "text/event-stream"}
        assert proxy.as_user("alice").get("/api/runs/run_1/events", headers=sse).text == "retry: 1000\n"
        assert proxy.as_user("alice").get("/api/runs/run_1").status_code == 502
        process.kill()
