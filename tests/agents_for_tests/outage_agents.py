"""Agents that are stopped, run out of time, or lose what they stand on.

What they do outside of their run is a line in a file that the input names; what they wait for is a file that the test
makes.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from marshmallow import INCLUDE, Schema

from runtail import Run, ToolError, agent


class AnyInput(Schema):
    """Whatever the test wants to say."""

    class Meta:
        unknown = INCLUDE


def _note(path: str, line: object) -> None:
    with open(path, "a") as file:
        file.write(f"{line}\n")


def _await(path: str | Path) -> None:
    while not os.path.exists(path):
        time.sleep(0.02)


# What an agent is busy with when it is stopped.


@agent("reads_provider", input=AnyInput)
def reads_provider(run: Run) -> object:
    """Streams what a model provider at `url` sends."""
    run.stream(_provided(run.input["url"]))
    return None


def _provided(url: str) -> Iterator[str]:
    with httpx.stream("GET", url, timeout=None) as answer:
        yield from answer.iter_text()


@agent("runs_shell", input=AnyInput)
def runs_shell(run: Run) -> object:
    """Runs `argv`, for `timeout_s` where it is given; what fails is its output."""
    try:
        done = run.exec(run.input["argv"], timeout_s=run.input.get("timeout_s"))
    except ToolError as error:
        return {"failed": error.code, "retryable": error.retryable}
    return {"returncode": done["returncode"], "stdout": done["stdout"]}


@agent("waits_for", input=AnyInput)
def waits_for(run: Run) -> object:
    """Waits `on` an approval, an input, or for `seconds`; says what came of it."""
    if "calls" in run.input:
        _note(run.input["calls"], os.getpid())
    match run.input["on"]:
        case "approval":
            approval = run.approve("Go on?", expires_in=run.input.get("expires_in"))
            return {"decision": approval.decision}
        case "input":
            return {"texts": run.inputs(wait=True)}
        case _:
            begun = run.now()
            run.sleep(run.input["seconds"])
            return {"slept": (run.now() - begun).total_seconds()}


@agent("branches_out", input=AnyInput)
def branches_out(run: Run) -> object:
    """Side by side: a blocking tool, a program, a provider's stream, and one that has ended."""

    def block(branch: Run) -> None:
        branch.tool("block", time.sleep, 600)

    def execute(branch: Run) -> None:
        branch.exec(run.input["argv"])

    def read(branch: Run) -> None:
        branch.stream(_provided(run.input["url"]))

    def end(branch: Run) -> int:
        return branch.tool("end", int, 1)

    run.parallel(block, execute, read, end)
    return None


@agent("states_facts", input=AnyInput)
def states_facts(run: Run) -> object:
    """One recorded call after the other, for ever."""
    while True:
        run.tool("fact", int, 1)
        time.sleep(0.01)


@agent("is_late", input=AnyInput)
def is_late(run: Run) -> object:
    """Takes too long in the step "Dawdle", in the `way` that it is told; its limit is `timeout_s`."""
    way = run.input["way"]
    with run.step("Hurry", timeout_s=60):
        run.emit("custom.hurried", {})
    with run.step("Dawdle", timeout_s=run.input.get("timeout_s")):
        if way == "tool":
            run.tool("dawdle", time.sleep, 600)
        elif way == "branch":
            run.parallel(lambda branch: branch.sleep(50), lambda branch: branch.emit("custom.beside", {}))
        elif way == "wait":
            run.approve("Go on?")
        elif way == "stubborn":
            _swallow(run.input["times"])
    run.emit("custom.survived", {})
    return {"survived": True}


def _swallow(times: int) -> None:
    for _ in range(times):
        try:
            time.sleep(600)
        except BaseException:  # that is what it is here for
            continue


# Calls that fail, and calls that must not be made twice.


@agent("tries", input=AnyInput)
def tries(run: Run) -> object:
    """A tool that fails `failures` times, by its count of the lines in `calls`, of which each call writes one."""
    calls = run.input["calls"]

    def call() -> str:
        _note(calls, f"{os.getpid()} {run.idempotency_key} {run.tool_call_id} {time.monotonic()}")
        if len(Path(calls).read_text().splitlines()) > run.input["failures"]:
            return "done"
        if "retryable" in run.input:
            raise ToolError("no_luck", "It did not work.", retryable=run.input["retryable"])
        raise ValueError("Nobody has foreseen this.")

    try:
        return {"result": run.tool("try", call, retries=run.input["retries"], backoff=run.input["backoff"])}
    except ToolError as error:
        return {"failed": error.code}


@agent("tends", input=AnyInput)
def tends(run: Run) -> object:
    """Makes `count` recorded calls, each when its gate is there; then asks where it is told to."""
    run.emit("custom.begun", {})
    for n in range(run.input["count"]):
        run.tool("tend", _tend, run.input["folder"], n)
    if run.input.get("ask"):
        return {"decision": run.approve("Is it well?").decision}
    return run.stream(f"word{n} " for n in range(5))


def _tend(folder: str, n: int) -> int:
    _await(Path(folder, f"gate-{n}"))
    _note(f"{folder}/calls", n)
    return n


@agent("says_who", input=AnyInput)
def says_who(run: Run) -> object:
    """Says who executes it, in a recorded call that waits for its own process's gate, or until the gate is there."""
    gate = run.input["gate"]
    _note(f"{gate}.pids", os.getpid())
    if run.input["way"] == "tool":
        return {"pid": run.tool("who", _who, gate), "key": f"{run.id}:1"}
    while not os.path.exists(gate):
        run.emit("custom.pid", {"pid": os.getpid()})
        run.tool("pid", os.getpid)
        time.sleep(0.005)
    return {"pid": os.getpid()}


def _who(gate: str) -> int:
    _await(f"{gate}.{os.getpid()}")
    return os.getpid()


# What is sent while a worker dies.


@agent("hears", input=AnyInput)
def hears(run: Run) -> object:
    """Listens until it hears "end": waiting for each text, or looking for one again and again."""
    return {"texts": _heard(run)}


@agent("asks_then_hears", input=AnyInput)
def asks_then_hears(run: Run) -> object:
    """First asks, then listens."""
    decision = run.approve("May I listen?").decision
    return {"decision": decision, "texts": _heard(run)}


def _heard(run: Run) -> list[str]:
    texts: list[str] = []
    while "end" not in texts:
        texts += run.inputs(wait=run.input["wait"])
        if not run.input["wait"]:
            run.sleep(0.1)
    return texts


@agent("hears_beside", input=AnyInput)
def hears_beside(run: Run) -> object:
    """Waits for a text while another branch is busy until the gate is there."""
    texts, _ = run.parallel(lambda b: b.inputs(wait=True), lambda b: b.tool("busy", _await, run.input["gate"]))
    return {"texts": texts}
