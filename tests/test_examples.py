"""The examples that run in a shell or in node: the very files, as a reader would run them."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.conftest import StackMaker
from tests.harness import ROOT, Stack, children_named, eventually
from tests.programs import needed

CLI = ROOT / "examples" / "cli.sh"
QUESTION = "Where is order 48291?"
INTERRUPTED = 130


class Script:
    """cli.sh in a terminal of its own, so to say: a signal reaches it as Ctrl-C does."""

    def __init__(self, url: str, folder: Path, message: str = QUESTION, **env: str) -> None:
        for program in ("bash", "curl", "jq"):
            needed(program)
        self._files = [folder / name for name in ("stdout", "stderr")]
        with ExitStack() as opened:
            out, err = (opened.enter_context(file.open("wb")) for file in self._files)
            self.popen = subprocess.Popen(
                [str(CLI), message],
                env={**os.environ, "RUNTAIL_URL": url, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def out(self) -> str:
        return self._files[0].read_text()

    @property
    def err(self) -> str:
        return self._files[1].read_text()

    @property
    def run_id(self) -> str:
        """The run that it follows, once it says so."""
        line = eventually(lambda: next((line for line in self.err.splitlines() if "Following" in line), None), 20)
        return line.rpartition(" ")[2]

    def curls(self) -> list[psutil.Process]:
        """Of its children those that have become curl and are still there."""
        return children_named(self.popen.pid, "curl")

    def ctrl_c(self) -> None:
        os.killpg(self.popen.pid, signal.SIGINT)

    def ended(self) -> int:
        return self.popen.wait(30)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    """Starts cli.sh; nothing of it is left afterwards."""
    started: list[Script] = []

    def start(url: str, *arguments: str, **env: str) -> Script:
        started.append(Script(url, tmp_path, *arguments, **env))
        return started[-1]

    yield start
    for script in started:
        if script.popen.poll() is None:
            os.killpg(script.popen.pid, signal.SIGKILL)
            script.popen.wait()


def answer(server: Stack, run_id: str) -> str:
    text: str = server.read(run_id)["state"]["answer"]["text"]
    return text


def test_the_script_prints_the_answer_once_though_its_curl_is_killed_in_the_middle(
    live: Stack, script: Callable[..., Script]
) -> None:
    cli = script(live.url)
    for word in ("Thank", "order"):
        eventually(lambda word=word: word in cli.out, 20, f"{word} of the answer")
        for curl in eventually(cli.curls, what="its curl"):
            curl.kill()
    assert live.read(cli.run_id)["status"] == "running"
    assert cli.ended() == 0
    assert cli.out == answer(live, cli.run_id) + "\n"


def test_ctrl_c_cancels_the_run(live: Stack, script: Callable[..., Script]) -> None:
    cli = script(live.url)
    eventually(lambda: "Thank" in cli.out, 20, "the answer's beginning")
    cli.ctrl_c()
    assert cli.ended() == INTERRUPTED
    assert "The run is " in cli.err
    assert live.ended(cli.run_id)["status"] == "cancelled"


def test_ctrl_c_before_the_run_has_an_id_cancels_it_all_the_same(
    stack: StackMaker, script: Callable[..., Script]
) -> None:
    server = stack()
    web = server.start_web()
    server.start_worker()
    with children_stopped(web.pid):
        cli = script(server.url)
        eventually(cli.curls, what="its POST")
        cli.ctrl_c()
    assert cli.ended() == INTERRUPTED
    runs = server.http.get("/runs").json()["runs"]
    assert "Following" not in cli.err
    assert [server.ended(run["run_id"])["status"] for run in runs] in ([], ["cancelled"])


@contextmanager
def children_stopped(pid: int) -> Iterator[None]:
    """A server that accepts and says nothing for a while."""
    family = [psutil.Process(pid), *psutil.Process(pid).children()]
    for process in family:
        process.suspend()
    yield
    for process in family:
        process.resume()


def test_the_script_says_why_it_was_refused(live: Stack, script: Callable[..., Script]) -> None:
    cli = script(live.url, RUNTAIL_KEY="unknown")
    assert cli.ended() == 1
    assert "The API key is not known." in cli.err
    assert cli.out == ""


def test_shellcheck_has_nothing_to_say() -> None:
    subprocess.run([needed("shellcheck"), CLI], check=True)
