"""A heartbeat that does not get through although its worker lives: it is repeated elsewhere, and nobody is called lost.

Connections hang here in each way that leaves them open: the server's process is stopped, a proxy swallows what is sent,
somebody holds a lock.
"""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import psutil
import psycopg2
import pytest

from app.dev.services import EmbeddedServices
from app.errors import StoreUnavailable
from app.identifiers import new_id
from app.storage.run_store import Beats, OwnerBeat, migrate
from app.storage.run_store.beats import NAME
from app.wiring import Services
from tests.conftest import StackMaker, execute, own_databases
from tests.harness import Process, Stack, eventually, pending_run
from tests.speed import timed
from tests.stored import begin, ended, payloads, reach, row
from tests.swallowing_proxy import SwallowingProxy
from workers.janitor.loop import LEASE_SECONDS, Janitor

GIVEN_UP_SECONDS = 2.0
BUSY_SECONDS = 0.5
"""By which this machine may be late."""
STUCK_SECONDS = 14
RUNS = 8


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServices]:
    """Servers whose processes can be stopped."""
    with EmbeddedServices(tmp_path_factory.mktemp("servers")) as servers:
        migrate(servers.database_url)
        yield servers


@pytest.fixture
def url(servers: EmbeddedServices) -> Iterator[str]:
    """A database of the test's own."""
    with own_databases({"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}) as urls:
        yield urls["DATABASE_URL"]


def _query(url: str, sql: str, *values: Any) -> list[Any]:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall()


def _count(url: str, worker_id: str) -> int:
    return int(_query(url, "SELECT beats FROM workers WHERE id = %s", worker_id)[0][0])


def _backends(url: str) -> dict[int, int]:
    """Of each heartbeat its process in the server, by the port of its connection."""
    sql = "SELECT client_port, pid FROM pg_stat_activity WHERE application_name = %s AND datname = current_database()"
    return dict(_query(url, sql, NAME))


@contextmanager
def _stopped(pids: list[int]) -> Iterator[list[int]]:
    try:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def _locked(url: str, worker_id: str) -> Iterator[None]:
    with closing(psycopg2.connect(url)) as connection:
        connection.cursor().execute("SELECT FROM workers WHERE id = %s FOR UPDATE", (worker_id,))
        yield
        connection.rollback()


def _given_up(beats: Beats) -> None:
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable):
        beats.beat()
    assert time.monotonic() - begun < GIVEN_UP_SECONDS + BUSY_SECONDS


# One heartbeat.


def test_a_stopped_server_process_is_given_up_and_the_next_heartbeat_has_another(url: str) -> None:
    with closing(Beats(url, "w")) as beats:
        beats.beat()
        with _stopped(list(_backends(url).values())):
            _given_up(beats)
            beats.beat()
            assert _count(url, "w") == 1
    eventually(lambda: _count(url, "w") == 2, what="the heartbeat that came late")


@pytest.mark.parametrize("connected", [True, False])
def test_a_connection_that_a_proxy_swallows_is_given_up(url: str, connected: bool) -> None:
    with SwallowingProxy(url) as proxy, closing(Beats(proxy.url, "w")) as beats:
        if connected:
            beats.beat()
        proxy.swallow()
        for _ in range(2):
            _given_up(beats)
        proxy.flow()
        beats.beat()
        assert _count(url, "w") == int(connected)
        assert proxy.accepted == 3, "each time a new one"


def test_a_heartbeat_that_waits_for_a_lock_is_given_up_by_the_server_too(url: str) -> None:
    with closing(Beats(url, "w")) as beats:
        beats.beat()
        with _locked(url, "w"):
            for _ in range(2):
                _given_up(beats)
            eventually(lambda: not _backends(url), what="the end of what nobody waits for any more")
        beats.beat()
        assert _count(url, "w") == 1


# Whoever sees it.


def test_an_owner_that_was_called_lost_is_so_only_after_another_lease_for_every_janitor(
    apart: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000.0]
    monkeypatch.setattr("workers.janitor.loop.time.monotonic", lambda: now[0])
    owner = new_id("w")
    with closing(Beats(apart.config.database_url, owner)) as beats:
        beats.beat()
    run_id = pending_run(apart).id
    janitors = [Janitor(apart) for _ in range(3)]

    def passes(seconds: int) -> None:
        for _ in range(seconds):
            now[0] += 1
            for janitor in janitors:
                janitor.release_lost()

    for epoch in range(1, 4):
        assert apart.store.claim(run_id, owner, start=True)
        passes(1 + int(LEASE_SECONDS))
        found = _row(apart, run_id)
        assert (found.status, found.epoch) == ("running", epoch), "a full lease was not over"
        passes(1)
        found = _row(apart, run_id)
        assert (found.status, found.epoch, found.attempt) == ("pending", epoch, 1)
    apart.store.request_cancel(run_id)
    apart.ownership.end_unowned(_row(apart, run_id))


def _row(services: Services, run_id: str) -> Any:
    found = services.store.get(run_id)
    assert found is not None
    return found


def test_of_two_who_saw_the_same_one_calls_it_lost(apart: Services) -> None:
    owner = new_id("w")
    with closing(Beats(apart.config.database_url, owner)) as beats:
        beats.beat()
    run_id = pending_run(apart).id
    assert apart.store.claim(run_id, owner, start=True)
    (seen,) = [beat for beat in apart.store.owner_beats() if beat.owner == owner]
    assert seen == OwnerBeat(owner, 0, 0)
    assert [run.id for run in apart.store.release_lost(seen)] == [run_id]
    assert apart.store.claim(run_id, owner, start=True), "it lives"
    assert apart.store.release_lost(seen) == []
    apart.store.request_cancel(run_id)


def test_who_does_not_get_through_calls_nobody_lost_and_never_itself(
    apart: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, through = [1_000.0], [False]
    monkeypatch.setattr("workers.janitor.loop.time.monotonic", lambda: now[0])
    ours, other = new_id("w"), new_id("w")
    runs = {owner: pending_run(apart).id for owner in (ours, other)}
    for owner, run_id in runs.items():
        assert apart.store.claim(run_id, owner, start=True)
    janitor = Janitor(apart, worker_id=ours, gets_through=lambda: through[0])

    def statuses_after(seconds: int) -> list[str]:
        for _ in range(seconds):
            now[0] += 1
            janitor.release_lost()
        return [_row(apart, run_id).status for run_id in runs.values()]

    assert statuses_after(20) == ["running", "running"]
    through[0] = True
    assert statuses_after(int(LEASE_SECONDS)) == ["running", "running"], "what was seen before does not count"
    assert statuses_after(20) == ["running", "pending"]


def test_a_lock_on_the_row_of_a_worker_keeps_no_janitor_waiting(apart: Services) -> None:
    owner = new_id("w")
    with closing(Beats(apart.config.database_url, owner)) as beats:
        beats.beat()
    run_id = pending_run(apart).id
    assert apart.store.claim(run_id, owner, start=True)
    (seen,) = [beat for beat in apart.store.owner_beats() if beat.owner == owner]
    with _locked(apart.config.database_url, owner), timed() as asking:
        assert apart.store.release_lost(seen) == []
        assert asking.seconds < 1
    assert len(apart.store.release_lost(seen)) == 1


# Real workers.


def _backend_of(worker: Process, url: str) -> list[int]:
    ports = {connection.laddr.port for connection in psutil.Process(worker.pid).net_connections("tcp")}
    return [pid for port, pid in _backends(url).items() if port in ports]


SILENCE = """
CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;
CREATE TRIGGER silence BEFORE INSERT ON workers FOR EACH ROW WHEN (NEW.id = '{}') EXECUTE FUNCTION hang()
"""


@contextmanager
def _silenced(url: str, worker: Process) -> Iterator[None]:
    """Every heartbeat of the worker hangs, on each connection that it makes, and holds no lock meanwhile."""
    found = re.search(r"Worker (\S+) is ready", worker.log.read_text())
    assert found is not None
    execute(url, SILENCE.format(found[1]))
    try:
        yield
    finally:
        execute(url, "DROP TRIGGER silence ON workers; DROP FUNCTION hang")


def _steady(stack: Stack, seconds: float) -> list[str]:
    run_ids = [begin(stack, "steady", count=int(seconds * 5), interval=0.2) for _ in range(RUNS)]
    for run_id in run_ids:
        reach(stack, run_id, "custom.tick", 2)
    return run_ids


def _losses(stack: Stack, run_id: str) -> int:
    return len(payloads(stack, run_id, "run.step"))


def one_stuck_connection(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="2")
    stuck, url = stack.start_worker(), stack.env["DATABASE_URL"]
    run_ids = _steady(stack, STUCK_SECONDS)
    stack.start_worker()
    with _stopped(_backend_of(stuck, url)) as pids:
        assert len(pids) == 1
        time.sleep(STUCK_SECONDS)
    for run_id in run_ids:
        assert ended(stack, run_id).attempt == 1
        assert _losses(stack, run_id) == 0


def a_heartbeat_that_never_gets_through_beside_another_worker(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="2")
    stuck, url = stack.start_worker(), stack.env["DATABASE_URL"]
    run_ids = _steady(stack, 2 * STUCK_SECONDS)
    stack.start_worker()
    with _silenced(url, stuck):
        time.sleep(STUCK_SECONDS)
        later = _steady(stack, 1)
        for run_id in later:
            assert payloads(stack, run_id, "custom.pid") != [{"pid": stuck.pid}], "it claims nothing"
    for run_id in (*run_ids, *later):
        assert ended(stack, run_id).attempt == 1
        assert _losses(stack, run_id) <= 1
    assert sum(_losses(stack, run_id) for run_id in run_ids) > 0, "there was nothing to see here"


def a_heartbeat_that_never_gets_through_of_the_only_worker(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="2")
    stuck, url = stack.start_worker(), stack.env["DATABASE_URL"]
    run_ids = _steady(stack, STUCK_SECONDS)
    with _silenced(url, stuck):
        time.sleep(LEASE_SECONDS)
        fresh = begin(stack, "steady", count=1)
        time.sleep(STUCK_SECONDS - LEASE_SECONDS)
        assert row(stack, fresh).status == "pending", "it claims nothing"
    for run_id in (*run_ids, fresh):
        assert ended(stack, run_id).attempt == 1
        assert _losses(stack, run_id) == 0


def a_lock_on_the_row_of_a_worker(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="2")
    stack.start_worker()
    url = stack.env["DATABASE_URL"]
    run_ids = _steady(stack, STUCK_SECONDS)
    (worker_id,) = {row(stack, run_id).owner for run_id in run_ids}
    stack.start_worker()
    with _locked(url, str(worker_id)):
        time.sleep(STUCK_SECONDS)
    for run_id in run_ids:
        assert ended(stack, run_id).attempt == 1
        assert _losses(stack, run_id) <= 1


def an_isolated_worker_whose_heartbeat_never_gets_through(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="2")
    stuck, url = stack.start_worker("--isolated"), stack.env["DATABASE_URL"]
    with _silenced(url, stuck):
        time.sleep(LEASE_SECONDS)
        run_id = pending_run(stack.services, "isolated_words", queue="isolated").id
        stack.services.queue.enqueue(run_id, 0, "isolated")
        time.sleep(LEASE_SECONDS)
        assert row(stack, run_id).status == "pending", "it claims nothing"
    assert ended(stack, run_id).attempt == 1


Scenario = Callable[[StackMaker], None]
SCENARIOS: list[Scenario] = [
    one_stuck_connection,
    a_heartbeat_that_never_gets_through_beside_another_worker,
    a_heartbeat_that_never_gets_through_of_the_only_worker,
    a_lock_on_the_row_of_a_worker,
    an_isolated_worker_whose_heartbeat_never_gets_through,
]
Played = dict[Scenario, "Future[None]"]


@pytest.fixture(scope="module")
def played(servers: EmbeddedServices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    """Side by side: most of the time here is waited."""

    def play(number: int, scenario: Scenario) -> None:
        name = f"scenario_{number}"
        execute(servers.database_url, f"CREATE DATABASE {name}")  # which goes with its server
        redis = urlsplit(servers.redis_url)._replace(path=f"/{number}").geturl()
        own = {"DATABASE_URL": urlsplit(servers.database_url)._replace(path=f"/{name}").geturl(), "REDIS_URL": redis}
        migrate(own["DATABASE_URL"])
        with ExitStack() as opened:
            folder = tmp_path_factory.mktemp(name)
            scenario(lambda **settings: opened.enter_context(Stack({**own, **settings}, folder)))

    with ThreadPoolExecutor(len(SCENARIOS)) as side_by_side:
        yield {scenario: side_by_side.submit(play, n, scenario) for n, scenario in enumerate(SCENARIOS, 1)}


def test_a_heartbeat_that_is_stuck_once_costs_nobody_anything(played: Played) -> None:
    played[one_stuck_connection].result()


def test_a_worker_whose_heartbeat_does_not_get_through_loses_its_runs_once_and_claims_nothing(played: Played) -> None:
    played[a_heartbeat_that_never_gets_through_beside_another_worker].result()


def test_the_only_worker_goes_on_with_what_it_has_and_claims_nothing_new(played: Played) -> None:
    played[a_heartbeat_that_never_gets_through_of_the_only_worker].result()


def test_a_lock_that_somebody_holds_on_a_worker_loses_its_runs_at_most_once(played: Played) -> None:
    played[a_lock_on_the_row_of_a_worker].result()


def test_an_isolated_worker_whose_heartbeat_does_not_get_through_claims_nothing(played: Played) -> None:
    played[an_isolated_worker_whose_heartbeat_never_gets_through].result()
