"""Agents that use asyncio in a shared worker: each has its own running loop, and nobody else sees it."""

from datetime import datetime

import pytest

from tests.conftest import StackMaker
from tests.harness import Process, Stack, eventually
from tests.speed import timed
from tests.test_worker import check_log

SIDE_BY_SIDE = 10
TRIES = 3
"""A machine that is busy for a second is no fault: ten that wait for one another are slow each time."""
CANCEL_SECONDS = 2.0
"""From a cancel to the end of a run that would never end."""


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    server = module_stack()
    server.start_web()
    return server


@pytest.fixture(scope="module", autouse=True)
def worker(server: Stack) -> Process:
    return server.start_worker()


def side_by_side(server: Stack, way: str) -> float:
    """Ten runs that go the same way complete; the seconds from when the last began to when the last ended."""
    asked = {"way": way, "together": SIDE_BY_SIDE}
    runs = [server.ended(run_id) for run_id in [server.start("in_a_loop", asked) for _ in range(SIDE_BY_SIDE)]]
    assert [(run["status"], run["output"], run["attempt"]) for run in runs] == [("completed", "done", 1)] * SIDE_BY_SIDE
    began, finished = (
        [datetime.fromisoformat(run[name]).timestamp() for run in runs] for name in ("started_at", "finished_at")
    )
    return max(finished) - max(began)


@pytest.mark.parametrize(
    "way", ["runs", "runs_in_a_tool", "runs_sync", "makes_a_loop", "groups", "talks", "blocks_in_a_coroutine"]
)
def test_ten_loops_turn_side_by_side_and_nobody_sees_another_s(server: Stack, worker: Process, way: str) -> None:
    neighbour = server.start("in_a_loop", {"way": "looks_around"})
    eventually(lambda: server.read(neighbour)["status"] == "running")
    took = side_by_side(server, way)
    assert server.ended(neighbour)["output"] == "done"
    if way != "talks":  # which waits for programs, and ends only if ten of them talk at the same time
        fast = took < 2 * side_by_side(server, "sleeps") or any(
            side_by_side(server, way) < 2 * side_by_side(server, "sleeps") for _ in range(TRIES - 1)
        )
        assert fast, "the last to begin waited for no other"
    assert worker.popen.poll() is None


def test_a_call_that_waits_for_the_user_leaves_the_loop_and_comes_back(server: Stack) -> None:
    run_id = server.start("in_a_loop", {"way": "asks_in_a_coroutine"})
    eventually(lambda: server.read(run_id)["status"] == "waiting")
    server.http.post(f"/runs/{run_id}/approvals/apr_1", json={"decision": "approved"}).raise_for_status()
    assert server.ended(run_id)["output"] == "approved"
    check_log(server.read(run_id), server.events(run_id))


def test_a_cancel_ends_a_loop_that_waits(server: Stack) -> None:
    run_id = server.start("in_a_loop", {"way": "never_returns"})
    eventually(lambda: server.read(run_id)["status"] == "running")
    with timed() as cancel:
        server.http.post(f"/runs/{run_id}/cancel").raise_for_status()
        assert server.ended(run_id)["status"] == "cancelled"
        assert cancel.seconds < CANCEL_SECONDS


@pytest.mark.parametrize(
    ("way", "code", "message"),
    [
        ("exits_in_a_task", "agent_error", "SystemExit"),
        ("handles_signals", "needs_isolation", 'isolation="process"'),
        ("changes_the_policy", "needs_isolation", "set_event_loop_policy"),
    ],
)
def test_what_would_reach_the_process_ends_its_run(
    server: Stack, worker: Process, way: str, code: str, message: str
) -> None:
    run = server.ended(server.start("in_a_loop", {"way": way}))
    assert (run["status"], run["error"]["code"]) == ("failed", code)
    assert message in run["error"]["message"]
    assert worker.popen.poll() is None


def test_a_loop_in_a_loop_is_refused_as_everywhere(server: Stack) -> None:
    assert server.ended(server.start("in_a_loop", {"way": "nests"}))["output"] == "done"


def test_an_isolated_run_has_asyncio_as_python_brings_it(server: Stack) -> None:
    isolated = server.start_worker("--isolated")
    run = server.ended(server.start("in_a_loop_apart", {"way": "groups"}))
    assert run["output"] == ["done", "_asyncio"]
    isolated.stop()
