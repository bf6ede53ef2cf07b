"""A client's own names for its runs, and cancels by name: before the run is there, after, and at the same time."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest

from app.storage.run_store import EarlyCancels, Principal, RunRecord
from app.wiring import Services
from tests.conftest import StackMaker, execute
from tests.harness import DEV, Stack, eventually, pending_run, problem
from tests.test_worker import check_log

PAIRS = 200
TICKS = {"count": 1, "type": "custom.tick"}
ENDLESS = {"count": 100_000, "interval_ms": 1_000, "type": "custom.tick"}
KINDS = ("client_run_id", "idempotency_key")

_names = itertools.count(1)


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    server = module_stack()
    server.start_web()
    server.start_worker()
    return server


@pytest.fixture
def name() -> str:
    """A name that no other run has."""
    return f"order:{next(_names)}"


def _start(server: Stack, kind: str, name: str, input: dict[str, Any] = TICKS, **body: Any) -> httpx.Response:
    named = {"client_run_id": name} if kind == "client_run_id" else {}
    headers = {"Idempotency-Key": name} if kind == "idempotency_key" else {}
    return server.http.post("/runs", json={"agent": "emit", "input": input, **named, **body}, headers=headers)


def _cancel(server: Stack, kind: str, name: str) -> httpx.Response:
    return server.http.post("/runs/cancel", json={kind: name})


# Names.


def test_the_same_id_and_body_are_the_same_run(server: Stack, name: str) -> None:
    first, second = (_start(server, "client_run_id", name) for _ in range(2))
    assert first.status_code == second.status_code == 202
    assert first.json()["run_id"] == second.json()["run_id"] != name


@pytest.mark.parametrize("change", [{"input": {"count": 2}}, {"metadata": {"x": 1}}, {"timeout_s": 9}])
def test_the_same_id_with_another_body_is_a_conflict(server: Stack, name: str, change: dict[str, Any]) -> None:
    run_id = _start(server, "client_run_id", name).json()["run_id"]
    body = {"agent": "emit", "input": TICKS, "client_run_id": name, **change}
    assert run_id in problem(server.http.post("/runs", json=body), 409, "idempotency_conflict")["detail"]


def test_an_id_and_a_key_that_come_together_name_one_run(server: Stack, name: str) -> None:
    body = {"agent": "emit", "input": TICKS, "client_run_id": name}

    def post(key: str, body: dict[str, Any] = body) -> httpx.Response:
        return server.http.post("/runs", json=body, headers={"Idempotency-Key": key})

    first = post(f"{name}/a")
    assert first.json()["run_id"] == post(f"{name}/a").json()["run_id"]
    assert first.json()["run_id"] == _start(server, "client_run_id", name).json()["run_id"]
    problem(post(f"{name}/b"), 409, "idempotency_conflict")
    problem(post(f"{name}/a", {**body, "client_run_id": f"{name}.x"}), 409, "idempotency_conflict")


def test_the_id_is_in_the_run_and_finds_it(server: Stack, name: str) -> None:
    run_id = _start(server, "client_run_id", name).json()["run_id"]
    assert server.read(run_id)["client_run_id"] == name
    assert server.read(server.start("emit", TICKS))["client_run_id"] is None
    found = server.http.get("/runs", params={"client_run_id": name}).json()["runs"]
    assert [(run["run_id"], run["client_run_id"]) for run in found] == [(run_id, name)]
    assert server.http.get("/runs", params={"client_run_id": f"{name}.x"}).json()["runs"] == []


def test_starts_at_the_same_time_with_one_id_make_one_run(server: Stack, name: str) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: _start(server, "client_run_id", name), range(10)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["run_id"] for answer in answers}) == 1


@pytest.mark.parametrize("value", ["", "a b", "a\n", "é", "a" * 129, 7])
def test_an_id_is_made_of_what_a_session_id_is_made_of(server: Stack, value: object) -> None:
    problem(server.http.post("/runs", json={"agent": "emit", "client_run_id": value}), 422, "invalid_request")
    problem(server.http.post("/runs/cancel", json={"client_run_id": value}), 422, "invalid_request")
    if isinstance(value, str):
        problem(server.http.get("/runs", params={"client_run_id": value}), 422, "invalid_request")


@pytest.mark.parametrize("body", [{}, {"client_run_id": "a", "idempotency_key": "b"}, {"run_id": "a"}, {"x": 1}])
def test_a_cancel_gives_exactly_one_name(server: Stack, body: dict[str, Any]) -> None:
    problem(server.http.post("/runs/cancel", json=body), 422, "invalid_request")


# One after the other.


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_there_is_cancelled_as_by_its_id(server: Stack, name: str, kind: str) -> None:
    run_id = _start(server, kind, name, ENDLESS).json()["run_id"]
    eventually(lambda: server.read(run_id)["status"] == "running")
    answer = _cancel(server, kind, name)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert answer.json() == server.http.post(f"/runs/{run_id}/cancel").json() == _cancel(server, kind, name).json()


def test_a_run_that_has_ended_stays_as_it_is(server: Stack, name: str) -> None:
    before = server.ended(_start(server, "client_run_id", name).json()["run_id"])
    answer = _cancel(server, "client_run_id", name)
    assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    assert server.read(before["run_id"]) == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancel_that_comes_first_is_noted_and_its_run_never_starts(server: Stack, name: str, kind: str) -> None:
    for _ in range(2):
        answer = _cancel(server, kind, name)
        assert (answer.status_code, answer.json()) == (202, {"status": "noted"})
    answer = _start(server, kind, name)
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    run_id = answer.json()["run_id"]
    _check_never_started(server, run_id)
    assert _start(server, kind, name).json()["run_id"] == run_id
    assert _cancel(server, kind, name).status_code == 200


def test_its_window_shows_the_end(server: Stack, name: str) -> None:
    _cancel(server, "client_run_id", name)
    body = {"agent": "emit", "input": ENDLESS, "client_run_id": name}
    answer = server.http.post("/runs", json=body, headers={"Accept": "application/x-ndjson"})
    assert [line.split('"type":"')[1].split('"')[0] for line in answer.text.splitlines() if line] == [
        "run.created",
        "run.cancelled",
    ]


def test_a_noted_cancel_is_heeded_once(server: Stack, name: str) -> None:
    _cancel(server, "client_run_id", name)
    first = _start(server, "client_run_id", name).json()["run_id"]
    assert server.http.post(f"/runs/{first}/erase").status_code == 204
    second = _start(server, "client_run_id", name).json()["run_id"]
    assert server.ended(second)["status"] == "completed"


def test_a_noted_cancel_is_forgotten_after_a_day(server: Stack, name: str) -> None:
    for hours, status in ((23, "cancelled"), (25, "completed")):
        _cancel(server, "client_run_id", f"{name}.{hours}")
        sql = f"UPDATE early_cancels SET created_at = now() - interval '{hours} hours' WHERE key = '{name}.{hours}'"
        execute(server.env["DATABASE_URL"], sql)
        run_id = _start(server, "client_run_id", f"{name}.{hours}").json()["run_id"]
        assert server.ended(run_id)["status"] == status


def test_a_name_is_of_one_kind_and_of_one_user(apart: Services, name: str) -> None:
    cancels, other = EarlyCancels(apart.database), Principal("dev", "other")
    assert cancels.find_or_note(DEV, "client_run_id", name) is None
    assert not pending_run(apart, idempotency_key=name).cancel_requested
    assert not pending_run(apart, client_run_id=name, principal=other).cancel_requested
    assert not pending_run(apart, client_run_id=name, principal=Principal("other", "dev")).cancel_requested
    mine = pending_run(apart, client_run_id=name)
    assert (mine.cancel_requested, mine.cancel_reason) == (True, "requested")
    assert cancels.find_or_note(DEV, "client_run_id", name) == mine.id
    assert cancels.find_or_note(Principal("dev", "third"), "client_run_id", name) is None


def test_a_start_that_is_a_conflict_leaves_a_noted_cancel_where_it_is(apart: Services, name: str) -> None:
    first = pending_run(apart, idempotency_key=name)
    EarlyCancels(apart.database).find_or_note(DEV, "client_run_id", name)
    assert pending_run(apart, idempotency_key=name, client_run_id=name, announce=False) == first
    assert pending_run(apart, client_run_id=name).cancel_requested


def test_a_start_that_dies_right_after_its_commit_is_cancelled_by_the_worker(server: Stack, name: str) -> None:
    _cancel(server, "client_run_id", name)
    run = pending_run(server.services, client_run_id=name, input=TICKS, announce=False)
    _check_never_started(server, server.ended(run.id, 20)["run_id"])


# At the same time.


@contextmanager
def _held_up(url: str, table: str) -> Iterator[Callable[[str], None]]:
    """Nobody can insert into the table meanwhile. Yields what waits until somebody waits for a lock of that type."""
    with closing(psycopg2.connect(url)) as connection, closing(psycopg2.connect(url)) as other:
        other.autocommit = True
        connection.cursor().execute(f"LOCK TABLE {table} IN SHARE MODE")

        def wait(locktype: str) -> None:
            def blocked() -> bool:
                cursor = other.cursor()
                cursor.execute(
                    """SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)
                       WHERE NOT granted AND locktype = %s AND datname = current_database()""",
                    (locktype,),
                )
                return bool(cursor.fetchone()[0])  # type: ignore[index]

            eventually(blocked, what=f"a wait for a lock of type {locktype}")

        yield wait


def _race(apart: Services, kind: str, name: str, *, start_first: bool) -> tuple[RunRecord, str | None]:
    """A start and a cancel of which the one has made its first statements when the other begins."""

    def start() -> RunRecord:
        return pending_run(apart, announce=False, **{kind: name})

    def cancel() -> str | None:
        return EarlyCancels(apart.database).find_or_note(DEV, kind, name)

    url = apart.config.database_url
    table = "runs" if start_first else "early_cancels"
    with ThreadPoolExecutor(2) as pool:
        with _held_up(url, table) as wait:
            first: Future[Any] = pool.submit(start if start_first else cancel)
            wait("relation")
            second: Future[Any] = pool.submit(cancel if start_first else start)
            wait("advisory")
        results = (first.result(10), second.result(10))
    return results if start_first else (results[1], results[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cancel_during_the_start_finds_the_run(apart: Services, name: str, kind: str) -> None:
    run, found = _race(apart, kind, name, start_first=True)
    assert found == run.id


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_during_the_cancel_finds_the_note(apart: Services, name: str, kind: str) -> None:
    run, found = _race(apart, kind, name, start_first=False)
    assert found is None
    assert run.cancel_requested


@pytest.mark.parametrize("killing", [False, True], ids=["undisturbed", "while web processes are killed"])
def test_of_two_hundred_starts_and_cancels_at_once_every_run_is_cancelled(server: Stack, killing: bool) -> None:
    chance = random.Random(4)
    plan = [(KINDS[n % 2], chance.uniform(-0.02, 0.02)) for n in range(PAIRS)]
    prefix = "killed" if killing else "raced"

    def insist(call: Callable[[], httpx.Response]) -> httpx.Response:
        """As a client does that gets no answer: again, until there is one."""
        while True:
            try:
                answer = call()
            except httpx.TransportError:
                continue
            if answer.status_code != 503:
                return answer

    def start(n: int) -> httpx.Response:
        time.sleep(max(0, plan[n][1]))  # which of the two is first is the point of the race
        return insist(lambda: _start(server, plan[n][0], f"{prefix}.{n}", ENDLESS))

    def cancel(n: int) -> httpx.Response:
        time.sleep(max(0, -plan[n][1]))
        return insist(lambda: _cancel(server, plan[n][0], f"{prefix}.{n}"))

    kills = 0
    with ThreadPoolExecutor(16) as pool:
        pairs = [(pool.submit(start, n), pool.submit(cancel, n)) for n in range(PAIRS)]
        while killing and not all(f.done() for pair in pairs for f in pair):
            kills += _kill_web_worker(server)
            eventually(lambda: _answers(server), 20)
            done = sum(f.done() for pair in pairs for f in pair)
            eventually(lambda done=done: sum(f.done() for p in pairs for f in p) >= min(2 * PAIRS, done + 60), 60)
        answers = [(started.result(60), cancelled.result(60)) for started, cancelled in pairs]
    noted = 0
    for started, cancelled in answers:
        assert started.status_code == 202, started.text
        run_id = started.json()["run_id"]
        run = server.ended(run_id, 30)
        assert run["status"] == "cancelled", run
        if cancelled.json()["status"] == "noted":
            assert cancelled.status_code == 202
            noted += 1
            _check_never_started(server, run_id)
        elif cancelled.status_code == 200:
            assert cancelled.json()["run_id"] == run_id
    print(f"{PAIRS} pairs, {kills} web processes killed: {noted} cancels came first, {PAIRS - noted} runs")
    assert 0 < noted < PAIRS
    assert len({started.json()["run_id"] for started, _ in answers}) == PAIRS


def _answers(server: Stack) -> bool:
    try:
        return server.http.get("/healthz").is_success
    except httpx.TransportError:
        return False


def _kill_web_worker(server: Stack) -> int:
    """kill -9 of the processes of gunicorn that answer requests; it starts others. Returns how many there were."""
    children = [int(pid) for pid in Path(f"/proc/{server.web_pid}/task/{server.web_pid}/children").read_text().split()]
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    return len(children)


def _check_never_started(server: Stack, run_id: str) -> None:
    run, events = server.read(run_id), server.events(run_id)
    check_log(run, events)
    assert run["status"] == "cancelled"
    assert [event["type"] for event in events] == ["run.created", "run.cancelled"]
    assert events[-1]["payload"]["reason"] == "requested"
