"""A Redis that takes what it is sent and never answers: whoever asks for a run is answered from Postgres, in time."""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import gevent
import psutil
import pytest
import redis

from app.dev.services import EmbeddedServices
from app.errors import StoreUnavailable
from app.storage import breaker as module
from app.storage.breaker import Breaker
from app.storage.run_store import migrate
from tests.external_writer import ExternalWriter
from tests.harness import Stack, eventually
from tests.stored import begin, ended, has_status, payloads, reach
from workers.hints import RECORD_SECONDS

FEW_SECONDS = 8.0
"""For the first who ask: twice a timeout, on a busy machine."""
AT_ONCE_SECONDS = 2.5
"""For all after them."""
ERASURES = 12


class Swallowing:
    """A TCP proxy in front of a server. While it swallows, both sides may send, and nothing arrives."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port: int = self._listener.getsockname()[1]
        self.swallows = False
        self._closed = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while _readable(self._listener):
            client, _ = self._listener.accept()
            if self._closed:
                client.close()
                return
            self._threads.append(threading.Thread(target=self._carry, args=(client,)))
            self._threads[-1].start()

    def _carry(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self._target) as server:
            swallowed = False
            while not self._closed:
                for ready in _readable(client, server):
                    data = ready.recv(65_536)
                    if not data or (swallowed and not self.swallows):
                        return  # what was swallowed is missing: the connection is of no more use
                    if self.swallows:
                        swallowed = True
                    else:
                        (server if ready is client else client).sendall(data)

    def close(self) -> None:
        self._closed = True
        socket.create_connection(("127.0.0.1", self.port)).close()
        for thread in self._threads:
            thread.join()
        self._listener.close()


def _readable(*sockets: socket.socket) -> list[socket.socket]:
    return select.select(sockets, [], [], 1.0 if len(sockets) > 1 else None)[0]


Hangs = Callable[[], None]


@pytest.fixture(params=["stopped", "swallowed"])
def hanging(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Stack, Hangs, Hangs]]:
    """A stack on servers of its own, what makes its Redis hang, and what ends that."""
    (tmp_path / "servers").mkdir()
    with ExitStack() as opened:
        servers = opened.enter_context(EmbeddedServices(tmp_path / "servers"))
        migrate(servers.database_url)
        urls = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
        if request.param == "swallowed":
            parts = urlsplit(servers.redis_url)
            proxy = Swallowing(parts.hostname or "", parts.port or 0)
            opened.callback(proxy.close)
            urls["REDIS_URL"] = parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{proxy.port}")).geturl()

            def hang() -> None:
                proxy.swallows = True

            def go_on() -> None:
                proxy.swallows = False
        else:
            pid = servers.pid("redis")

            def hang() -> None:
                os.kill(pid, signal.SIGSTOP)

            def go_on() -> None:
                os.kill(pid, signal.SIGCONT)

            opened.callback(go_on)
        stack = opened.enter_context(Stack({**urls, "DB_POOL_SIZE": "4"}, tmp_path))
        stack.start_web()
        stack.start_worker()
        yield stack, hang, go_on


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


@pytest.mark.parametrize("hanging", ["stopped"], indirect=True)
def test_the_process_of_an_isolated_run_is_watched_while_redis_hangs(hanging: tuple[Stack, Hangs, Hangs]) -> None:
    stack, hang, go_on = hanging
    stack.start_worker("--isolated")
    limit = RECORD_SECONDS + 4  # by then it has begun to wait for Redis, to which RQ's record of the worker is due
    run_id = begin(stack, "isolated_spin", timeout_s=limit)
    reach(stack, run_id, "step.started")
    (said,) = payloads(stack, run_id, "custom.pid")
    horse = psutil.Process(said["pid"])
    hang()
    eventually(lambda: not horse.is_running(), limit + FEW_SECONDS / 2, "the end of its process")
    go_on()
    run = ended(stack, run_id, "failed")
    assert (run.attempt, run.error and run.error["code"]) == (1, "timeout")


def test_everything_is_answered_in_time_while_redis_hangs(hanging: tuple[Stack, Hangs, Hangs]) -> None:
    stack, hang, go_on = hanging
    done = [begin(stack, "steady", count=1, interval=0) for _ in range(ERASURES + 1)]
    for run_id in done:
        ended(stack, run_id)
    gate = stack.folder / "gate"
    running, cancelled = (begin(stack, "steady", count=10, interval=0.1, gate=str(gate)) for _ in range(2))
    waiting = begin(stack, "waits_for", on="approval")
    for run_id in (running, cancelled):
        reach(stack, run_id, "custom.tick", times=3)
    has_status(stack, waiting, "waiting")
    writer = ExternalWriter.start(stack.http)
    hang()
    http = stack.http
    with ThreadPoolExecutor(ERASURES) as pool:
        erasing = [pool.submit(http.post, f"/runs/{run_id}/erase") for run_id in done[1:]]
        with _within(FEW_SECONDS):
            assert http.get(f"/runs/{running}").json()["state"]["last_seq"] > 3
        with _within(FEW_SECONDS):
            assert {answer.result().status_code for answer in erasing} == {503}
    with _within(AT_ONCE_SECONDS + FEW_SECONDS / 2):  # one of them may be who finds out whether Redis is back
        for _ in range(5):
            assert http.get(f"/runs/{running}").json()["status"] == "running"
            assert http.get("/runs").status_code == 200
    for call in (
        lambda: http.post(f"/runs/{cancelled}/cancel"),
        lambda: http.post("/runs", json={"agent": "steady", "input": {"count": 1}}),
        lambda: http.post(f"/runs/{waiting}/approvals/apr_1", json={"decision": "approved"}),
        lambda: http.post(f"/runs/{running}/input", json={"text": "Hello?"}),
        lambda: writer.append(("custom.tick", {})),
        lambda: http.get(f"/runs/{done[0]}/events", headers={"Accept": "application/json"}),
    ):
        with _within(FEW_SECONDS):
            assert call().is_success
    with _within(FEW_SECONDS), http.stream("GET", f"/runs/{running}/events") as window:
        assert any("run.created" in line for line in window.iter_lines())
    posted = http.get("/runs?agent=steady&limit=1").json()["runs"][0]["run_id"]
    assert http.get("/readyz").json()["checks"] == {"postgres": True, "redis": False}
    go_on()
    gate.touch()
    assert ended(stack, running).attempt == 1
    assert ended(stack, cancelled, "cancelled").attempt == 1
    ended(stack, waiting)
    ended(stack, posted)
    assert writer.complete().json()["status"] == "completed"
    eventually(lambda: stack.http.get("/readyz").status_code == 200)
    for run_id in done:
        assert http.post(f"/runs/{run_id}/erase").status_code == 204


class TestTheBreaker:
    def test_after_one_timeout_nobody_else_waits_for_a_while(self, monkeypatch: pytest.MonkeyPatch) -> None:
        breaker = Breaker()
        _fails(breaker, redis.TimeoutError())
        assert breaker.is_open
        _fails(breaker, None)
        monkeypatch.setattr(module, "OUTAGE_SECONDS", 0.0)
        _fails(Breaker(), redis.TimeoutError())

    def test_then_one_caller_tries_and_the_others_go_on_without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "OUTAGE_SECONDS", 0.0)
        breaker = Breaker()
        _fails(breaker, TimeoutError())
        with breaker.asking():
            _fails(breaker, None)
        with breaker.asking():
            pass

    @pytest.mark.parametrize("error", [StoreUnavailable("Lost."), gevent.GreenletExit(), ValueError()])
    def test_who_tries_and_learns_nothing_leaves_the_try_to_the_next(
        self, error: BaseException, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "OUTAGE_SECONDS", 0.0)
        breaker = Breaker()
        _fails(breaker, TimeoutError())
        with pytest.raises(type(error)), breaker.asking():
            raise error
        with breaker.asking():
            _fails(breaker, None)

    def test_who_tries_and_learns_nothing_does_not_undo_what_another_has_met_meanwhile(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        breaker = Breaker()
        other = breaker.asking()
        other.__enter__()
        with monkeypatch.context() as patch:
            patch.setattr(module, "OUTAGE_SECONDS", 0.0)
            _fails(breaker, TimeoutError())
        with pytest.raises(gevent.GreenletExit), breaker.asking():
            _is_killed_after_the_timeout_of(other)
        assert breaker.is_open

    @pytest.mark.parametrize("error", [redis.ConnectionError(), redis.ResponseError(), ConnectionRefusedError()])
    def test_who_is_refused_at_once_opens_nothing(self, error: Exception) -> None:
        breaker = Breaker()
        _fails(breaker, error)
        assert not breaker.is_open


def _fails(breaker: Breaker, error: Exception | None) -> None:
    """Ask, and meet that error; None: the question is not even put."""
    with pytest.raises(StoreUnavailable):
        _ask(breaker, error)


def _ask(breaker: Breaker, error: Exception | None) -> None:
    with breaker.asking():
        assert error is not None
        raise error


def _is_killed_after_the_timeout_of(other: AbstractContextManager[None]) -> None:
    with pytest.raises(StoreUnavailable):
        other.__exit__(TimeoutError, TimeoutError(), None)
    raise gevent.GreenletExit
