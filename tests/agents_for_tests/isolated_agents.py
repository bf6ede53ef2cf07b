"""Agents that compute, block or die, each in a process of its own; and one that blocks the process that it shares."""

import ctypes
import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from gevent import monkey
from marshmallow import INCLUDE, Schema

from runtail import Run, agent
from runtail.agent import PROCESS

HELPERS = [
    subprocess.Popen(["cat"], stdin=subprocess.PIPE, start_new_session=apart)  # which ends with this process
    for apart in (False, True)
    if "WITH_HELPERS" in os.environ
]


class AnyInput(Schema):
    """Whatever the test wants to say."""

    class Meta:
        unknown = INCLUDE


def _say_pid(run: Run) -> None:
    run.emit("custom.pid", {"pid": os.getpid(), "parent": os.getppid()})


@agent("isolated_words", input=AnyInput, isolation=PROCESS)
def isolated_words(run: Run) -> object:
    """Streams words, `count` of them."""
    _say_pid(run)
    assert not monkey.is_module_patched("time"), "agents find Python as it is"
    assert threading.current_thread() is threading.main_thread()
    return run.stream(f"word{n} " for n in range(run.input.get("count", 3)))


@agent("isolated_raises", input=AnyInput, isolation=PROCESS)
def isolated_raises(run: Run) -> object:
    """Raises."""
    raise RuntimeError("no")


@agent("isolated_spin", input=AnyInput, isolation=PROCESS)
def isolated_spin(run: Run) -> object:
    """Computes for ever, and never calls anybody."""
    _say_pid(run)
    with run.step("Spinning", timeout_s=run.input.get("timeout_s")):
        while True:
            pass


@agent("isolated_hold", input=AnyInput, isolation=PROCESS)
def isolated_hold(run: Run) -> object:
    """Sleeps in C without letting go of the interpreter: no other thread of the process runs."""
    _say_pid(run)
    with run.step("Holding", timeout_s=run.input.get("timeout_s")):
        ctypes.PyDLL(None).sleep(1_000)
    return None


@agent("isolated_block", input=AnyInput, isolation=PROCESS)
def isolated_block(run: Run) -> object:
    """Sleeps, in a tool, with a program of its own beside it."""
    _say_pid(run)
    program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    child = os.fork()
    if child == 0:
        time.sleep(1_000)
        os._exit(0)
    run.emit("custom.children", {"pids": [program.pid, child]})
    run.tool("wait", time.sleep, run.input.get("seconds", 1_000))
    return {"slept": True}


@agent("isolated_dies", input=AnyInput, isolation=PROCESS)
def isolated_dies(run: Run) -> object:
    """Dies in the first `times` attempts, by the `way` given; a recorded tool says how often it was called."""
    log = Path(run.input["log"])
    run.tool("once", lambda: _append(log, "once"))
    _append(log, "attempt")
    if log.read_text().count("attempt") <= run.input.get("times", 1):
        match run.input["way"]:
            case "exit":
                os._exit(0)
            case "kill":
                os.kill(os.getpid(), 9)
            case _:
                ctypes.string_at(0)
    return {"survived": True}


def _append(log: Path, word: str) -> None:
    with log.open("a") as file:
        file.write(f"{word}\n")


@agent("isolated_steady", input=AnyInput, isolation=PROCESS)
def isolated_steady(run: Run) -> object:
    """Ticks until the file `gate` is there; blocking, each time."""
    _say_pid(run)
    for n in itertools.count():
        if run.tool("look", _look, run.input["gate"]):
            return {"ticks": n}
        run.emit("custom.tick", {"n": n})
    return None


def _look(gate: str) -> bool:
    time.sleep(0.02)
    return os.path.exists(gate)


@agent("isolated_asks", input=AnyInput, isolation=PROCESS)
def isolated_asks(run: Run) -> object:
    """Asks for an approval, between two pieces of work."""
    before = run.tool("before", os.getpid)
    approval = run.approve("May it go on?")
    after = run.tool("after", os.getpid)
    return {"before": before, "after": after, "decision": approval.decision, "comment": approval.comment}


@agent("isolated_listens", input=AnyInput, isolation=PROCESS)
def isolated_listens(run: Run) -> object:
    """Looks for inputs until there are `count`, without waiting for them; then waits for one more."""
    heard: list[str] = []
    while len(heard) < run.input["count"]:
        heard += run.inputs()
        time.sleep(0.02)
    return {"heard": heard, "last": run.inputs(wait=True)}


@agent("isolated_everything", input=AnyInput, isolation=PROCESS)
def isolated_everything(run: Run) -> object:
    """Every kind of call once."""
    run.plan(["First"])
    with run.step("First", timeout_s=30) as step:
        step.progress(0.5)
        begun = time.monotonic()
        results = run.parallel(lambda branch: branch.tool("a", _slow, "a"), lambda branch: branch.tool("b", _slow, "b"))
        took = time.monotonic() - begun
    echoed = run.exec(["cat"], input="meow")
    run.sleep(0.01)
    run.check_cancelled()
    run.source("A book")
    run.check("tone", True)
    run.usage(input_tokens=1)
    assert run.now() is not None
    assert 0 <= run.random() < 1
    with run.message() as message:
        message.write("an ")
        message.write("answer")
    return {"results": results, "side_by_side": took < 0.9, "echoed": echoed["stdout"]}


def _slow(name: str) -> str:
    time.sleep(0.5)
    return name


@agent("hog", input=AnyInput)
def hog(run: Run) -> object:
    """Blocks the event loop of the process that it shares, for `seconds`."""
    run.emit("custom.pid", {"pid": os.getpid()})
    run.sleep(0.05)
    if run.input["in_a_branch"]:
        run.parallel(lambda branch: _block_everybody(run.input["seconds"]))
    else:
        _block_everybody(run.input["seconds"])
    return {"done": True}


def _block_everybody(seconds: float) -> None:
    monkey.get_original("time", "sleep")(seconds)
