"""Agents that can be held at any point while what has happened to their run is looked at, or while it is taken away.

`hold` names the point, `gate` a file: the agent stays there until the file exists. What its tools do stands in
`{gate}.effects`, a line each.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

from misbehaving_agents import AnyInput

from runtail import Run, ToolError, agent


class Stage:
    """Where an agent is."""

    def __init__(self, run: Run) -> None:
        self.hold = run.input.get("hold")
        self.gate = run.input["gate"]

    def point(self, name: str) -> None:
        if name == self.hold:
            self.leave("reached", name)
            while not os.path.exists(self.gate):
                time.sleep(0.01)

    def effect(self, name: str, *about: object) -> str:
        self.leave("effects", " ".join(map(str, (name, *about))))
        return name

    def rows(self, name: str, count: int) -> list[dict[str, object]]:
        self.effect(name)
        return [{"n": n, "third": n / 3, "nothing": None, "token": "abc"} for n in range(count)]

    def leave(self, where: str, line: str) -> None:
        with open(f"{self.gate}.{where}", "a") as file:
            file.write(f"{line}\n")


@agent("everything", input=AnyInput)
def everything(run: Run) -> object:
    """Every call, with a point between any two and inside those that can be interrupted."""
    stage = Stage(run)
    point = stage.point
    point("start")
    run.plan(["First", "Second"])
    point("planned")
    with run.step("First") as step:
        step.progress(0.5, "half")
        point("in_step")
        run.tool("one", stage.effect, "one", summary={"n": 1})
        point("after_tool")
        run.tool("keyed", _keyed, run, stage)
        _failing(run, stage)
    run.progress(0.1)
    run.source("A book")
    run.check("tone", True)
    point("evidence")
    run.usage(input_tokens=3)
    run.emit("custom.note", {"n": 1})
    began, number = run.now(), run.random()
    point("drawn")
    with run.message("system") as message:
        message.write("half ")
        point("in_message")
        message.write("and half")
    point("after_message")
    run.sleep(0.01)
    branches = run.parallel(
        lambda branch: _branch(branch, stage, "left"), lambda branch: _branch(branch, stage, "right")
    )
    point("joined")
    text = run.stream(_words(run, stage))
    try:
        run.stream(_broken(stage))
    except ToolError as error:
        run.emit("custom.broken", {"code": error.code})
    point("end")
    return {"began": began.isoformat(), "number": number, "branches": branches, "text": text}


def _keyed(run: Run, stage: Stage) -> str:
    run.progress(0.5, "under way")
    stage.effect("keyed", run.tool_call_id, run.idempotency_key)
    stage.point("in_tool")
    run.emit("custom.inside", {})
    return run.tool("inner", stage.effect, "inner")


def _failing(run: Run, stage: Stage) -> None:
    def fail() -> None:
        stage.effect("failing", run.idempotency_key)
        raise ToolError("busy", "Not now.", retryable=True)

    try:
        run.tool("failing", fail, retries=1, backoff=0.01)
    except ToolError as error:
        run.emit("custom.failed", {"error": [error.code, error.detail, error.retryable]})
    stage.point("failed")


def _branch(run: Run, stage: Stage, side: str) -> str:
    if side == "left":
        run.sleep(0.02)
    run.emit("custom.side", {"side": side})
    found = run.tool(side, stage.effect, side)
    stage.point(f"in_{side}")
    run.source(side)
    return found


def _words(run: Run, stage: Stage) -> Iterator[str]:
    stage.leave("effects", "streamed")
    for n in range(5):
        run.progress(n / 5)
        if n == 3:
            stage.point("in_stream")
        yield f"word{n} "
    run.usage(output_tokens=5)


def _broken(stage: Stage) -> Iterator[str]:
    stage.leave("effects", "broken")
    yield "half a sen"
    raise ConnectionError("the provider is gone")


@agent("another_text", input=AnyInput)
def another_text(run: Run) -> object:
    """Returns another text than it has streamed, held in the middle of saying it by whoever takes the run away."""
    stage = Stage(run)
    run.stream(["first, ", "second"])
    run.tool("last", stage.effect, "last")
    return "x" * run.input["chars"]


@agent("says_sorry", input=AnyInput)
def says_sorry(run: Run) -> object:
    """Catches what broke its stream, and returns another text, or what had come of it."""
    stage = Stage(run)
    with contextlib.suppress(ToolError):
        run.stream(_broken(stage))
    return "half a sen" if run.input["chars"] == 0 else "sorry"


# What waits.


@agent("asks", input=AnyInput)
def asks(run: Run) -> object:
    """Asks for an approval between two tools; `both`: for two at once."""
    stage = Stage(run)
    run.tool("before", stage.effect, "before")
    stage.point("before")
    options: dict[str, Any] = {
        "requires": run.input.get("requires", "owner"),
        "expires_in": run.input.get("expires_in"),
    }
    if run.input.get("both"):
        answers = run.parallel(
            lambda branch: branch.approve("Left?", **options).decision,
            lambda branch: branch.approve("Right?", **options).decision,
        )
    else:
        with run.step("Ask"), run.message() as message:
            message.write("I ask. ")
            approval = run.approve("Go on?", **options)
            message.write("They answered.")
        answers = [approval.decision, approval.by, approval.comment]
    stage.point("after")
    run.tool("after", stage.effect, "after")
    return {"answers": answers}


@agent("swallows", input=AnyInput)
def swallows(run: Run) -> object:
    """Catches what is to suspend it, and goes on as if it had been approved."""
    try:
        run.approve("May I?")
    except BaseException:
        Stage(run).effect("swallowed")
    if run.input.get("call"):
        run.emit("custom.went_on", {})
    return {"went": "on"}


@agent("sleeps_long", input=AnyInput)
def sleeps_long(run: Run) -> object:
    """Sleeps for `seconds`, and says how long it thinks it took."""
    began = run.now()
    run.sleep(run.input["seconds"])
    return {"slept": (run.now() - began).total_seconds()}


@agent("chats", input=AnyInput)
def chats(run: Run) -> object:
    """Repeats what it is sent until that is "bye"."""
    heard: list[str] = []
    while "bye" not in heard:
        new = run.inputs(wait=True)
        heard += new
        run.stream(f"{text}! " for text in new)
        Stage(run).point(f"heard {len(heard)}")
    return {"heard": heard, "more": run.inputs()}


# What does not repeat itself.


@agent("fickle", input=AnyInput)
def fickle(run: Run) -> object:
    """Does other things when it is called again, in the `way` that is asked for."""
    stage, way = Stage(run), run.input["way"]
    again = os.path.exists(f"{stage.gate}.effects")
    if way == "other_name":
        run.tool("second" if again else "first", stage.effect, "first")
    elif way == "other_arguments":
        run.tool("first", stage.effect, "second" if again else "first")
    elif way == "other_call" and again:
        run.random()
    elif way == "other_event":
        run.source("A book") if again else run.check("tone", True)
    elif way == "other_custom":
        run.emit("custom.b" if again else "custom.a", {})
    elif way == "other_text":
        with run.message() as message:
            message.write("second" if again else "first")
    elif not again or way == "other_call":
        run.tool("first", stage.effect, "first")
    stage.leave("effects", "called")
    try:
        run.random()
    except Exception as error:  # an agent that shrugs it off is stopped all the same
        stage.effect("caught", type(error).__name__)
    stage.point("middle")
    return {"done": True}


VERSION = os.environ.get("TEST_AGENT_VERSION", "1")


def _versioned(run: Run) -> object:
    stage = Stage(run)
    run.tool("one", stage.effect, "one")
    with run.message() as message:
        message.write(f"by {VERSION}")
    run.approve("Go on?")
    if VERSION != "1":
        run.emit("custom.new", {"version": VERSION})
    return {"version": VERSION, "random": run.random()}


resumes = agent("resumes", input=AnyInput, version=VERSION)(_versioned)
restarts = agent("restarts", input=AnyInput, version=VERSION, on_version_change="restart")(_versioned)
refuses = agent("refuses", input=AnyInput, version=VERSION, on_version_change="fail")(_versioned)


@agent("calls_only", input=AnyInput)
def calls_only(run: Run) -> object:
    """Turns of a model in which it says nothing: it only calls tools. It says something once, before or after."""
    if run.input["says"] == "first":
        run.stream(["Here it is."])
    run.stream([])
    run.stream(["", ""])
    with run.message() as message:
        message.write("")
    run.tool("lookup", str, 1)
    with contextlib.suppress(ToolError), run.message():
        run.tool("fails", int, "x")
    run.approve("Go on?")  # and then again from the top
    run.stream(iter(()))
    return "Here it is." if run.input["says"] == "last" else None
