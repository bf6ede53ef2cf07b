"""isolation="process": agents that compute, block or die have a process each, and all else holds for them too."""

import itertools
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import psutil
import pytest

from app.protocol.ending import Ending
from app.storage.run_queue import ISOLATED_QUEUE, QUEUE
from tests.conftest import StackMaker
from tests.harness import Stack, children_named, eventually, pending_run
from tests.test_worker import check_log
from workers.janitor.loop import LEASE_SECONDS

TERMINAL_SECONDS = 0.5
"""From a cancel to the terminal event."""
SEQUENCE = 20
PATIENCE_SECONDS = 40

Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    """A web, a worker, and a worker for isolated agents."""
    server = module_stack()
    server.start_web()
    server.start_worker()
    server.start_worker("--isolated")
    return server


@pytest.fixture
def alone(stack: StackMaker) -> Iterator[Callable[..., Stack]]:
    """A web and a worker of the test's own: isolated ones are the test's to start."""

    def make(**settings: str) -> Stack:
        server = stack(**settings)
        server.start_web()
        server.start_worker()
        return server

    return make


def _of(server: Stack, run_id: str, type: str) -> Events:
    return [event["payload"] for event in server.events(run_id) if event["type"] == type]


def _reach(server: Stack, run_id: str, type: str) -> dict[str, Any]:
    found = eventually(lambda: _of(server, run_id, type), PATIENCE_SECONDS, f"{type} of {run_id}")
    return found[-1]


def _ended(server: Stack, run_id: str, status: str) -> tuple[dict[str, Any], Events]:
    run, found = server.ended(run_id, PATIENCE_SECONDS), server.events(run_id)
    check_log(run, found)
    assert run["status"] == status, run
    return run, found


def _completed(server: Stack, run_id: str) -> Any:
    return _ended(server, run_id, "completed")[0]["output"]


def _attempts(found: Events) -> list[tuple[str, str | None, int]]:
    """How each invocation began: type, reason, attempt."""
    begins = [e for e in found if e["type"] in ("run.started", "run.step", "run.resumed")]
    return [(e["type"], e["payload"].get("reason"), e["payload"]["attempt"]) for e in begins]


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody's: the reaper of the machine is slow
    except psutil.NoSuchProcess:
        return True


# As any other run.


def test_a_run_has_a_process_of_its_own_in_which_nothing_is_patched(server: Stack) -> None:
    run_ids = [server.start("isolated_words", {"count": 3}) for _ in range(2)]
    assert [_completed(server, run_id) for run_id in run_ids] == ["word0 word1 word2 "] * 2
    pids = [_of(server, run_id, "custom.pid")[0] for run_id in run_ids]
    assert pids[0]["parent"] == pids[1]["parent"]
    assert len({pids[0]["pid"], pids[1]["pid"], pids[0]["parent"]}) == 3


def test_every_kind_of_call_works_and_branches_block_side_by_side(server: Stack) -> None:
    output = _completed(server, server.start("isolated_everything", {}))
    assert output == {"results": ["a", "b"], "side_by_side": True, "echoed": "meow"}


def test_an_error_of_the_agent_is_told_as_ever(server: Stack) -> None:
    run, _ = _ended(server, server.start("isolated_raises", {}), "failed")
    assert run["error"]["code"] == "agent_error"


def test_twenty_in_a_row_complete_in_twenty_processes(server: Stack) -> None:
    begun = time.monotonic()
    run_ids = [server.start("isolated_words", {"count": n}) for n in range(1, SEQUENCE + 1)]
    words = [len(_completed(server, run_id).split()) for run_id in run_ids]
    took = time.monotonic() - begun
    assert words == list(range(1, SEQUENCE + 1))
    horses = {_of(server, run_id, "custom.pid")[0]["pid"] for run_id in run_ids}
    assert len(horses) == SEQUENCE
    assert all(_gone(pid) for pid in horses)
    print(f"{SEQUENCE} isolated runs in a row: {took:.1f} s, {took / SEQUENCE * 1_000:.0f} ms each")


def test_an_approval_costs_no_process_and_the_run_goes_on_in_another(server: Stack) -> None:
    run_id = server.start("isolated_asks", {})
    approval = _reach(server, run_id, "approval.required")
    eventually(lambda: server.read(run_id)["status"] == "waiting")
    assert _completed(server, server.start("isolated_words", {})), "the worker is free meanwhile"
    decision = {"decision": "approved", "comment": "go"}
    assert server.http.post(f"/runs/{run_id}/approvals/{approval['approval_id']}", json=decision).status_code == 200
    run, found = _ended(server, run_id, "completed")
    output = run["output"]
    assert (output["decision"], output["comment"]) == ("approved", "go")
    assert output["before"] != output["after"]
    assert _attempts(found) == [("run.started", None, 1), ("run.resumed", None, 1)]
    assert len([e for e in found if e["type"] == "tool.started"]) == 2


def test_inputs_reach_an_agent_that_never_lets_go_and_one_that_waits(server: Stack) -> None:
    run_id = server.start("isolated_listens", {"count": 2})
    _reach(server, run_id, "run.started")
    for text in ("one", "two"):
        assert server.http.post(f"/runs/{run_id}/input", json={"text": text}).status_code < 300
    eventually(lambda: server.read(run_id)["status"] == "waiting", PATIENCE_SECONDS)
    server.http.post(f"/runs/{run_id}/input", json={"text": "three"})
    assert _completed(server, run_id) == {"heard": ["one", "two"], "last": ["three"]}


# Stopped.


@pytest.mark.parametrize("agent", ["isolated_spin", "isolated_hold", "isolated_block"])
def test_a_cancel_ends_the_run_at_once_whatever_the_agent_does(server: Stack, agent: str) -> None:
    took, children = [], []
    for _ in range(5):
        run_id = server.start(agent, {})
        _reach(server, run_id, "custom.pid")
        if agent == "isolated_block":
            children += _reach(server, run_id, "custom.children")["pids"]
        begun = time.monotonic()
        answer = server.http.post(f"/runs/{run_id}/cancel")
        took.append(time.monotonic() - begun)
        assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
        _, found = _ended(server, run_id, "cancelled")
        assert found[-1]["payload"]["reason"] == "requested"
        eventually(lambda found=found: all(_gone(e["payload"]["pid"]) for e in found if e["type"] == "custom.pid"))
    print(f"cancel of {agent}: p50 {median(took) * 1_000:.0f} ms, worst {max(took) * 1_000:.0f} ms")
    assert median(took) <= TERMINAL_SECONDS
    eventually(lambda: all(_gone(pid) for pid in children), what="the end of what the agents had started")
    assert _completed(server, server.start("isolated_words", {}))


@pytest.mark.parametrize("agent", ["isolated_spin", "isolated_hold"])
@pytest.mark.parametrize("of", ["run", "step"])
def test_the_time_of_a_run_or_of_a_step_is_over_whatever_the_agent_does(server: Stack, agent: str, of: str) -> None:
    begun = time.monotonic()
    limits: dict[str, Any] = {"timeout_s": 1}
    run_id = server.start(agent, {}, **limits) if of == "run" else server.start(agent, limits)
    run, found = _ended(server, run_id, "failed")
    assert time.monotonic() - begun >= 1
    assert run["error"]["code"] == "timeout"
    assert ("The run took" if of == "run" else "The step") in run["error"]["message"]
    assert _attempts(found) == [("run.started", None, 1)]


# Killed.


@pytest.mark.parametrize("way", ["exit", "kill", "segfault"])
def test_a_process_that_dies_costs_an_attempt_at_once_and_no_recorded_call(
    server: Stack, tmp_path: Path, way: str
) -> None:
    log = tmp_path / "log"
    begun = time.monotonic()
    run_id = server.start("isolated_dies", {"way": way, "log": str(log), "times": 2})
    _, found = _ended(server, run_id, "completed")
    print(f"two processes that ended by {way}: {time.monotonic() - begun:.1f} s")
    assert log.read_text().split() == ["once", "attempt", "attempt", "attempt"]
    assert [begin[:2] for begin in _attempts(found)] == [
        ("run.started", None),
        ("run.step", "worker_lost"),
        ("run.step", "worker_lost"),
    ]
    assert time.monotonic() - begun < 2 * LEASE_SECONDS, "nobody waited for a lease"


def test_a_process_that_dies_each_time_fails_the_run(stack: StackMaker, tmp_path: Path) -> None:
    server = stack(RUN_MAX_ATTEMPTS="2")
    server.start_web()
    server.start_worker("--isolated")
    log = tmp_path / "log"
    run, _ = _ended(server, server.start("isolated_dies", {"way": "exit", "log": str(log), "times": 99}), "failed")
    assert run["error"]["code"] == "worker_lost"


def test_the_process_of_a_run_that_another_worker_has_is_killed(server: Stack) -> None:
    run_id = server.start("isolated_hold", {})
    pid = _reach(server, run_id, "custom.pid")["pid"]
    store, ownership = server.services.store, server.services.ownership
    run = store.get(run_id)
    assert run is not None
    assert store.release(run_id, run.epoch, "worker_lost")
    claimed = ownership.claim(run_id, "another")
    assert claimed is not None
    eventually(lambda: _gone(pid), what="the end of a process that executes what is not its own")
    ownership.finish(claimed[1], Ending.completed({"by": "another"}))
    assert _completed(server, run_id) == {"by": "another"}
    assert _completed(server, server.start("isolated_words", {}))


def test_what_a_module_has_started_when_it_was_loaded_serves_every_run(stack: StackMaker) -> None:
    server = stack(WITH_HELPERS="1")
    server.start_web()
    worker = server.start_worker("--isolated")
    helpers = children_named(worker.pid, "cat")
    assert len(helpers) == 2
    for name, status in (
        ("isolated_words", "completed"),
        ("isolated_raises", "failed"),
        ("isolated_words", "completed"),
    ):
        _ended(server, server.start(name, {}), status)
    assert not any(_gone(helper.pid) for helper in helpers)
    worker.stop()
    eventually(lambda: all(_gone(helper.pid) for helper in helpers), what="the end of what reads from the worker")


def _held(server: Stack) -> tuple[str, Path, dict[str, Any]]:
    """A run that goes on until its gate is there; the pids of its first process and of its worker."""
    gate = server.folder / secrets.token_hex(4)
    run_id = server.start("isolated_steady", {"gate": str(gate)})
    _reach(server, run_id, "custom.tick")
    return run_id, gate, _of(server, run_id, "custom.pid")[0]


def _ticked_without_a_gap(found: Events) -> bool:
    ticks = [e["payload"]["n"] for e in found if e["type"] == "custom.tick"]
    return ticks == list(range(len(ticks)))


def test_a_killed_parent_takes_its_process_along_and_another_worker_goes_on(alone: Callable[..., Stack]) -> None:
    server = alone()
    first = server.start_worker("--isolated")
    run_id, gate, pids = _held(server)
    assert pids["parent"] == first.pid
    other = server.start_worker("--isolated")
    first.kill()
    eventually(lambda: _gone(pids["pid"]), 1, "the end of the orphan")
    eventually(lambda: len(_attempts(server.events(run_id))) == 2, PATIENCE_SECONDS, "the next invocation")
    gate.touch()
    _, found = _ended(server, run_id, "completed")
    assert _attempts(found) == [("run.started", None, 1), ("run.step", "worker_lost", 1)]
    assert _ticked_without_a_gap(found)
    assert other.popen.poll() is None


def test_a_deploy_lets_the_run_finish_in_the_time_that_it_gets(alone: Callable[..., Stack]) -> None:
    server = alone(DRAIN_SECONDS="20")
    leaving = server.start_worker("--isolated")
    run_id, gate, _ = _held(server)
    leaving.send(signal.SIGTERM)
    time.sleep(1)  # it is to go on meanwhile
    gate.touch()
    _, found = _ended(server, run_id, "completed")
    assert _attempts(found) == [("run.started", None, 1)]
    assert leaving.popen.wait(10) == 0


def test_deploys_hand_the_run_over_and_cost_no_attempt(alone: Callable[..., Stack]) -> None:
    server = alone(DRAIN_SECONDS="0")
    leaving = server.start_worker("--isolated")
    run_id, gate, _ = _held(server)
    for n in range(1, 4):
        leaving.stop(signal.SIGTERM)
        leaving = server.start_worker("--isolated")
        eventually(lambda n=n: len(_attempts(server.events(run_id))) == n + 1, PATIENCE_SECONDS, "the next invocation")
    gate.touch()
    _, found = _ended(server, run_id, "completed")
    assert _attempts(found) == [("run.started", None, 1), *[("run.step", "deploy", 1)] * 3]
    assert _ticked_without_a_gap(found)


def test_a_platform_that_signals_every_process_ends_no_run(alone: Callable[..., Stack]) -> None:
    server = alone(DRAIN_SECONDS="20")
    leaving = server.start_worker("--isolated")
    run_id, gate, pids = _held(server)
    for pid in (pids["pid"], leaving.pid, pids["pid"]):
        os.kill(pid, signal.SIGTERM)
    time.sleep(0.5)  # it is to go on meanwhile
    gate.touch()
    _, found = _ended(server, run_id, "completed")
    assert _attempts(found) == [("run.started", None, 1)]


def test_an_idle_worker_ends_at_once(alone: Callable[..., Stack]) -> None:
    server = alone()
    worker = server.start_worker("--isolated")
    begun = time.monotonic()
    assert worker.stop(signal.SIGTERM) == 0
    assert time.monotonic() - begun < 3


# Elsewhere.


def test_whoever_takes_a_run_of_the_other_isolation_hands_it_over(server: Stack) -> None:
    """As it is when an agent's isolation has changed since the run was created."""
    for agent, wrong, right in (("isolated_words", QUEUE, ISOLATED_QUEUE), ("emit", ISOLATED_QUEUE, QUEUE)):
        run = pending_run(server.services, agent, {"count": 1}, queue=wrong)
        server.services.queue.enqueue(run.id, run.epoch, wrong)
        found = _ended(server, run.id, "completed")[1]
        assert _attempts(found) == [("run.started", None, 1)]
        row = server.services.store.get(run.id)
        assert row is not None
        assert row.queue == right


def test_windows_and_runs_elsewhere_go_on_while_isolated_agents_compute(server: Stack) -> None:
    spinning = server.start("isolated_spin", {})
    _reach(server, spinning, "custom.pid")
    run_id = server.start("emit", {"count": 100, "interval_ms": 20, "type": "custom.tick", "text": "x"})
    arrived = [time.monotonic() for _ in server.follow(run_id)]
    gaps = [after - before for before, after in itertools.pairwise(arrived)]
    server.http.post(f"/runs/{spinning}/cancel")
    print(f"between two events: p50 {median(gaps) * 1_000:.0f} ms, p99 {quantiles(gaps, n=100)[98] * 1_000:.0f} ms")
    assert max(gaps) < 2
    _completed(server, run_id)
