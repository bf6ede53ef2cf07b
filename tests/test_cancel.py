"""Cancel, whatever the run is doing: one terminal event, last, every time."""

import random
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import quantiles
from typing import Any

import pytest

from app.protocol.events import TERMINAL
from tests.conftest import StackMaker
from tests.harness import Stack, eventually
from tests.test_worker import check_log

RACES = 400


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    server = module_stack()
    server.start_web()
    server.start_worker()
    return server


def _reach(server: Stack, run_id: str, type: str) -> None:
    eventually(lambda: any(e["type"] == type for e in server.events(run_id)), what=type)


def _cancelled(server: Stack, run_id: str) -> dict[str, Any]:
    run, events = server.ended(run_id), server.events(run_id)
    check_log(run, events)
    assert run["status"] == "cancelled"
    assert run["cancel_requested"] is True
    assert events[-1]["payload"]["reason"] == "requested"
    assert events[-1]["payload"]["last_seq"] == len(events) - 1
    return run


def test_a_run_inside_a_blocking_tool_ends_at_once(server: Stack) -> None:
    took = []
    for _ in range(20):
        run_id = server.start("block", {"seconds": 30})
        _reach(server, run_id, "tool.started")
        begun = time.monotonic()
        answer = server.http.post(f"/runs/{run_id}/cancel")
        took.append((time.monotonic() - begun) * 1_000)
        assert answer.status_code == 200
        assert answer.json()["status"] == "cancelled"
        assert server.events(run_id)[-1]["type"] == "run.cancelled"
        assert _cancelled(server, run_id)["state"]["tool_calls"][0]["status"] == "cancelled"
    cuts = quantiles(took, n=20)
    print(f"cancel to terminal event: p50 {cuts[9]:.0f} ms, p95 {cuts[18]:.0f} ms, worst {max(took):.0f} ms")
    assert cuts[9] <= 400


def test_a_pending_run_never_starts(module_stack: StackMaker) -> None:
    server = module_stack()
    web = server.start_web()
    worker = server.start_worker()  # registers the agents
    worker.stop()
    run_id = server.start("emit", {"count": 1})
    answer = server.http.post(f"/runs/{run_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    before = _cancelled(server, run_id)
    assert [e["type"] for e in server.events(run_id)] == ["run.created", "run.cancelled"]
    assert before["started_at"] is None
    server.start_worker()
    other = server.ended(server.start("emit", {"count": 1}))  # its job was queued after the cancelled run's
    assert other["status"] == "completed"
    assert server.read(run_id) == before
    assert web.popen.poll() is None


def test_a_finished_run_answers_200_and_nothing_changes(server: Stack) -> None:
    run_id = server.start("emit", {"count": 1})
    before, events = server.ended(run_id), server.events(run_id)
    for _ in range(2):
        answer = server.http.post(f"/runs/{run_id}/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "completed")
    assert server.read(run_id) == before
    assert server.events(run_id) == events


def test_twice_is_answered_like_once_and_delete_like_post(server: Stack) -> None:
    first_id, second_id = server.start("block", {}), server.start("block", {})
    once = server.http.post(f"/runs/{first_id}/cancel")
    twice = server.http.post(f"/runs/{first_id}/cancel")
    deleted = server.http.delete(f"/runs/{first_id}")
    assert once.status_code == twice.status_code == deleted.status_code == 200
    assert once.json() == twice.json() == deleted.json()
    assert server.http.delete(f"/runs/{second_id}").json()["status"] == "cancelled"
    assert _cancelled(server, first_id)["status"] == _cancelled(server, second_id)["status"]


def test_ten_at_once_are_one(server: Stack) -> None:
    run_id = server.start("block", {})
    _reach(server, run_id, "tool.started")
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: server.http.post(f"/runs/{run_id}/cancel"), range(10)))
    assert {(answer.status_code, answer.json()["status"]) for answer in answers} == {(200, "cancelled")}
    assert len({answer.json()["digest"] for answer in answers}) == 1
    _cancelled(server, run_id)


def test_an_agent_that_swallows_its_interruption_is_cancelled_all_the_same(server: Stack) -> None:
    run_id = server.start("stubborn", {"times": 1})
    _reach(server, run_id, "run.started")
    server.http.post(f"/runs/{run_id}/cancel")
    _cancelled(server, run_id)
    assert "custom.survived" not in [e["type"] for e in server.events(run_id)]


def test_an_agent_that_will_not_stop_is_left_behind(server: Stack) -> None:
    run_id = server.start("stubborn", {"times": 3})
    _reach(server, run_id, "run.started")
    server.http.post(f"/runs/{run_id}/cancel")
    _cancelled(server, run_id)
    assert server.ended(server.start("emit", {"count": 1}))["status"] == "completed"


@pytest.mark.parametrize("input", [{"emit": False}, {"emit": True}], ids=["check_cancelled", "emit"])
def test_an_agent_that_computes_is_stopped_at_its_next_call(server: Stack, input: dict[str, Any]) -> None:
    run_id = server.start("spin", input)
    _reach(server, run_id, "run.started")
    answer = server.http.post(f"/runs/{run_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    _cancelled(server, run_id)


def test_a_cancel_racing_the_claim_gives_one_terminal_event_every_time(server: Stack) -> None:
    chance = random.Random(7)
    delays = [chance.choice([0, 0, chance.random() * 0.03]) for _ in range(RACES)]
    begun = time.monotonic()

    def race(n: int) -> tuple[str, str, int]:
        run_id = server.start("emit", {"count": n % 2})
        time.sleep(delays[n])  # which of the two is first is the point of the race
        cancel = server.http.delete if n % 3 else lambda url: server.http.post(f"{url}/cancel")
        answer = cancel(f"/runs/{run_id}")
        return run_id, answer.json()["status"], answer.status_code

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(race, range(RACES)))
    took = time.monotonic() - begun
    services = server.services
    for run_id, status, code in outcomes:
        run = eventually(lambda run_id=run_id: _row_ended(server, run_id), 20)
        assert code == 200 or status in ("pending", "running"), (run_id, status, code)
        assert code != 200 or status == run.status, "an answer of 200 is final"
        events = services.store.events(run_id, 0, 100)
        assert [e.seq for e in events] == list(range(1, len(events) + 1)), run_id
        assert [e.type for e in events if e.type in TERMINAL] == [events[-1].type] == [f"run.{run.status}"], run_id
        assert events[-1].envelope()["payload"]["digest"] == run.digest
        assert eventually(lambda run_id=run_id, events=events: services.log.read(run_id, 0, 100) == events, 10)
    cancelled = sum(status == "cancelled" for _, status, _ in outcomes)
    late = sum(code != 200 for _, _, code in outcomes)
    print(
        f"{RACES} races in {took:.1f} s: {cancelled} cancelled, {RACES - cancelled - late} completed, {late} on the way"
    )
    assert cancelled > 0


def _row_ended(server: Stack, run_id: str) -> Any:
    run = server.services.store.get(run_id)
    return run if run and run.terminal else None
