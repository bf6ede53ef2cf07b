"""The README on a bare machine: `make run`, every line that it shows, Ctrl-C."""

import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fresh.conftest import Machine
from tests.harness import ROOT, children_named, eventually, free_port
from tests.programs import needed

INSTALL_SECONDS = 150
STOP_SECONDS = 5
LINES_SECONDS = 60


def blocks(section: str) -> list[str]:
    """The shell lines of a section of the README, block by block."""
    text = (ROOT / "README.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


class Installation:
    """`make run` on the machine, and a terminal beside it: there is no curl on the machine, so it is this machine's."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folder = folder
        self._output = folder / "make-run.log"
        runtail = folder / ".venv" / "bin" / "runtail"
        runtail.parent.mkdir(parents=True)
        there = shlex.join(machine.command("env", f"RUNTAIL_URL={self.url}", ".venv/bin/runtail"))
        runtail.write_text(f'#!/bin/sh\nexec {there} "$@"\n')
        runtail.chmod(0o755)
        with self._output.open("wb") as out:
            command = machine.command("make", "run", f"PORT={self.port}")
            self.process = psutil.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    def said(self) -> str:
        """What the terminal shows."""
        return self._output.read_text()

    def wait_until_ready(self) -> None:
        """Until the greeting is there."""
        eventually(
            lambda: "is ready at" in self.said() or self.process.poll() is not None, INSTALL_SECONDS, "readiness"
        )
        assert self.process.poll() is None, self.said()

    def paste(self, lines: str) -> str:
        """Paste lines of the README into the terminal beside it; returns what they print. A line that fails fails."""
        command = ["bash", "-euo", "pipefail", "-c", lines.replace(":8000", f":{self.port}")]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=LINES_SECONDS)
        assert done.returncode == 0, f"{lines}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def interrupt(self) -> float:
        """Ctrl-C in its terminal; returns the seconds that it took to end."""
        began = time.monotonic()
        for process in children_named(self.process.pid, "make", "runtail"):
            process.send_signal(signal.SIGINT)
        self.process.wait(30)
        return time.monotonic() - began


@pytest.fixture(scope="module")
def installed(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """`make run` until it is ready."""
    needed("curl")
    installation = Installation(machine, tmp_path_factory.mktemp("terminal"))
    try:
        installation.wait_until_ready()
        yield installation
    finally:
        if installation.process.poll() is None:
            installation.process.kill()
        installation.process.wait(30)


def test_the_lines_of_the_readme_work_as_pasted(installed: Installation) -> None:
    commands, start, come_back, follow, _refund = blocks("Try it")
    assert "make run" in commands
    (evidence,) = blocks("Keep the evidence")
    shown = installed.paste("\n".join((start, come_back, follow, evidence)))
    assert shown.count("event: run.completed") == 2, "the stream and its resumption, both to the end"
    assert '"status": "completed"' in shown
    assert "48291" in shown


def test_the_refund_of_the_readme_is_decided_by_the_command_that_it_prints(installed: Installation) -> None:
    *_, refund = blocks("Try it")
    printed = installed.folder / "refund.out"
    with printed.open("wb") as out:
        waiting = subprocess.Popen(["bash", "-c", refund], cwd=installed.folder, stdout=out, stderr=out)
    approve = eventually(lambda: re.search(r"(?:\S*/)?runtail approve \S+ [\w-]+", printed.read_text()), LINES_SECONDS)
    command = approve[0].removeprefix(".venv/bin/")
    installed.paste(f".venv/bin/{command}")
    assert waiting.wait(LINES_SECONDS) == 0, printed.read_text()


def test_the_store_of_the_machine_is_valkey(installed: Installation) -> None:
    for name in ("valkey-server", "postgres"):
        assert children_named(installed.process.pid, name)


def test_an_interrupt_stops_everything(installed: Installation) -> None:
    processes = installed.process.children(recursive=True)
    assert installed.interrupt() <= STOP_SECONDS, installed.said()
    assert not [process for process in processes if process.is_running()]
