"""The watchdog: it names what blocks the event loop of a worker, and blames nobody for a process that was stopped."""

import re
import signal
import time

import pytest

from tests.conftest import StackMaker
from tests.harness import Process, eventually
from tests.test_worker import check_log
from workers.watchdog import TURN_SECONDS, Clock

BLOCKED_SECONDS = 20
"""More than three leases."""
STOPPED_SECONDS = 4
STOOD_STILL = re.compile(r"The event loop has stood still for (\d+\.\d) s(?:, in the agent of (run_\w+))?:")
GOES_ON = re.compile(r"The event loop goes on; it stood still for (\d+\.\d) s\.")


@pytest.mark.parametrize("in_a_branch", [False, True], ids=["", "in a branch"])
def test_a_worker_that_an_agent_blocks_loses_none_of_its_other_runs(stack: StackMaker, in_a_branch: bool) -> None:
    server = stack(RUN_TIMEOUT_SECONDS="0")
    server.start_web()
    blocked = server.start_worker()
    others = [server.start("steady", {"count": 40, "interval": 0.1}) for _ in range(20)]
    bad = server.start("hog", {"seconds": BLOCKED_SECONDS, "in_a_branch": in_a_branch})
    eventually(lambda: bad in blocked.log.read_text(), 40, "a word of the watchdog")
    server.start_worker()  # whose janitor would put the runs back
    for run_id in (*others, bad):
        run = server.ended(run_id, 4 * BLOCKED_SECONDS)
        events = server.events(run_id)
        check_log(run, events)
        assert run["status"] == "completed"
        assert run["attempt"] == 1
        assert "run.step" not in [event["type"] for event in events]
    _check_words(blocked, bad)


def _check_words(blocked: Process, bad: str) -> None:
    log = blocked.log.read_text()
    stood_still, goes_on = STOOD_STILL.findall(log), GOES_ON.findall(log)
    of_the_agent = [seconds for seconds, run_id in stood_still if run_id == bad]
    assert len(of_the_agent) == 1, "once for each blockage"
    assert 1 <= float(of_the_agent[0]) < 3
    assert len(goes_on) == len(stood_still)
    assert any(BLOCKED_SECONDS - 1 < float(seconds) < BLOCKED_SECONDS + 2 for seconds in goes_on)
    stack = log[log.index(f"in the agent of {bad}") :]
    assert 0 < stack.index("isolated_agents.py") < stack.index("in _block_everybody") < stack.index("goes on")


def test_a_process_that_was_stopped_is_not_blamed(stack: StackMaker) -> None:
    server = stack()
    server.start_web()
    worker = server.start_worker()
    run_id = server.start("steady", {"count": 30, "interval": 0.2})
    eventually(lambda: server.read(run_id)["status"] == "running")
    worker.send(signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS)
    worker.send(signal.SIGCONT)
    assert server.ended(run_id, 30)["status"] == "completed"
    assert "stood still" not in worker.log.read_text()


class Machine:
    """The clocks that a process sees, moved by hand."""

    def __init__(self) -> None:
        self.passed = self.used = 100.0

    def monotonic(self) -> float:
        return self.passed

    def process_time(self) -> float:
        return self.used


def test_time_counts_in_which_the_process_waited_or_computed_not_in_which_it_was_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = Machine()
    monkeypatch.setattr("workers.watchdog.time", machine)
    clock = Clock()
    for seconds, used, counted in (
        (TURN_SECONDS, 0.0, TURN_SECONDS),
        (TURN_SECONDS, TURN_SECONDS, TURN_SECONDS),
        (3_600, 0.1, 2 * TURN_SECONDS),
        (20, 19.5, 19.5),
    ):
        before = clock.now
        machine.passed += seconds
        machine.used += used
        clock.tick()
        assert clock.now - before == pytest.approx(counted)
