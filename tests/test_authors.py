"""What the author of an agent meets: modules that cannot be loaded, errors in the terminal, code that changes."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import httpx
import psutil
import pytest

from app.dev.authors_log import AuthorsLog
from app.storage.run_store import Principal
from tests.conftest import StackMaker
from tests.harness import AGENTS, ROOT, Stack, eventually, problem
from tests.test_devservices import Dev, running

GOOD = """
    from marshmallow import Schema
    from runtail import agent

    @agent("good", input=Schema)
    def good(run):
        return {"said": "SAID"}
"""
MODULES = {
    "good": GOOD,
    "missing": "import no_such_module",
    "syntax": "def agent(:",
    "leaves": "import sys\nsys.exit('no configuration')",
    "raises": "raise KeyError('MODEL_KEY')",
    "second": GOOD,
}
BROKEN = ("function", "gone", "leaves", "missing", "raises", "second", "syntax")


def distribution(folder: Path, modules: dict[str, str], **more: str) -> str:
    """Make a distribution of agents, as one that is installed; returns the PYTHONPATH that has it.

    :param more: entry points beside those that are named after a module.
    """
    folder.mkdir(exist_ok=True)
    for name, code in modules.items():
        (folder / f"{name}_agents.py").write_text(textwrap.dedent(code))
    info = folder / "authors_agents-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: authors-agents\nVersion: 1.0\n")
    points = {**{name: f"{name}_agents:good" for name in modules}, **more}
    lines = [f"{name} = {value}\n" for name, value in points.items()]
    (info / "entry_points.txt").write_text("".join(["[runtail.agents]\n", *lines]))
    return os.pathsep.join([str(folder), str(AGENTS)])


@pytest.fixture(scope="module")
def server(module_stack: StackMaker, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """A worker some of whose entry points cannot be loaded, each for another reason."""
    more = {"function": "good_agents:agent", "gone": "good_agents:renamed"}
    path = distribution(tmp_path_factory.mktemp("authors"), MODULES, **more)
    stack = module_stack(PYTHONPATH=path, RUNTAIL_DEV="0")
    stack.http.headers["Authorization"] = f"Bearer {stack.services.registry.create_key(Principal('acme', 'ann'))}"
    stack.start_web()
    stack.start_worker()
    return stack


def agents(server: Stack, **headers: str) -> dict[str, dict[str, object]]:
    return {agent["name"]: agent for agent in server.http.get("/agents", headers=headers).json()}


def test_an_entry_point_that_fails_takes_no_other_agent_away(server: Stack) -> None:
    for agent in ("good", "greet"):
        run = server.ended(server.start(agent, {"name": "Ann"} if agent == "greet" else {}))
        assert run["status"] == "completed", run


def test_readiness_names_each_entry_point_that_failed(server: Stack) -> None:
    answer = server.http.get("/readyz")
    assert answer.status_code == 200
    warnings = [warning for warning in answer.json()["warnings"] if "entry point" in warning]
    assert len(warnings) == len(BROKEN)
    assert all(f"{name!r}" in warning for name, warning in zip(BROKEN, warnings, strict=True)), warnings


def test_the_list_of_agents_says_which_failed_and_tells_administrators_why(server: Stack) -> None:
    found = agents(server)
    assert {name for name, agent in found.items() if agent["error"]} == set(BROKEN)
    assert "no_such_module" not in str(found), "a module's error may show paths and settings"
    admin = server.services.registry.create_key(Principal("acme", "root", admin=True))
    told = {name: str(agent["error"]) for name, agent in agents(server, Authorization=f"Bearer {admin}").items()}
    for name, reason in {
        "missing": "No module named 'no_such_module'",
        "syntax": "SyntaxError",
        "leaves": "SystemExit: no configuration",
        "raises": "KeyError: 'MODEL_KEY'",
        "function": "not a function declared with @agent",
        "gone": "has no attribute 'renamed'",
        "second": "'good' has an agent of the name 'good' already",
    }.items():
        assert reason in told[name], told[name]


def test_a_worker_that_ends_takes_its_complaints_with_it(server: Stack, stack: StackMaker, tmp_path: Path) -> None:
    other = stack(PYTHONPATH=distribution(tmp_path / "broken", {"missing": MODULES["missing"]}))
    other.start_web()
    worker = other.start_worker()
    assert agents(other)["missing"]["error"]
    assert worker.stop(signal.SIGTERM) == 0
    assert "missing" not in agents(other), worker.log.read_text()


def test_a_deployment_has_the_demonstration_agents_only_where_it_asks_for_them(stack: StackMaker) -> None:
    deployed = stack(RUNTAIL_DEV="0", DEMO_AGENTS="0")
    deployed.http.headers["Authorization"] = f"Bearer {deployed.services.registry.create_key(Principal('a', 'ann'))}"
    deployed.start_web()
    deployed.start_worker()
    assert {"emit", "support"}.isdisjoint(agents(deployed))
    assert "greet" in agents(deployed)
    for agent in ("emit", "support"):
        problem(deployed.http.post("/runs", json={"agent": agent, "input": {}}), 422, "unknown_agent")


def test_an_agent_can_be_called_by_another_one() -> None:
    code = textwrap.dedent(GOOD) + "\nassert good(None) == {'said': 'SAID'}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_log_of_authors_shows_their_records_whole_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    log = AuthorsLog(path)
    assert log.news() == ""
    when = "2026-11-29 10:00:00,000"
    shown = f"{when} ERROR runtail.agents The agent of run_1 raised.\nTraceback:\nKeyError: 'ä'\n"
    path.write_text(
        f"{when} INFO rq.worker Job OK\nnot a header\n{shown}{when} ERROR workers.janitor.loop broke\nTraceback\n"
    )
    assert log.news() == shown
    with path.open("a") as file:
        file.write(shown[:40])
        file.flush()
        assert log.news() == ""
        file.write(shown[40:])
    assert log.news() == shown
    path.write_text(shown)  # begun anew
    assert log.news() == shown


@pytest.fixture(scope="module")
def authors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the agents are that somebody is writing."""
    return tmp_path_factory.mktemp("writing")


def said(dev: Dev, run_id: str) -> object:
    def output() -> object:
        run = httpx.get(f"{dev.url}/runs/{run_id}").json()
        return run["finished_at"] and (run["output"] or run["error"])

    return eventually(output, 20, "the end of the run")


def start(dev: Dev, agent: str) -> str:
    run_id: str = httpx.post(f"{dev.url}/runs", json={"agent": agent, "input": {}}).raise_for_status().json()["run_id"]
    return run_id


def test_the_terminal_shows_what_agents_raise_and_changed_code_is_executed(authors: Path, tmp_path: Path) -> None:
    raising = GOOD.replace('return {"said": "SAID"}', "raise RuntimeError('the model said no')")
    path = distribution(authors, {"good": raising, "missing": MODULES["missing"]})
    with running(tmp_path / "data", cwd=authors, arguments=("--reload",), PYTHONPATH=f"{path}:{ROOT}") as dev:
        assert "No module named 'no_such_module'" in dev.said()
        said(dev, start(dev, "good"))
        eventually(lambda: "RuntimeError: the model said no" in dev.said(), 5, "the traceback in the terminal")
        assert "raise RuntimeError(" in dev.said(), "with the line that raised"
        (authors / "good_agents.py").write_text(textwrap.dedent(GOOD.replace("SAID", "the second version")))
        eventually(lambda: "good_agents.py changed" in dev.said(), 10, "the line that says so")
        eventually(lambda: said(dev, start(dev, "good")) == {"said": "the second version"}, 30, "the new code")


def test_the_wheel_runs_in_an_empty_folder(tmp_path: Path) -> None:
    source, site, empty = (tmp_path / name for name in ("source", "site", "empty"))
    for folder in (source, empty):
        folder.mkdir()
    for name in ("app", "workers"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    sdk = source / "sdk"
    shutil.copytree(ROOT / "clients" / "python", sdk, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", site, source, sdk], check=True)
    subprocess.run([*pip, "install", "--no-deps", "--target", site, *site.glob("runtail*.whl")], check=True)
    with running(empty / ".data", cwd=empty, PYTHONPATH=str(site)) as dev:
        folders = {psutil.Process(pid).cwd() for name, pid in dev.pids().items() if name in ("web", "worker")}
        assert folders == {str(site)}, "it is the wheel that runs, not the checkout"
        assert httpx.get(f"{dev.url}/").status_code == 200
        input = {"count": 2, "type": "custom.tick"}
        answer = httpx.post(f"{dev.url}/runs", json={"agent": "emit", "input": input})
        assert said(dev, answer.json()["run_id"]) == {"count": 2}
