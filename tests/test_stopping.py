"""Runs that are cancelled, run out of time, or have failed calls made again, whatever they are doing meanwhile."""

import secrets
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psycopg2
import pytest

from app.storage.run_store import RunRecord
from app.verbs.runs import CANCEL_WAIT_SECONDS, Runs
from tests.conftest import StackMaker
from tests.harness import DEV, Process, Stack, eventually
from tests.provider import NEVER_ANSWERS, WAYS, Provider
from tests.stored import PATIENCE_SECONDS, begin, ended, events, payloads, reach, row
from tests.test_worker import check_log

CLOSED_SECONDS = 0.5
"""From a cancel to the end of what the run was waiting for."""
SAMPLES = 5

Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    server = module_stack()
    server.start_web()
    server.start_worker()
    return server


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with Provider().serving() as provider:
        yield provider


def _cancel(server: Stack, run_id: str) -> httpx.Response:
    return server.http.post(f"/runs/{run_id}/cancel")


def _cancelled(server: Stack, run_id: str) -> Events:
    """The run's events once it was cancelled, as they must be."""
    run, found = server.ended(run_id, PATIENCE_SECONDS), server.events(run_id)
    check_log(run, found)
    assert (run["status"], found[-1]["payload"]["reason"]) == ("cancelled", "requested")
    return found


def _failed(server: Stack, run_id: str, code: str, message: str) -> Events:
    run, found = server.ended(run_id), server.events(run_id)
    check_log(run, found)
    assert (run["status"], run["error"]) == ("failed", {"code": code, "message": message})
    return found


def _of(found: Events, type: str) -> Events:
    return [event["payload"] for event in found if event["type"] == type]


# Cancel.


@pytest.mark.parametrize(
    "input", [{"on": "approval"}, {"on": "input"}, {"on": "time", "seconds": 3_600}], ids=lambda input: input["on"]
)
def test_a_waiting_run_ends_in_the_answer_to_its_cancel(server: Stack, input: dict[str, Any]) -> None:
    run_id = server.start("waits_for", input)
    eventually(lambda: server.read(run_id)["status"] == "waiting")
    answer = _cancel(server, run_id)
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    found = _cancelled(server, run_id)
    assert [p["decision"] for p in _of(found, "approval.resolved")] == ["expired"] * (input["on"] == "approval")
    assert "run.resumed" not in [event["type"] for event in found]
    assert server.http.get("/approvals", params={"status": "open"}).json()["approvals"] == []


# Cancel, while nobody executes the run.


@dataclass
class Left:
    """What a worker that is gone has left: its runs by what they were doing, and the folder that is theirs."""

    stack: Stack
    worker: Process
    folder: Path
    mark: str
    """Of the program that it ran."""
    tending: str
    waiting: str
    trying: str


def _leave(stack: Stack, folder: Path, number: int) -> Left:
    worker, mark, calls = stack.start_worker(), _sleeper(), str(folder / "calls")
    begin(stack, "runs_shell", argv=["sleep", mark])
    tending = begin(stack, "tends", count=1, folder=str(folder))
    waiting = begin(stack, "waits_for", on="input")
    trying = begin(stack, "tries", calls=calls, failures=2, retries=5, backoff=4, retryable=True)
    eventually(lambda: _processes(mark), what="the sleeper")
    reach(stack, tending, "tool.started")
    reach(stack, waiting, "run.waiting")
    reach(stack, trying, "tool.failed", times=2)
    worker.stop(number)
    return Left(stack, worker, folder, mark, tending, waiting, trying)


@pytest.fixture(scope="module")
def killed(module_stack: StackMaker, tmp_path_factory: pytest.TempPathFactory) -> Left:
    return _leave(module_stack(), tmp_path_factory.mktemp("killed"), signal.SIGKILL)


@pytest.fixture(scope="module")
def deployed(module_stack: StackMaker, tmp_path_factory: pytest.TempPathFactory) -> Left:
    return _leave(module_stack(), tmp_path_factory.mktemp("deployed"), signal.SIGTERM)


def _cancel_past_the_api(left: Left, run_id: str) -> RunRecord:
    return Runs(left.stack.services).cancel(DEV, run_id)


@pytest.mark.parametrize("fate", ["killed", "deployed"])
def test_the_program_of_a_worker_that_is_gone_is_gone(request: pytest.FixtureRequest, fate: str) -> None:
    left: Left = request.getfixturevalue(fate)
    eventually(lambda: not _processes(left.mark), what="the end of the sleeper")


def test_a_waiting_run_is_cancelled_without_any_worker(deployed: Left) -> None:
    assert row(deployed.stack, deployed.waiting).status == "waiting"
    assert _cancel_past_the_api(deployed, deployed.waiting).status == "cancelled"
    ended(deployed.stack, deployed.waiting, "cancelled")


def test_a_run_that_was_handed_back_is_cancelled_without_any_worker(deployed: Left) -> None:
    assert row(deployed.stack, deployed.tending).status == "pending"
    assert _cancel_past_the_api(deployed, deployed.tending).status == "cancelled"
    ended(deployed.stack, deployed.tending, "cancelled")


def test_a_run_whose_worker_was_killed_is_cancelled_by_the_next_and_not_executed(killed: Left) -> None:
    begun = time.monotonic()
    before = _cancel_past_the_api(killed, killed.tending)  # nobody has found out yet that the owner is gone
    assert time.monotonic() - begun < 2 * CANCEL_WAIT_SECONDS
    assert (before.status, before.cancel_requested) == ("running", True)
    (killed.folder / "gate-0").touch()
    successor = killed.stack.start_worker()
    run = ended(killed.stack, killed.tending, "cancelled")
    assert [call["status"] for call in run.state["tool_calls"]] == ["cancelled"]
    assert not [event for event in events(killed.stack, killed.tending) if event.type in ("run.step", "tool.completed")]
    _recorded_failures_are_not_repeated(killed, successor)


def _recorded_failures_are_not_repeated(killed: Left, successor: Process) -> None:
    run = ended(killed.stack, killed.trying)
    assert (run.output, run.attempt) == ({"result": "done"}, 1)
    calls = _calls(killed.folder / "calls")
    assert [int(pid) for pid, *_ in calls] == [killed.worker.pid, killed.worker.pid, successor.pid]
    assert {key for _, key, _, _ in calls} == {f"{killed.trying}:1"}
    assert len(payloads(killed.stack, killed.trying, "tool.started")) == 3
    assert len(payloads(killed.stack, killed.trying, "tool.failed")) == 2


# Cancel, while it is executed.


@contextmanager
def _checkpoints_stopped(server: Stack) -> Iterator[None]:
    """For the block, a transaction that archives events waits in the middle, its runs locked."""
    with closing(psycopg2.connect(server.env["DATABASE_URL"])) as blocker:
        cursor = blocker.cursor()
        cursor.execute("LOCK TABLE run_events IN SHARE MODE")
        yield
        blocker.rollback()


def _waiting_for_locks(server: Stack) -> int:
    with closing(psycopg2.connect(server.env["DATABASE_URL"])) as connection:
        cursor = connection.cursor()
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return int(cursor.fetchone()[0])


def test_a_cancel_that_comes_during_a_checkpoint_is_heeded_after_it(server: Stack) -> None:
    run_id = server.start("states_facts", {})
    reach(server, run_id, "tool.completed", times=3)
    with ThreadPoolExecutor(1) as pool:
        with _checkpoints_stopped(server):
            eventually(lambda: _waiting_for_locks(server) == 1, what="the checkpoint")
            answer = pool.submit(_cancel, server, run_id)
            eventually(lambda: _waiting_for_locks(server) == 2, what="the cancel, which waits for the checkpoint")
            before = len(events(server, run_id))
            begun = time.monotonic()
        assert answer.result().json()["status"] == "cancelled"
        print(f"cancelled {1_000 * (time.monotonic() - begun):.0f} ms after the checkpoint was let go")
    found = _cancelled(server, run_id)
    assert len(found) > before, "what was being archived is archived"
    calls = row(server, run_id).state["tool_calls"]
    assert len(_of(found, "tool.completed")) >= len(calls) - 1
    assert {call["status"] for call in calls[:-1]} == {"completed"}


@pytest.mark.parametrize("way", WAYS)
def test_a_provider_s_stream_is_closed_at_once(server: Stack, provider: Provider, way: str) -> None:
    took = []
    for _ in range(SAMPLES):
        run_id = server.start("reads_provider", {"url": provider.url(way)})
        took.append(_until_left(provider, lambda run_id=run_id: _cancel(server, run_id)))
        _cancelled(server, run_id)
    print(f"cancel to the end of the connection: median {median(took):.3f} s, worst {max(took):.3f} s")
    assert median(took) <= CLOSED_SECONDS


def _until_left(provider: Provider, stop: Callable[[], object], clients: int = 1) -> float:
    """Seconds from the stop until so many clients had gone; the first one must have been answered before."""
    assert provider.asked.acquire(timeout=20)
    here = len(provider.left)
    begun = time.monotonic()
    stop()
    eventually(lambda: len(provider.left) == here + clients, what="the end of the connection")
    return provider.left[-1] - begun


def _processes(mark: str) -> list[int]:
    """Pids of the processes with that word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:  # gone meanwhile
            continue
    return found


def _sleeper() -> str:
    """A number of seconds that no other process sleeps."""
    return f"1000.{secrets.randbelow(10**9):09}"


def _two_sleepers(mark: str) -> list[str]:
    return ["sh", "-c", f"sleep {mark} & sleep {mark}; true"]


def _runs_both(mark: str) -> None:
    eventually(lambda: len(_processes(mark)) == 2, what="the two sleepers")


def _seconds_to_cancel(server: Stack, run_id: str, mark: str) -> float:
    """Until it has ended, and nothing with that mark runs any more."""
    begun = time.monotonic()
    assert _cancel(server, run_id).json()["status"] == "cancelled"
    eventually(lambda: not _processes(mark), what="the end of the sleepers")
    return time.monotonic() - begun


def test_the_programs_of_a_cancelled_run_are_gone_with_their_children(server: Stack) -> None:
    mark = _sleeper()
    idle = server.start("emit", {"count": 100_000, "interval_ms": 100, "type": "custom.tick"})
    eventually(lambda: server.read(idle)["status"] == "running")
    without = _seconds_to_cancel(server, idle, mark)
    run_id = server.start("runs_shell", {"argv": _two_sleepers(mark)})
    _runs_both(mark)
    took = _seconds_to_cancel(server, run_id, mark)
    _cancelled(server, run_id)
    assert took - without <= 2 * CLOSED_SECONDS, "of its own, beside what any cancel takes on this machine now"


def test_a_program_that_ignores_every_signal_it_can_is_gone_all_the_same(server: Stack) -> None:
    mark = _sleeper()
    run_id = server.start("runs_shell", {"argv": ["sh", "-c", f"trap '' TERM INT HUP; sleep {mark}; sleep {mark}"]})
    eventually(lambda: _processes(mark), what="the sleeper")
    assert _cancel(server, run_id).json()["status"] == "cancelled"
    eventually(lambda: not _processes(mark), what="the end of the sleeper")


def test_whatever_runs_side_by_side_is_stopped_together(server: Stack, provider: Provider) -> None:
    mark = _sleeper()
    run_id = server.start("branches_out", {"argv": _two_sleepers(mark), "url": provider.url(NEVER_ANSWERS)})
    _runs_both(mark)
    eventually(lambda: "tool.completed" in [event["type"] for event in server.events(run_id)])
    took = _until_left(provider, lambda: _cancel(server, run_id))
    eventually(lambda: not _processes(mark), what="the end of the sleepers")
    _cancelled(server, run_id)
    calls = {call["name"]: call["status"] for call in server.read(run_id)["state"]["tool_calls"]}
    assert calls == {"block": "cancelled", "sh": "cancelled", "end": "completed"}
    assert took <= 2 * CLOSED_SECONDS


def test_a_run_that_is_cancelled_between_two_tries_makes_no_other(server: Stack, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    run_id = server.start("tries", {"calls": str(calls), "failures": 9, "retries": 9, "backoff": 30})
    eventually(lambda: "tool.failed" in [event["type"] for event in server.events(run_id)])
    assert _cancel(server, run_id).json()["status"] == "cancelled"
    assert len(_of(_cancelled(server, run_id), "tool.started")) == 1
    assert len(calls.read_text().splitlines()) == 1


# Timeouts.


def test_a_run_past_its_own_timeout_closes_what_it_waits_for(server: Stack, provider: Provider) -> None:
    mark = _sleeper()
    input = {"argv": _two_sleepers(mark), "url": provider.url(NEVER_ANSWERS)}
    run_id = server.start("branches_out", input, timeout_s=2)
    _until_left(provider, lambda: None)
    eventually(lambda: not _processes(mark), what="the end of the sleepers")
    _failed(server, run_id, "timeout", "The run took longer than 2 s.")


@pytest.mark.parametrize("way", ["tool", "branch"])
def test_a_step_past_its_timeout_is_named(server: Stack, way: str) -> None:
    run_id = server.start("is_late", {"way": way, "timeout_s": 0.5})
    found = _failed(server, run_id, "timeout", "The step 'Dawdle' took longer than 0.5 s.")
    steps = {step["title"]: step["status"] for step in server.read(run_id)["state"]["steps"]}
    assert steps["Hurry"] == "completed"
    assert steps["Dawdle"] != "completed"
    assert "custom.survived" not in [event["type"] for event in found]


@pytest.mark.parametrize("times", [1, 3], ids=["once", "for good"])
@pytest.mark.parametrize("limit", ["run", "step"])
def test_an_agent_that_swallows_its_timeout_fails_all_the_same(server: Stack, limit: str, times: int) -> None:
    input = {"way": "stubborn", "times": times, **({"timeout_s": 1} if limit == "step" else {})}
    run_id = server.start("is_late", input, **({"timeout_s": 1} if limit == "run" else {}))
    what = "The run" if limit == "run" else "The step 'Dawdle'"
    found = _failed(server, run_id, "timeout", f"{what} took longer than 1 s.")
    assert "custom.survived" not in [event["type"] for event in found]


def test_waiting_costs_a_step_no_time(server: Stack) -> None:
    run_id = server.start("is_late", {"way": "wait", "timeout_s": 1})
    eventually(lambda: server.read(run_id)["status"] == "waiting")
    time.sleep(1.5)  # longer than the step may take
    (approval,) = server.read(run_id)["state"]["approvals"]
    server.http.post(f"/runs/{run_id}/approvals/{approval['id']}", json={"decision": "approved"})
    assert server.ended(run_id)["output"] == {"survived": True}


def test_a_program_past_its_timeout_is_a_failure_that_the_agent_can_take(server: Stack) -> None:
    mark = _sleeper()
    run_id = server.start("runs_shell", {"argv": _two_sleepers(mark), "timeout_s": 0.5})
    assert server.ended(run_id)["output"] == {"failed": "timeout", "retryable": True}
    assert not _processes(mark)
    (failure,) = _of(server.events(run_id), "tool.failed")
    assert (failure["code"], failure["message"]) == ("timeout", "sh took longer than 0.5 s.")


def test_a_program_that_leaves_a_child_behind_comes_back_with_its_output(server: Stack) -> None:
    mark = _sleeper()
    run_id = server.start("runs_shell", {"argv": ["sh", "-c", f"sleep {mark} & echo out; exit 3"]})
    assert server.ended(run_id)["output"] == {"returncode": 3, "stdout": "out\n"}
    assert not _processes(mark)


# Retries.


def _calls(path: Path) -> list[list[str]]:
    """[pid, idempotency key, tool call id, time] of each call."""
    return [line.split() for line in path.read_text().splitlines()]


@pytest.mark.parametrize("failure", [{}, {"retryable": True}], ids=["unforeseen", "retryable"])
def test_a_failing_call_is_made_again_as_an_entry_of_its_own(
    server: Stack, tmp_path: Path, failure: dict[str, Any]
) -> None:
    path = tmp_path / "calls"
    input = {"calls": str(path), "failures": 2, "retries": 5, "backoff": 0.2, **failure}
    run_id = server.start("tries", input)
    run = server.ended(run_id)
    assert run["output"] == {"result": "done"}
    check_log(run, server.events(run_id))
    calls = _calls(path)
    assert {key for _, key, _, _ in calls} == {f"{run_id}:1"}
    entries = run["state"]["tool_calls"]
    assert [entry["id"] for entry in entries] == [id for _, _, id, _ in calls]
    assert len({entry["id"] for entry in entries}) == 3
    assert [entry["status"] for entry in entries] == ["failed", "failed", "completed"]
    at = [float(moment) for *_, moment in calls]
    assert at[1] - at[0] >= 0.2
    assert at[2] - at[1] >= 0.4


def test_the_last_failure_reaches_the_agent_once_the_policy_is_used_up(server: Stack, tmp_path: Path) -> None:
    path = tmp_path / "calls"
    input = {"calls": str(path), "failures": 9, "retries": 2, "backoff": 0.01, "retryable": True}
    assert server.ended(server.start("tries", input))["output"] == {"failed": "no_luck"}
    assert len(_calls(path)) == 3


def test_a_failure_that_is_final_is_not_tried_again(server: Stack, tmp_path: Path) -> None:
    path = tmp_path / "calls"
    input = {"calls": str(path), "failures": 9, "retries": 5, "backoff": 0.01, "retryable": False}
    run = server.ended(server.start("tries", input))
    assert run["output"] == {"failed": "no_luck"}
    assert len(_calls(path)) == len(run["state"]["tool_calls"]) == 1
