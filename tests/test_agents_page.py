"""docs/agents.md does what it says: its agents are installed as a package and run by a real `runtail dev`."""

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from runtail import Run
from tests.harness import ROOT, eventually
from tests.programs import needed
from tests.test_devservices import READY_SECONDS, Dev, running

PAGE = (ROOT / "docs" / "agents.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
TESTS = "# test_desk.py\n"
"""Begins the blocks that are the author's tests."""
MODULE = [code for language, code in BLOCKS if language == "python" and not code.startswith(TESTS)]
GROUP = "runtail.agents"
CLOSED_SECONDS = 1.0


class Example(NamedTuple):
    """Shell lines of the page, and what it says they print."""

    shell: str
    printed: str


def examples() -> Iterator[Example]:
    for (language, text), (following, printed) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if language == "sh":
            assert following == "text", f"The page does not say what this prints:\n{text}"
            yield Example(text, printed)


def entry_points() -> dict[str, dict[str, str]]:
    """Those of the page, by group."""
    declared = [tomllib.loads(text)["project"]["entry-points"] for language, text in BLOCKS if language == "toml"]
    return {group: points for groups in declared for group, points in groups.items()}


def says(printed: str) -> re.Pattern[str]:
    """Matches what is printed: `…` stands for anything, and indentation does not count."""
    return re.compile(".*?".join(re.escape(part) for part in flat(printed).split("…")), re.DOTALL)


def flat(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())


class Provider:
    """Answers a request with one word and then nothing more; tells when the connection is closed."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}/answers"

    def answer(self) -> socket.socket:
        """Take the next request and begin its answer."""
        self._listening.settimeout(READY_SECONDS)
        connection, _ = self._listening.accept()
        connection.settimeout(READY_SECONDS)
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000000\r\n\r\nReturns ")
        return connection


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield Provider(listening)


class Desk:
    """The page's package, installed beside a running Runtail."""

    def __init__(self, folder: Path, dev: Dev, settings: dict[str, str]) -> None:
        self.folder = folder
        self.dev = dev
        self.http = httpx.Client(base_url=dev.url, timeout=30)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._env = {**os.environ, **settings, "PATH": path, "RUNTAIL_URL": dev.url, "DATA": str(dev.data)}

    def call(self, *command: str) -> str:
        """What a command prints; its exit code does not count."""
        done = subprocess.run(
            command, env=self._env, cwd=self.folder, text=True, timeout=120, stdout=subprocess.PIPE, stderr=None
        )
        return done.stdout

    def start(self, agent: str, **input: str) -> str:
        answer = self.http.post("/runs", json={"agent": agent, "input": input})
        run_id: str = answer.raise_for_status().json()["run_id"]
        return run_id

    def reaches(self, run_id: str, *statuses: str) -> dict[str, object]:
        def reached() -> dict[str, object] | None:
            run: dict[str, object] = self.http.get(f"/runs/{run_id}").json()
            return run if run["status"] in statuses else None

        return eventually(reached, READY_SECONDS, f"{' or '.join(statuses)} of {run_id}")


def install(folder: Path) -> None:
    """What `pip install` leaves of a package with the page's module and entry points."""
    (folder / "desk.py").write_text("\n\n".join(MODULE))
    tests = [code for language, code in BLOCKS if language == "python" and code.startswith(TESTS)]
    (folder / "test_desk.py").write_text("\n\n".join(tests))
    metadata = folder / "desk-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: desk\nVersion: 1.0\n")
    declared = ""
    for group, points in entry_points().items():
        declared += f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    (metadata / "entry_points.txt").write_text(declared)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, provider: Provider) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    install(folder)
    settings = {"PYTHONPATH": str(folder), "BANK": str(folder / "bank.db"), "PROVIDER": provider.url}
    with running(folder / "data", **settings) as dev:
        desk = Desk(folder, dev, settings)
        yield desk
        desk.http.close()


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example.shell.splitlines()[0])
def test_the_shell_lines_print_what_the_page_says(desk: Desk, example: Example) -> None:
    shell = example.shell.replace("http://127.0.0.1:8000", desk.dev.url)
    if "curl " in shell:
        needed("curl")
    printed = flat(desk.call("bash", "-c", shell))
    assert says(example.printed).fullmatch(printed), f"{shell}\nprinted:\n{printed}\nnot:\n{example.printed}"


def test_the_first_agent_has_ten_lines() -> None:
    lines = [line for line in MODULE[1].splitlines() if line.strip()]
    assert len(lines) == 10


def test_the_page_registers_each_of_its_agents(desk: Desk) -> None:
    declared = re.findall(r'^@agent\("(\w+)"', "\n".join(MODULE), re.MULTILINE)
    assert sorted(entry_points()[GROUP]) == sorted(declared)
    registered = {agent["name"] for agent in desk.http.get("/agents").json()}
    assert registered >= set(declared)


def test_the_authors_tests_pass(desk: Desk) -> None:
    said = desk.call(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_desk.py")
    assert re.search(r"^3 passed", said, re.MULTILINE), said


def test_a_cancel_closes_the_connection_to_the_provider(desk: Desk, provider: Provider) -> None:
    run_id = desk.start("ask", question="What about returns?")
    with provider.answer() as connection:
        eventually(lambda: desk.http.get(f"/runs/{run_id}").json()["state"]["answer"]["text"], what="a first word")
        desk.http.post(f"/runs/{run_id}/cancel").raise_for_status()
        connection.settimeout(CLOSED_SECONDS)
        while connection.recv(65_536):  # what is left of the request; then it is closed, or this times out
            pass
    assert desk.reaches(run_id, "cancelled")["error"] is None


def test_a_run_of_another_version_fails_where_the_agent_says_so(desk: Desk) -> None:
    run_id = desk.start("review")
    desk.reaches(run_id, "waiting")
    module = desk.folder / "desk.py"
    module.write_text(module.read_text().replace('version="1", on_version_change', 'version="2", on_version_change'))
    worker = desk.dev.pids()["worker"]
    os.kill(worker, signal.SIGTERM)
    eventually(lambda: version(desk, "review") == "2", READY_SECONDS, "the worker with the new version")
    desk.http.post(f"/runs/{run_id}/approvals/apr_2", json={"decision": "approved"}).raise_for_status()
    error = desk.reaches(run_id, "failed", "completed")["error"]
    assert isinstance(error, dict)
    assert error["code"] == "agent_changed"


def version(desk: Desk, name: str) -> str:
    (found,) = [agent["version"] for agent in desk.http.get("/agents").json() if agent["name"] == name]
    return str(found)


def section(heading: str) -> str:
    return PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_every_call_is_in_the_table_and_the_page_names_no_other() -> None:
    internal = {"active", "answered", "replace_answer"}
    public = {name for name in dir(Run) if not name.startswith("_")} - internal
    attributes = {"input"}
    assert public - {"idempotency_key", "tool_call_id"} <= set(
        re.findall(r"`(?:with )?run\.(\w+)", section("The calls"))
    )
    assert set(re.findall(r"\brun\.(\w+)", PAGE)) <= public | attributes


@pytest.mark.parametrize("name", ["tool", "exec", "step", "approve", "inputs", "source", "check"])
def test_the_table_names_only_parameters_that_the_call_has(name: str) -> None:
    (given,) = re.findall(rf"`(?:with )?run\.{name}\((.*?)\)`", section("The calls"))
    words = {part.partition("=")[0].strip(" *") for part in given.split(",")}
    assert words <= set(inspect.signature(getattr(Run, name)).parameters), textwrap.shorten(given, 80)
