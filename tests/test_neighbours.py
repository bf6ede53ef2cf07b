"""A run that reaches for its worker's process fails with a sentence; the runs beside it see nothing of it."""

import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import StackMaker
from tests.harness import ROOT, Process, Stack, eventually
from tests.test_worker import check_log

FORKS = (
    "forks",
    "forks_in_a_tool",
    "forks_by_name",
    "forks_with_the_original",
    "forks_by_gevent",
    "forks_a_terminal",
    "forks_by_pty",
    "forks_in_a_thread",
    "forks_in_a_native_thread",
    "forks_by_ctypes",
    "spawns_by_os",
    "multiprocesses",
    "multiprocesses_by_spawning",
    "pools_processes",
    "pools_processes_by_a_server",
    "becomes_another_program",
)
SIGNALS = (
    "sets_an_alarm",
    "sets_an_alarm_in_a_tool",
    "sets_an_alarm_in_a_native_thread",
    "sets_an_alarm_by_name",
    "sets_a_timer",
    "ignores_sigterm",
    "handles_sigint",
    "handles_the_end_of_children",
    "sets_an_alarm_by_ctypes",
    "handles_by_gevent",
    "blocks_sigterm",
    "takes_the_wakeup",
    "interrupts_calls",
    "waits_for_a_signal",
    "terminates_itself",
    "hangs_itself_up_by_name",
    "interrupts_itself",
    "terminates_its_group",
    "terminates_a_thread",
    "terminates_by_descriptor",
    "interrupts_the_main_thread",
    "dumps_and_exits",
    "limits_its_cpu",
)
EXITS = {
    "exits": "SystemExit",
    "exits_in_a_tool": "SystemExit",
    "exits_in_a_branch": "SystemExit",
    "exits_in_a_stream": "SystemExit",
    "exits_in_a_greenlet": "SystemExit",
    "exits_in_a_greenlet_of_a_greenlet": "SystemExit",
    "exits_in_a_bare_thread": "SystemExit",
    "interrupts_in_a_greenlet": "KeyboardInterrupt",
    "interrupts_in_a_link": "KeyboardInterrupt",
    "breaks_in_a_greenlet": "SystemError",
}
HARMLESS = (
    "calls_back_from_the_loop",
    "exits_in_a_raw_greenlet",
    "exits_in_a_thread",
    "kills_a_greenlet",
    "catches_the_refusal",
    "starts_programs",
    "prepares_a_program",
    "shares_memory",
)


PROGRAMS = 6
"""That sleep, once `leaves_programs_behind` has started them."""
DAEMONS = 2
"""That sleep, once `leaves_daemons_behind` has started them."""


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    server = module_stack()
    server.start_web()
    return server


@pytest.fixture(scope="module")
def worker(server: Stack) -> Process:
    return server.start_worker()


@pytest.fixture(scope="module")
def isolated(server: Stack) -> Process:
    return server.start_worker("--isolated")


class Beside:
    """A run that calls one tool after the other while others do harm."""

    def __init__(self, server: Stack, worker: Process, folder: Path) -> None:
        self._server, self._worker = server, worker
        self._calls, self._enough = folder / "calls", folder / "enough"
        self._run_id = server.start("counts", {"calls": str(self._calls), "enough": str(self._enough)})
        eventually(self._calls.exists)

    def goes_on(self) -> None:
        """It is executed by the one worker, calls tools after this moment too, and has called each of them once."""
        before = len(self._made())
        eventually(lambda: len(self._made()) > before, what="another call of the run beside")
        made = self._made()
        assert made == [f"{n} {self._worker.pid}" for n in range(len(made))]
        assert self._worker.popen.poll() is None

    def ends(self) -> None:
        """It completes, at its first attempt."""
        self._enough.touch()
        run = self._server.ended(self._run_id)
        assert (run["status"], run["attempt"], run["output"]) == ("completed", 1, {"pid": self._worker.pid})

    def _made(self) -> list[str]:
        return self._calls.read_text().rpartition("\n")[0].splitlines()


@pytest.fixture(scope="module")
def beside(server: Stack, worker: Process, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    beside = Beside(server, worker, tmp_path_factory.mktemp("beside"))
    yield beside
    beside.ends()


@pytest.mark.parametrize("way", FORKS + SIGNALS)
def test_what_would_reach_the_whole_process_is_refused_with_a_way_out(server: Stack, beside: Beside, way: str) -> None:
    run = server.ended(server.start("harm", {"way": way}))
    assert (run["status"], run["error"]["code"]) == ("failed", "needs_isolation"), run
    assert 'isolation="process"' in run["error"]["message"]
    check_log(run, server.events(run["run_id"]))
    beside.goes_on()


@pytest.mark.parametrize("way", EXITS)
def test_an_exit_is_the_end_of_its_run_alone(server: Stack, beside: Beside, way: str) -> None:
    run = server.ended(server.start("harm", {"way": way}))
    assert (run["status"], run["error"]["code"]) == ("failed", "agent_error"), run
    assert EXITS[way] in run["error"]["message"]
    assert "secret" not in str(run)
    check_log(run, server.events(run["run_id"]))
    beside.goes_on()


@pytest.mark.parametrize("way", HARMLESS)
def test_what_harms_nobody_goes_on_working(server: Stack, beside: Beside, way: str) -> None:
    run = server.ended(server.start("harm", {"way": way}))
    assert (run["status"], run["output"]) == ("completed", "went on"), run
    beside.goes_on()


def test_a_worker_whose_agents_did_all_of_that_drains(stack: StackMaker) -> None:
    server = stack()
    server.start_web()
    worker = server.start_worker()
    runs = [server.start("harm", {"way": way}) for way in ("ignores_sigterm", "blocks_sigterm", "exits_in_a_greenlet")]
    for run_id in runs:
        server.ended(run_id)
    assert worker.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("way", ["forks", "multiprocesses", "pools_processes", "ignores_sigterm", "starts_programs"])
def test_in_a_process_of_its_own_a_run_may_do_all_of_that(server: Stack, isolated: Process, way: str) -> None:
    run = server.ended(server.start("harm_apart", {"way": way}))
    assert run["status"] == "completed", run
    assert isolated.popen.poll() is None


def _programs(mark: str) -> list[psutil.Process]:
    return [process for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or [])]


def _started(server: Stack, mark: str, seconds: int) -> str:
    run_id = server.start("harm", {"way": "leaves_programs_behind", "mark": mark, "seconds": seconds})
    eventually(lambda: "custom.started" in [event["type"] for event in server.events(run_id)])
    eventually(lambda: len(_programs(mark)) == PROGRAMS, what="the start of the programs")
    return run_id


@pytest.mark.parametrize("how", ["completed", "cancelled"])
def test_programs_that_an_agent_leaves_behind_end_with_its_run(
    server: Stack, worker: Process, beside: Beside, how: str
) -> None:
    mark, other = f"1000.{secrets.randbelow(10**6):06}", f"2000.{secrets.randbelow(10**6):06}"
    neighbour = _started(server, other, 60)
    run_id = _started(server, mark, 60 if how == "cancelled" else 1)
    if how == "cancelled":
        server.http.post(f"/runs/{run_id}/cancel").raise_for_status()
    assert server.ended(run_id)["status"] == how
    eventually(lambda: not _programs(mark), what="the end of the programs")
    assert len(_programs(other)) == PROGRAMS, "a neighbour's go on"
    server.http.post(f"/runs/{neighbour}/cancel").raise_for_status()
    eventually(lambda: not _programs(other), what="the end of the neighbour's programs")
    beside.goes_on()


REMEMBERS = """
import gevent.subprocess
from gevent.subprocess import DEVNULL
from workers.execution.leftovers import Leftovers

leftovers = Leftovers()

def start(*command):
    program = gevent.subprocess.Popen(command, stdout=DEVNULL, stderr=DEVNULL)
    leftovers.add_program(program.pid)
    return program

running = [start("sleep", "60") for _ in range(3)]
for way in ("true", "false") * 10:
    start(way).wait()
    assert len(leftovers._programs) <= len(running) + 1, leftovers._programs
for _ in range(10):  # these have ended before it is told of them
    ended = gevent.subprocess.Popen(["true"])
    ended.wait()
    leftovers.add_program(ended.pid)
    assert len(leftovers._programs) <= len(running) + 1, leftovers._programs
leftovers.end_programs()
assert [program.wait() for program in running] == [-9] * 3
"""
"""In a process of its own: gevent's loop takes the ends of all children."""


def test_programs_that_have_ended_are_not_remembered_until_the_run_ends() -> None:
    done = subprocess.run([sys.executable, "-c", REMEMBERS], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["completed", "cancelled"])
def test_daemons_of_an_isolated_run_end_with_it(server: Stack, isolated: Process, how: str) -> None:
    mark = f"4000.{secrets.randbelow(10**6):06}"
    seconds = 60 if how == "cancelled" else 1
    run_id = server.start("harm_apart", {"way": "leaves_daemons_behind", "mark": mark, "seconds": seconds})
    eventually(lambda: "custom.started" in [event["type"] for event in server.events(run_id)])
    eventually(lambda: len(_programs(mark)) == DAEMONS, what="the start of the daemons")
    if how == "cancelled":
        server.http.post(f"/runs/{run_id}/cancel").raise_for_status()
    assert server.ended(run_id)["status"] == how
    eventually(lambda: not _programs(mark), what="the end of the daemons")
    assert isolated.popen.poll() is None


def test_programs_that_an_agent_has_started_end_with_a_worker_that_is_killed(stack: StackMaker) -> None:
    server = stack()
    server.start_web()
    worker, mark = server.start_worker(), f"3000.{secrets.randbelow(10**6):06}"
    server.start("harm", {"way": "starts_one_program", "mark": mark})
    eventually(lambda: _programs(mark), what="the start of the program")
    worker.kill()
    eventually(lambda: not _programs(mark), what="the end of the program")


@pytest.mark.parametrize("how", ["completed", "cancelled"])
def test_threads_that_go_on_after_their_run_are_counted_in_the_log(server: Stack, worker: Process, how: str) -> None:
    seconds = 20 if how == "cancelled" else 0.1
    run_id = server.start("harm", {"way": "leaves_threads_behind", "seconds": seconds})
    eventually(lambda: server.read(run_id)["status"] != "pending")
    if how == "cancelled":
        time.sleep(0.5)
        server.http.post(f"/runs/{run_id}/cancel").raise_for_status()
    assert server.ended(run_id)["status"] == how
    count = 4 + (how == "cancelled")
    told = f"{run_id} has ended here, but {count} threads or greenlets that it started go on."
    eventually(lambda: told in worker.log.read_text(), what=told)
