"""Clients that stall, vanish and resume while logs grow, are trimmed and end, and servers are killed under them.

Each example is two runs, up to MAX_FOLLOWERS clients (`tests.follower` has what each must and must not get), and
random steps against a real web process on a PostgreSQL and a Redis of their own. At its end every client must have
its run's terminal event. RUNTAIL_FUZZ_EXAMPLES=200 runs so many examples of each machine, with another seed each time;
RUNTAIL_FUZZ_SEED=n repeats one. A failure is not shrunk: a step takes too long.
"""

import os
import random
import select
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from app.dev.services import EmbeddedServices
from tests.conftest import own_databases
from tests.follower import LINES, NAMED, UNNAMED, Cap, Connection, Follower, Form
from tests.harness import Process, Stack
from tests.log_author import LogAuthor
from tests.socket_follower import SOCKET, SocketFollower

EXAMPLES = int(os.environ.get("RUNTAIL_FUZZ_EXAMPLES") or 0)
SEED = int(os.environ.get("RUNTAIL_FUZZ_SEED") or 0) or (random.randrange(1, 1 << 32) if EXAMPLES else 1)
USUAL_EXAMPLES, STEPS = 3, 30
MAX_FOLLOWERS = 8
MAX_BYTES = 4_000_000
"""Of one run's events; past it they are small."""
LAG_SECONDS = 2
PAUSE_SECONDS = 1.0
"""A client that was not read from for so long may have been given up."""
PATIENCE_SECONDS = 10.0
"""For what is to come within seconds. Below IDLE_SECONDS of the hub, which would cover for what was forgotten."""
SETTINGS = {
    "STREAM_HEARTBEAT_SECONDS": "1",
    "STREAM_MAX_LAG_SECONDS": str(LAG_SECONDS),
    "STREAM_MAX_PER_USER": "0",
    "STREAM_MAX_PER_ADDRESS": "0",
}

RUNS = st.integers(0, 1)
PICKS = st.integers(0, MAX_FOLLOWERS - 1)
SHARES = st.integers(0, 20).map(lambda n: n / 20)
COUNTS = st.sampled_from([1, 2, 5, 40, 150, 300])
SMALL = st.sampled_from(["", "é\r\n\u2028🚚", "🚚" * 250])
LARGE = "🚚" * 25_000
Batch = tuple[int, str]
"""(events, text of each)."""
BATCHES: st.SearchStrategy[Batch] = st.one_of(st.tuples(COUNTS, SMALL), st.tuples(st.integers(2, 5), st.just(LARGE)))
Client = tuple[int, float | None, Form, str, int | None]
"""(run; cursor as a share of its head, None: `latest`; form; version of HTTP; receive buffer)."""
CLIENTS: st.SearchStrategy[Client] = st.tuples(
    RUNS,
    st.one_of(SHARES, SHARES, st.none()),
    st.sampled_from([NAMED, UNNAMED, LINES, SOCKET, SOCKET]),
    st.sampled_from(["1.1", "1.1", "1.0"]),
    st.sampled_from([None, None, 2_048, 8_192]),
)


class World:
    """What the examples of a machine share: the servers, a web process, and what was seen of it."""

    def __init__(self, servers: EmbeddedServices, stack: Stack, cap: Cap) -> None:
        self.servers = servers
        self.stack = stack
        self.cap = cap
        self.redis_is_up = True
        self.web_is_up = True
        self.seen: Counter[str] = Counter()
        self.failures: list[str] = []
        """Hypothesis repeats what has failed, and then says no more than that it went another way."""
        stack.http.headers["Connection"] = "close"  # gunicorn waits for connections that are kept alive
        self.processes: list[Process] = []
        self.start_web()

    def start_web(self) -> None:
        """Start it and wait until it answers."""
        self.processes.append(self.stack.start_web("/healthz"))
        self.web_is_up = True

    def start_redis(self) -> None:
        """Start it. What it has confirmed, it will not lose, or a gap would be no mistake."""
        self.servers.start("redis")
        self.redis_is_up = True
        make_durable(self.servers)

    def workers(self) -> set[int]:
        """Pids of the processes that serve."""
        pid = self.stack.web_pid
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def answers(self) -> bool:
        """The web process serves requests."""
        try:
            return httpx.get(f"{self.stack.url}/healthz", timeout=1).status_code == 200
        except httpx.TransportError:
            return False

    def complaints(self) -> str:
        """What the web process has logged of errors that it survived."""
        return "".join(process.log.read_text() for process in self.processes)


def make_durable(servers: EmbeddedServices) -> None:
    """Have Redis confirm only what is on disk."""
    with Redis.from_url(servers.redis_url) as redis:
        redis.config_set("appendfsync", "always")


class Windows(RuleBasedStateMachine):
    """One example. The model is what was appended; every follower is measured by it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.logs = [LogAuthor(world.stack), LogAuthor(world.stack)]
        self.sizes = [0, 0]
        self.committed: set[int] = set()
        self.published: set[int] = set()
        self.followers: list[Follower] = []
        self.worker_kills = self.terminations = self.waits = 0
        self.steps = 0
        self.read_at = time.monotonic()
        self.sound = True
        """No follower has complained: only then is the example brought to its end."""

    # Clients.

    @initialize(batches=st.tuples(BATCHES, BATCHES), clients=st.lists(CLIENTS, min_size=3, max_size=5))
    def begin(self, batches: Sequence[Batch], clients: Sequence[Client]) -> None:
        for run, batch in enumerate(batches):
            self.write(run, *batch)
        for client in clients:
            self.join(client)

    @precondition(lambda self: len(self.followers) < MAX_FOLLOWERS)
    @rule(client=CLIENTS)
    def join(self, client: Client) -> None:
        run, share, *how = client
        log = self.logs[run]
        cursor = None if share is None else round(log.head * share)
        kind = SocketFollower if SOCKET in how else Follower
        self.followers.append(kind(self.world.stack.port, log, cursor, self.world.cap, *how))

    @precondition(lambda self: self.followers)
    @rule(pick=PICKS, batch=BATCHES)
    def stall(self, pick: int, batch: Batch) -> None:
        follower = self.picked(pick)
        follower.reading = False
        self.write(self.logs.index(follower.log), *batch)

    @precondition(lambda self: self.followers)
    @rule(pick=PICKS)
    def read_on(self, pick: int) -> None:
        follower = self.picked(pick)
        follower.reading, follower.away = True, False

    @precondition(lambda self: self.followers)
    @rule(pick=PICKS, reset=st.booleans(), away=st.booleans())
    def drop(self, pick: int, reset: bool, away: bool) -> None:
        follower = self.picked(pick)
        follower.disconnect(reset)
        follower.reading, follower.away = True, away

    def picked(self, pick: int) -> Follower:
        return self.followers[pick % len(self.followers)]

    # The log.

    @rule(run=RUNS, batches=st.lists(BATCHES, min_size=1, max_size=4))
    def append(self, run: int, batches: list[Batch]) -> None:
        for count, text in batches:
            self.write(run, count, text)

    @precondition(lambda self: self.world.redis_is_up)
    @rule(run=RUNS, count=st.integers(1, 20), text=SMALL)
    def append_with_a_lost_ring(self, run: int, count: int, text: str) -> None:
        if run not in self.committed:
            self.logs[run].append_silently(count, text)

    @precondition(lambda self: self.world.redis_is_up)
    @rule(run=RUNS, count=st.integers(1, 20), share=SHARES)
    def trim_what_the_hub_has_not_seen(self, run: int, count: int, share: float) -> None:
        log = self.logs[run]
        if run not in self.committed:
            log.append_silently(count)
            log.archive()
            log.trim(log.head - round(share * count))
            log.append()

    @rule(run=RUNS, trim_to=st.one_of(SHARES, st.none()))
    def archive(self, run: int, trim_to: float | None) -> None:
        log = self.logs[run]
        log.archive()
        if trim_to is not None and self.world.redis_is_up and run not in self.committed:
            log.trim(round(log.head * trim_to))

    @precondition(lambda self: self.world.redis_is_up and self.steps > STEPS // 2)
    @rule(run=RUNS, publish=st.booleans(), unheard=st.integers(0, 3))
    def end(self, run: int, publish: bool, unheard: int) -> None:
        if run not in self.committed:  # the hub meets the end in the middle of a chunk that no socket takes at once
            self.logs[run].append_silently(unheard, LARGE)
        self.commit_end(run)
        if publish:
            self.publish_end(run)

    def write(self, run: int, count: int, text: str) -> None:
        log = self.logs[run]
        if run in self.committed:
            return
        text = text if self.sizes[run] < MAX_BYTES else ""
        self.sizes[run] += count * len(text.encode())
        if self.world.redis_is_up:
            log.append(count, text)
        else:  # its owner goes on archiving
            log.make(count, text)
            log.archive()

    def commit_end(self, run: int) -> None:
        if run not in self.committed:
            self.committed.add(run)
            self.logs[run].commit_end()

    def publish_end(self, run: int) -> None:
        if run not in self.published:
            self.published.add(run)
            self.logs[run].publish_end()

    # Servers.

    @precondition(lambda self: self.world.redis_is_up)
    @rule(away=st.booleans())
    def kill_redis(self, away: bool) -> None:
        self.world.servers.kill("redis")
        self.world.redis_is_up = False
        if not away:
            self.world.start_redis()
            return
        for log in self.logs:  # what its owner does within a second
            log.archive()

    @precondition(lambda self: not self.world.redis_is_up)
    @rule()
    def start_redis(self) -> None:
        self.world.start_redis()
        for run, log in enumerate(self.logs):
            self.world.stack.services.ownership.sync(log.run_id, 1 if run in self.committed else 0)

    @precondition(lambda self: self.worker_kills < 1)
    @rule(batch=BATCHES)
    def kill_worker(self, batch: Batch) -> None:
        """kill -9 of the process that serves; gunicorn's master starts another, and keeps who knocks waiting."""
        self.worker_kills += 1
        before = self.world.workers()
        for connection in self.connections():
            connection.may_break = True
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        self.write(0, *batch)
        self.until(lambda: self.world.workers() - before and self.world.answers(), "another process")

    @precondition(lambda self: self.terminations < 1)
    @rule(batch=BATCHES)
    def terminate_web(self, batch: Batch) -> None:
        """SIGTERM: every client that reads is told to come back, and gets an orderly end; then start it again."""
        self.terminations += 1
        self.world.web_is_up = False
        for connection in self.connections():
            connection.draining = True
        process = self.world.processes[-1]
        process.send(signal.SIGTERM)
        self.until(lambda: process.popen.poll() is not None and not self.ready(0), "the end of the web process")
        for connection in self.connections():  # only of those that do not read
            connection.may_break = True
        self.write(0, *batch)
        self.world.start_web()

    # Waiting.

    @precondition(lambda self: self.followers)
    @rule()
    def settle(self) -> None:
        """Everybody who reads gets everything, also without another ring."""
        self.until(lambda: all(map(self.is_level, self.followers)), "everything")

    @precondition(lambda self: self.followers and self.waits < 1)
    @rule(pick=PICKS, times=st.sampled_from([1, 1, 1, 2]))
    def let_time_pass(self, pick: int, times: int) -> None:
        """Until this client is told so: by heartbeats, or by rotations."""
        self.waits += 1
        follower = self.picked(pick)
        follower.reading, follower.away = True, False
        before = ticks(follower)
        self.until(lambda: follower.complete or ticks(follower) >= before + times, "a sign of life")

    def is_level(self, follower: Follower) -> bool:
        run = self.logs.index(follower.log)
        visible = follower.log.head - (run in self.committed and run not in self.published)
        has_all = (follower.cursor or 0) >= visible and not follower.owed
        return not follower.reading or follower.away or has_all

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Read until that is so."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            self.check(lambda: self.in_time(deadline, what))
            self.pump(0.02)

    def in_time(self, deadline: float, what: str) -> None:
        lagging = [follower for follower in self.followers if not self.is_level(follower)]
        assert time.monotonic() < deadline, f"{what} did not come in time: {lagging or self.followers}"

    def pump(self, seconds: float) -> bool:
        """Let everybody resume who can, and read once; whether there was something within so many seconds."""
        if time.monotonic() - self.read_at > PAUSE_SECONDS:
            for connection in self.connections():
                connection.may_break = True
        if self.world.web_is_up:
            for follower in self.followers:
                if not (follower.connection or follower.away or follower.finished):
                    follower.connect()
        ready = self.ready(seconds)
        for follower in ready:
            self.check(follower.read)
        self.read_at = time.monotonic()
        return bool(ready)

    def check(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            self.sound = False
            self.world.failures.append(traceback.format_exc())
            raise

    def ready(self, seconds: float) -> list[Follower]:
        """Those that read, and have something to read within so many seconds."""
        return select.select([f for f in self.followers if f.connection and f.reading], [], [], seconds)[0]

    def connections(self) -> list[Connection]:
        return [follower.connection for follower in self.followers if follower.connection]

    @invariant()
    def what_has_arrived_is_right(self) -> None:
        self.steps += 1
        for follower in self.followers:
            if follower.connection and not follower.reading:
                follower.connection.may_break = True
        for _ in range(20):
            if not self.pump(0):
                return

    # The end.

    def teardown(self) -> None:
        try:
            if self.sound:
                self.bring_to_its_end()
        finally:
            self.count()
            for follower in self.followers:
                follower.disconnect()
            if not self.world.redis_is_up:
                self.world.start_redis()
            if not self.world.web_is_up:
                self.world.start_web()

    def bring_to_its_end(self) -> None:
        """Whatever has happened: everybody who reads gets the terminal event, and no more."""
        if not self.world.redis_is_up:
            self.start_redis()
        for follower in self.followers:
            follower.reading, follower.away = True, False
        self.until(lambda: all(map(self.is_level, self.followers)), "everything so far")
        for run in range(len(self.logs)):
            self.trim_what_the_hub_has_not_seen(run, count=5, share=0.5)
            self.commit_end(run)
            self.publish_end(run)
        self.until(lambda: all(f.finished for f in self.followers), "the end of every client")

    def count(self) -> None:
        seen = self.world.seen
        seen["examples"] += 1
        seen["steps"] += self.steps
        seen["events appended"] += sum(log.head for log in self.logs)
        seen["clients"] += len(self.followers)
        sockets = [follower for follower in self.followers if isinstance(follower, SocketFollower)]
        seen["clients with WebSockets"] += len(sockets)
        seen["answers"] += sum(follower.answers for follower in sockets)
        for name in ("connections", "delivered", "snapshots", "rotations", "heartbeats", "broken"):
            seen[name] += sum(getattr(follower, name) for follower in self.followers)


def ticks(follower: Follower) -> int:
    """How often it was told that time passes."""
    return follower.heartbeats + follower.rotations


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServices]:
    """Servers that may be killed."""
    with EmbeddedServices(tmp_path_factory.mktemp("servers")) as servers:
        make_durable(servers)
        yield servers


@pytest.mark.timeout(120 + 30 * EXAMPLES)
@pytest.mark.parametrize(
    ("seconds", "cap"),
    [(0, Cap()), (1, Cap()), (2, Cap(events=100, size=200_000))],
    ids=["windows stay open", "windows are rotated", "replay is capped"],
)
def test_every_client_gets_every_event_once_whatever_happens(
    servers: EmbeddedServices, tmp_path: Path, seconds: int, cap: Cap
) -> None:
    limits = {
        "STREAM_MAX_SECONDS": str(seconds),
        "REPLAY_MAX_EVENTS": str(cap.events),
        "REPLAY_MAX_BYTES": str(cap.size),
    }
    urls = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
    start = SEED + 100 * seconds
    with own_databases(urls) as own, Stack({**own, **SETTINGS, **limits}, tmp_path) as stack:
        world = World(servers, stack, cap)
        try:
            fuzz(world, start)
        finally:
            print(f"seed {SEED}: {dict(world.seen)}", *world.failures[:1], sep="\n")
            if world.failures:
                print(world.complaints()[-5_000:])
        assert "Traceback" not in world.complaints()
        assert world.seen["delivered"] > 100
        assert world.seen["answers"] > 0


def fuzz(world: World, start: int) -> None:
    """Run the examples."""

    def machine() -> Windows:
        return Windows(world)

    run_state_machine_as_test(
        seed(start)(machine),
        settings=settings(
            max_examples=EXAMPLES or USUAL_EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
