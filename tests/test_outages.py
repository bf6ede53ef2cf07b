"""What runs stand on goes away and comes back: Redis, Postgres, the clock, their worker, one deploy after the other.

Most of the time here is spent waiting, so the scenarios play side by side, each on databases or servers of its own.
"""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg2
import pytest
from redis import Redis
from redis.exceptions import OutOfMemoryError

from app.dev.services import EmbeddedServices
from app.protocol.events import TERMINAL
from app.storage.run_store import RunRecord, migrate
from app.verbs.commands import Commands
from tests.conftest import StackMaker
from tests.harness import DEV, Process, Stack, eventually
from tests.stored import PATIENCE_SECONDS, begin, ended, events, has_status, payloads, reach, row

AWAY_SECONDS = 30
LEASE_AND_MORE = 8
"""Seconds after which a worker that is not seen to live is called lost."""
ROUTER_SECONDS = 28
"""A client, or the proxy before it, does not wait much longer for an answer."""
SILENCE_SECONDS = 5
"""Longest time without an event of a run that emits ten a second."""
DEPLOYS = 10
CROWD = 20
HOUR = 3_600


class Window:
    """A client that follows a run to its end, over as many connections as that takes."""

    def __init__(self, stack: Stack, run_id: str) -> None:
        self._url = f"{stack.url}/runs/{run_id}/events"
        self.lines: list[str] = []
        self.times: list[float] = []
        """When each line came, by the monotonic clock."""
        self._done = threading.Event()
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        while not self._done.is_set():
            with suppress(httpx.TransportError):
                self._connect()
            time.sleep(0.2)

    def _connect(self) -> None:
        query, headers = {"since_seq": len(self.lines)}, {"Accept": "application/x-ndjson"}
        with httpx.stream("GET", self._url, params=query, headers=headers, timeout=60) as answer:
            for line in answer.iter_lines() if answer.status_code == 200 else ():
                if not line or "seq" not in json.loads(line):
                    continue
                self.times.append(time.monotonic())
                self.lines.append(line)
                if json.loads(line)["type"] in TERMINAL:
                    self._done.set()

    def silence(self, begun: float, end: float) -> float:
        """The longest time without a line from begin to end, in seconds."""
        times = [begun, *(at for at in self.times if begun <= at <= end), end]
        return max(later - earlier for earlier, later in pairwise(times))

    def saw(self, stack: Stack, run_id: str) -> None:
        """It got the whole log, each event once, as it is in the archive."""
        assert self._done.wait(PATIENCE_SECONDS), f"{len(self.lines)} lines of {run_id}, and no end"
        assert self.lines == [event.text for event in events(stack, run_id)]


def _steady(stack: Stack, name: str) -> tuple[str, Path]:
    """A run that ticks ten times a second until its gate is touched, once it has."""
    gate = stack.folder / name
    run_id = begin(stack, "steady", count=10, interval=0.1, gate=str(gate))
    reach(stack, run_id, "custom.tick", times=3)
    return run_id, gate


def _tended(stack: Stack, name: str, **input: Any) -> tuple[str, Path]:
    """A run of recorded calls, each with a gate in the folder, once it has begun the first."""
    folder = stack.folder / name
    folder.mkdir()
    run_id = begin(stack, "tends", folder=str(folder), **input)
    reach(stack, run_id, "tool.started")
    return run_id, folder


def _open_gate(folder: Path, n: int) -> None:
    (folder / f"gate-{n}").touch()


def _calls(folder: Path) -> list[int]:
    """What has been done, in order."""
    return [int(line) for line in (folder / "calls").read_text().splitlines()]


def _approve(stack: Stack, run_id: str) -> None:
    (approval,) = row(stack, run_id).state["approvals"]
    assert Commands(stack.services).decide(DEV, run_id, approval["id"], "approved", None).decision == "approved"


def _undisturbed(run: RunRecord, stack: Stack) -> None:
    """It was executed by one worker, which was never called lost."""
    assert run.attempt == 1
    assert payloads(stack, run.id, "run.step") == []


def _post(stack: Stack) -> httpx.Response:
    return stack.http.post("/runs", json={"agent": "steady", "input": {"count": 10, "interval": 0.01}})


def _started(answer: httpx.Response) -> str:
    assert answer.status_code == 202, answer.text
    run_id: str = answer.json()["run_id"]
    return run_id


# Redis.


def redis_comes_back_with_its_data(servers: EmbeddedServices, stack: Stack) -> None:
    _redis_is_away(servers, stack, "kept", lambda: None)


def redis_comes_back_without_its_data(servers: EmbeddedServices, stack: Stack) -> None:
    def lose() -> None:
        for path in (servers.data / "redis").glob("appendonly*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    _redis_is_away(servers, stack, "lost", lose)


def _redis_is_away(servers: EmbeddedServices, stack: Stack, name: str, meanwhile: Callable[[], None]) -> None:
    done_id = begin(stack, "steady", count=10, interval=0.01)
    ended(stack, done_id)
    waiting_id = begin(stack, "waits_for", on="approval")
    asking_id = begin(stack, "waits_for", on="approval")
    running_id, gate = _steady(stack, name)
    windows = {run_id: Window(stack, run_id) for run_id in (done_id, waiting_id, running_id)}
    for run_id in (waiting_id, asking_id):
        has_status(stack, run_id, "waiting")
    servers.kill("redis")
    meanwhile()
    _served_from_postgres(stack, done_id, waiting_id)
    posted_id = _started(_post(stack))
    _approve(stack, waiting_id)
    servers.start("redis")
    gate.touch()
    for run_id in (running_id, posted_id):
        _undisturbed(ended(stack, run_id), stack)
    assert ended(stack, waiting_id).output == {"decision": "approved"}
    ended(stack, done_id)
    for run_id, window in windows.items():
        window.saw(stack, run_id)
    _approve(stack, asking_id)  # what nobody writes is in Redis again at the latest when somebody does
    ended(stack, asking_id)


def _served_from_postgres(stack: Stack, done_id: str, waiting_id: str) -> None:
    ready = stack.http.get("/readyz").json()
    assert (ready["status"], ready["checks"]) == ("degraded", {"postgres": True, "redis": False})
    for run_id in (done_id, waiting_id):
        assert stack.read(run_id)["state"]["last_seq"] == len(events(stack, run_id))
        assert [event["seq"] for event in stack.events(run_id)] == [event.seq for event in events(stack, run_id)]
    assert list(stack.follow(done_id)) == [event.text for event in events(stack, done_id)]


def redis_is_out_of_memory(servers: EmbeddedServices, stack: Stack) -> None:
    running_id, gate = _steady(stack, "memory")
    tended_id, folder = _tended(stack, "tended", count=2)
    windows = {run_id: Window(stack, run_id) for run_id in (running_id, tended_id)}
    with Redis.from_url(servers.redis_url) as redis, _no_memory(redis):
        with pytest.raises(OutOfMemoryError):
            redis.set("more", "of it")
        _open_gate(folder, 0)
        reach(stack, tended_id, "tool.completed")  # a fact is one once it is in Postgres
        posted_id = _started(_post(stack))
        before = len(payloads(stack, running_id, "custom.tick"))
        reach(stack, running_id, "custom.tick", times=before + 10)
        assert stack.read(running_id)["status"] == "running"
    _open_gate(folder, 1)
    gate.touch()
    for run_id in (running_id, tended_id, posted_id):
        _undisturbed(ended(stack, run_id), stack)
    assert _calls(folder) == [0, 1]
    for run_id, window in windows.items():
        window.saw(stack, run_id)


def a_redis_without_memory_is_not_ready(servers: EmbeddedServices, stack: Stack) -> None:
    with Redis.from_url(servers.redis_url) as redis:
        assert stack.http.get("/readyz").status_code == 200
        with _no_memory(redis):
            answer = stack.http.get("/readyz")
            assert (answer.status_code, answer.json()["status"]) == (503, "degraded")
        eventually(lambda: stack.http.get("/readyz").status_code == 200)


@contextmanager
def _no_memory(redis: "Redis[bytes]") -> Iterator[None]:
    redis.config_set("maxmemory", "1mb")
    try:
        yield
    finally:
        redis.config_set("maxmemory", "0")


# Postgres.


@dataclass
class Away:
    """What was seen of an outage of Postgres, in seconds."""

    silence: float
    """The longest without an event, in any window on a run that emits."""
    refused_after: list[float]
    """How long each POST had to wait for its 503."""


def postgres_stands_still(servers: EmbeddedServices, stack: Stack) -> Away:
    master = psutil.Process(servers.pid("postgres"))

    @contextmanager
    def stopped() -> Iterator[None]:
        master.suspend()
        frozen = [master, *master.children(recursive=True)]
        for process in frozen:
            process.suspend()
        try:
            yield
        finally:
            for process in reversed(frozen):
                process.resume()

    return _postgres_is_away(stack, "frozen", stopped())


def postgres_is_stopped_and_started(servers: EmbeddedServices, stack: Stack) -> Away:
    @contextmanager
    def stopped() -> Iterator[None]:
        servers.kill("postgres")
        try:
            yield
        finally:
            servers.start("postgres")

    return _postgres_is_away(stack, "stopped", stopped())


def _postgres_is_away(stack: Stack, name: str, away: Any) -> Away:
    runs = dict(_steady(stack, f"{name}-{n}") for n in range(4))
    windows = {run_id: Window(stack, run_id) for run_id in runs}
    tended_id, folder = _tended(stack, name, count=2)
    window = Window(stack, tended_id)
    eventually(lambda: all(w.lines for w in (*windows.values(), window)))
    with ThreadPoolExecutor(2) as pool:
        with away:
            begun = time.monotonic()
            _open_gate(folder, 0)
            refusals = [pool.submit(_refusal, stack)]
            time.sleep(AWAY_SECONDS / 3)
            refusals.append(pool.submit(_refusal, stack))
            time.sleep(AWAY_SECONDS * 2 / 3)
            end = time.monotonic()
            assert _calls(folder) == [0], "the call under way was made"
            assert not [line for line in window.lines if '"tool.completed"' in line], "and is no fact yet"
        seen = Away(max(w.silence(begun, end) for w in windows.values()), [refusal.result() for refusal in refusals])
    print(f"{name}: {seen}")
    _open_gate(folder, 1)
    for gate in runs.values():
        gate.touch()
    for run_id in (*runs, tended_id):
        _undisturbed(ended(stack, run_id), stack)
    for run_id, followed in (*windows.items(), (tended_id, window)):
        followed.saw(stack, run_id)
    assert _calls(folder) == [0, 1]
    _undisturbed(ended(stack, _started(_post(stack))), stack)
    return seen


def _refusal(stack: Stack) -> float:
    """Seconds until a start was refused as it must be; for ever where it was not."""
    begun = time.monotonic()
    answer = httpx.post(f"{stack.url}/runs", json={"agent": "emit", "input": {"count": 1}}, timeout=120)
    if answer.status_code != 503:
        return float("inf")
    assert int(answer.headers["Retry-After"]) >= 1
    return time.monotonic() - begun


# The clock.

SITECUSTOMIZE = '''
"""The clock of this process is wrong by as many seconds as the file says."""
import datetime
import os
import time

real_time, real_datetime = time.time, datetime.datetime


def shifted_time():
    with open(os.environ["TEST_CLOCK"]) as file:
        return real_time() + float(file.read())


class Kind(type):
    def __instancecheck__(cls, value):
        return isinstance(value, real_datetime)

    def __subclasscheck__(cls, other):
        return issubclass(other, real_datetime)


class Shifted(real_datetime, metaclass=Kind):
    @classmethod
    def now(cls, tz=None):
        return real_datetime.fromtimestamp(shifted_time(), tz)

    @classmethod
    def utcnow(cls):
        return cls.now(datetime.UTC).replace(tzinfo=None)


time.time, datetime.datetime = shifted_time, Shifted
'''


class Clock:
    """What the workers of a stack take for the time; everybody else's is right."""

    def __init__(self, stack: Stack, name: str) -> None:
        folder = stack.folder / name
        folder.mkdir()
        self._file = folder / "clock"
        self.put(0)
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        stack.env["PYTHONPATH"] = os.pathsep.join([str(folder), stack.env["PYTHONPATH"]])
        stack.env["TEST_CLOCK"] = str(self._file)

    def put(self, seconds: float) -> None:
        """Make it wrong by so much, at once."""
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.rename(self._file)


def clocks_jump(make: StackMaker) -> None:
    """One worker's forth, the other's back, while they execute runs."""
    stack = make(DB_POOL_SIZE="2")
    ahead = Clock(stack, "ahead")
    stack.start_worker()
    behind = Clock(stack, "behind")
    stack.start_worker()
    runs = dict(_steady(stack, f"jumping-{n}") for n in range(4))
    limited_id = begin(stack, "is_late", way="branch", timeout_s=LEASE_AND_MORE + 52)
    ahead.put(HOUR)
    behind.put(-HOUR)
    time.sleep(LEASE_AND_MORE)
    for run_id in (*runs, limited_id):
        assert row(stack, run_id).status == "running"
    for gate in runs.values():
        gate.touch()
    for run_id in runs:
        _undisturbed(ended(stack, run_id), stack)


def a_clock_that_is_ahead(make: StackMaker) -> None:
    _waits_last_as_long_as_they_should(make, HOUR)


def a_clock_that_is_behind(make: StackMaker) -> None:
    _waits_last_as_long_as_they_should(make, -HOUR)


def _waits_last_as_long_as_they_should(make: StackMaker, wrong: float) -> None:
    stack = make(DB_POOL_SIZE="2")
    Clock(stack, "wrong").put(wrong)
    stack.start_worker()
    calls = stack.folder / "calls"
    sleeping_id = begin(stack, "waits_for", on="time", seconds=90, calls=str(calls))
    asking_id = begin(stack, "waits_for", on="approval", expires_in=4)
    expired = ended(stack, asking_id)
    assert expired.output == {"decision": "expired"}
    asked = _ask(
        stack, "SELECT extract(epoch FROM decided_at - created_at) FROM approvals WHERE run_id = %s", asking_id
    )
    assert 3 < asked < 15
    has_status(stack, sleeping_id, "waiting")
    left = _ask(stack, "SELECT extract(epoch FROM wake_at - started_at) FROM runs WHERE id = %s", sleeping_id)
    assert 85 < left < 95
    assert len(calls.read_text().splitlines()) == 1, "nobody has woken it in vain"


def _ask(stack: Stack, sql: str, *values: Any) -> float:
    with closing(psycopg2.connect(stack.env["DATABASE_URL"])) as connection:
        cursor = connection.cursor()
        cursor.execute(sql, values)
        return float(cursor.fetchone()[0])


# Two live writers of one run.


def two_workers_execute_one_run(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="2", DRAIN_SECONDS="60")
    loser = stack.start_worker()
    writing, calling = stack.folder / "writing", stack.folder / "calling"
    writing_id = begin(stack, "says_who", way="events", gate=str(writing))
    calling_id = begin(stack, "says_who", way="tool", gate=str(calling))
    reach(stack, writing_id, "tool.completed", times=20)
    reach(stack, calling_id, "tool.started")
    loser.send(signal.SIGTERM)  # it takes no more runs, and goes on with these
    eventually(lambda: " drains for up to 60 s" in loser.log.read_text(), PATIENCE_SECONDS, "draining")
    winner = stack.start_worker()
    written = len(payloads(stack, writing_id, "tool.completed"))
    reach(stack, writing_id, "tool.completed", times=written + 20)
    for run_id in (writing_id, calling_id):
        run = row(stack, run_id)
        assert stack.services.store.release(run_id, run.epoch, "worker_lost")
        stack.services.queue.enqueue(run_id, run.epoch, run.queue)
    for gate in (writing, calling):
        _executed_by(gate, loser, winner)
    _refused(stack, calling_id, calling, loser, winner)
    _one_after_the_other(stack, writing_id, writing, loser, winner)


def _executed_by(gate: Path, loser: Process, winner: Process) -> None:
    pids = Path(f"{gate}.pids")
    wanted = [loser.pid, winner.pid]
    eventually(lambda: [int(p) for p in pids.read_text().split()] == wanted, PATIENCE_SECONDS, "the second writer")


def _refused(stack: Stack, run_id: str, gate: Path, loser: Process, winner: Process) -> None:
    """The loser is in the middle of a call. Its result comes first, and is not taken."""
    Path(f"{gate}.{loser.pid}").touch()
    gone = f"{run_id} goes on elsewhere"
    eventually(lambda: gone in loser.log.read_text(), PATIENCE_SECONDS, "the loser's giving up")
    assert row(stack, run_id).status == "running"
    assert payloads(stack, run_id, "tool.completed") == []
    Path(f"{gate}.{winner.pid}").touch()
    run = ended(stack, run_id)
    assert run.output["pid"] == winner.pid
    assert [payload["preview"] for payload in payloads(stack, run_id, "tool.completed")] == [winner.pid]
    assert len(payloads(stack, run_id, "tool.started")) == 1


def _one_after_the_other(stack: Stack, run_id: str, gate: Path, loser: Process, winner: Process) -> None:
    by_winner = lambda: winner.pid in _writers(stack, run_id)  # noqa: E731
    eventually(by_winner, PATIENCE_SECONDS, "an event of the winner's own")
    gate.touch()
    run = ended(stack, run_id)
    assert run.output == {"pid": winner.pid}
    archived = events(stack, run_id)
    (takeover,) = [event.seq for event in archived if event.type == "run.step"]
    for event in archived:
        if event.type == "custom.pid":
            assert event.envelope()["payload"]["pid"] == (loser if event.seq < takeover else winner).pid


def _writers(stack: Stack, run_id: str) -> set[int]:
    return {payload["pid"] for payload in payloads(stack, run_id, "custom.pid")}


# Deploys.


def ten_deploys_in_a_row(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="2", DRAIN_SECONDS="0")
    worker = stack.start_worker()
    asking_id, asking = _tended(stack, "asking", count=1, ask=True)
    _open_gate(asking, 0)
    has_status(stack, asking_id, "waiting")
    busy_id, busy = _tended(stack, "busy", count=DEPLOYS + 1)
    for n in range(DEPLOYS):
        _open_gate(busy, n)
        reach(stack, busy_id, "tool.started", times=n + 2)  # the next call is under way
        assert worker.stop() == 0
        assert row(stack, busy_id).status == "pending"
        worker = stack.start_worker()
        has_status(stack, busy_id, "running")
        _still_open(stack, asking_id)
    _open_gate(busy, DEPLOYS)
    run = ended(stack, busy_id)
    assert run.attempt == 1
    assert payloads(stack, busy_id, "run.step") == [{"attempt": 1, "reason": "deploy", "restart": False}] * DEPLOYS
    assert _calls(busy) == list(range(DEPLOYS + 1))
    assert len(payloads(stack, busy_id, "custom.begun")) == 1
    _approve(stack, asking_id)
    assert ended(stack, asking_id).output == {"decision": "approved"}
    assert (row(stack, asking_id).attempt, _calls(asking)) == (1, [0])


def _still_open(stack: Stack, run_id: str) -> None:
    run = row(stack, run_id)
    assert (run.status, run.attempt) == ("waiting", 1)
    assert stack.services.waits.page(DEV, "open", run_id, None, 2)[0][0].decision is None


# What is sent while a worker dies.


def a_worker_is_killed_while_it_is_spoken_to(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="3")
    killed = stack.start_worker()
    stack.start_worker()
    hearing = [begin(stack, "hears", wait=bool(n % 2)) for n in range(CROWD - CROWD // 4)]
    asking = [begin(stack, "asks_then_hears", wait=bool(n % 2)) for n in range(CROWD // 4)]
    for run_id in asking:
        has_status(stack, run_id, "waiting")
    for run_id in hearing[1::2]:
        has_status(stack, run_id, "waiting")
    said = _say(stack, hearing + asking, [f"before {n}" for n in range(3)])
    with ThreadPoolExecutor(1) as pool:
        speaking = pool.submit(_say, stack, hearing + asking, [f"during {n}" for n in range(6)])
        time.sleep(0.3)  # somewhere in the middle of that
        killed.kill()
        said += speaking.result()
    for run_id in asking:
        _approve(stack, run_id)
    said += _say(stack, hearing + asking, ["after", "end"])
    for run_id in hearing + asking:
        run = ended(stack, run_id)
        assert run.output["texts"] == said
        assert [payload["text"] for payload in payloads(stack, run_id, "input.received")] == said
        assert len(payloads(stack, run_id, "approval.resolved")) == len(payloads(stack, run_id, "approval.required"))
    print("lost their worker:", sum(row(stack, run_id).losses > 0 for run_id in hearing + asking))


def _say(stack: Stack, run_ids: list[str], texts: list[str]) -> list[str]:
    commands = Commands(stack.services)
    for text in texts:
        for run_id in run_ids:
            commands.send_input(DEV, run_id, text=text, idempotency_key=None)
    return texts


def an_input_comes_while_another_branch_is_busy(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="2")
    stack.start_worker()
    gate = stack.folder / "gate"
    run_id = begin(stack, "hears_beside", gate=str(gate))
    reach(stack, run_id, "tool.started")  # by now the other branch waits for an input
    _say(stack, [run_id], ["here"])
    reach(stack, run_id, "input.received")
    gate.touch()
    assert ended(stack, run_id).output == {"texts": ["here"]}


# The play.

Outage = Callable[[EmbeddedServices, Stack], Away]
Played = dict[Callable[..., Any], "Future[Any]"]
WITH_REDIS = [
    redis_comes_back_with_its_data,
    redis_comes_back_without_its_data,
    redis_is_out_of_memory,
    a_redis_without_memory_is_not_ready,
]
WITH_POSTGRES = [postgres_stands_still, postgres_is_stopped_and_started]
APART = [
    clocks_jump,
    a_clock_that_is_ahead,
    a_clock_that_is_behind,
    two_workers_execute_one_run,
    ten_deploys_in_a_row,
    a_worker_is_killed_while_it_is_spoken_to,
    an_input_comes_while_another_branch_is_busy,
]


class Installation:
    """Servers, a web process and workers of their own, from the first scenario on that is played with them."""

    def __init__(self, factory: pytest.TempPathFactory, workers: int) -> None:
        self._folders = factory.mktemp("servers"), factory.mktemp("stack")
        self._workers = workers
        self._opened = ExitStack()
        self._parts: tuple[EmbeddedServices, Stack] | None = None

    def play(self, scenario: Callable[[EmbeddedServices, Stack], Any]) -> Any:
        """Play a scenario; never two at a time."""
        if self._parts is None:
            self._parts = self._open()
        return scenario(*self._parts)

    def _open(self) -> tuple[EmbeddedServices, Stack]:
        servers = self._opened.enter_context(EmbeddedServices(self._folders[0]))
        urls = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
        stack = self._opened.enter_context(Stack(urls, self._folders[1]))
        migrate(servers.database_url)
        stack.start_web()
        for _ in range(self._workers):
            stack.start_worker()
        return servers, stack

    def close(self) -> None:
        """Stop all of it."""
        self._opened.close()


@pytest.fixture(scope="module")
def played(module_stack: StackMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with (
        closing(Installation(tmp_path_factory, workers=1)) as redis,
        closing(Installation(tmp_path_factory, workers=2)) as postgres,
        ThreadPoolExecutor(1) as with_redis,
        ThreadPoolExecutor(1) as with_postgres,
        ThreadPoolExecutor(len(APART)) as side_by_side,
    ):
        yield {
            **{scenario: with_postgres.submit(postgres.play, scenario) for scenario in WITH_POSTGRES},
            **{scenario: with_redis.submit(redis.play, scenario) for scenario in WITH_REDIS},
            **{scenario: side_by_side.submit(scenario, module_stack) for scenario in APART},
        }


def test_runs_go_on_after_redis_was_away_and_the_api_serves_meanwhile(played: Played) -> None:
    played[redis_comes_back_with_its_data].result()


def test_runs_go_on_after_redis_has_lost_everything_and_its_logs_are_filled_again(played: Played) -> None:
    played[redis_comes_back_without_its_data].result()


def test_nothing_is_lost_while_redis_is_out_of_memory(played: Played) -> None:
    played[redis_is_out_of_memory].result()


def test_a_redis_without_memory_is_not_ready(played: Played) -> None:
    played[a_redis_without_memory_is_not_ready].result()


def test_runs_go_on_while_postgres_stands_still_and_nobody_is_called_lost(played: Played) -> None:
    played[postgres_stands_still].result()


def test_runs_go_on_while_postgres_is_stopped_and_nobody_is_called_lost(played: Played) -> None:
    played[postgres_is_stopped_and_started].result()


@pytest.mark.parametrize("outage", WITH_POSTGRES, ids=lambda outage: outage.__name__)
def test_windows_never_fall_silent_while_postgres_is_away(played: Played, outage: Outage) -> None:
    assert played[outage].result().silence < SILENCE_SECONDS


@pytest.mark.parametrize("outage", WITH_POSTGRES, ids=lambda outage: outage.__name__)
def test_a_start_is_refused_in_time_while_postgres_is_away(played: Played, outage: Outage) -> None:
    assert max(played[outage].result().refused_after) < ROUTER_SECONDS


def test_a_clock_that_jumps_costs_no_run_its_worker(played: Played) -> None:
    played[clocks_jump].result()


def test_waits_last_as_long_as_they_should_by_a_clock_that_is_ahead(played: Played) -> None:
    played[a_clock_that_is_ahead].result()


def test_waits_last_as_long_as_they_should_by_a_clock_that_is_behind(played: Played) -> None:
    played[a_clock_that_is_behind].result()


def test_of_two_workers_that_execute_one_run_only_the_owner_writes(played: Played) -> None:
    played[two_workers_execute_one_run].result()


def test_ten_deploys_in_a_row_cost_no_attempt_and_repeat_no_recorded_call(played: Played) -> None:
    played[ten_deploys_in_a_row].result()


def test_what_is_sent_while_a_worker_dies_arrives_once_and_in_order(played: Played) -> None:
    played[a_worker_is_killed_while_it_is_spoken_to].result()


def test_an_input_that_comes_while_another_branch_is_busy_is_not_waited_for(played: Played) -> None:
    played[an_input_comes_while_another_branch_is_busy].result()
