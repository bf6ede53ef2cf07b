"""A run that reaches for its worker's process fails with a sentence; the runs beside it see nothing of it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import StackMaker
from tests.harness import Process, Stack, eventually
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
    "pools_processes",
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
)


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
