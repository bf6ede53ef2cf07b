"""Agents that workers of the tests load by their entry points: each does one thing that an author may do wrong."""

import ctypes
import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gevent import monkey
from greenlet import GreenletExit
from marshmallow import INCLUDE, Schema, fields

from runtail import Run, ToolError, agent, emit

SECRET = "the-password-is-hunter2"


class AnyInput(Schema):
    """Whatever the test wants to say."""

    class Meta:
        unknown = INCLUDE


class WayInput(AnyInput):
    """Which of WAYS to go."""

    way = fields.String(required=True)


# What ends badly.


def raises(run: Run) -> object:
    raise RuntimeError(SECRET)


def raises_in_tool(run: Run) -> object:
    def tool() -> None:
        raise ValueError(SECRET)

    return run.tool("broken", tool)


def raises_its_own_code(run: Run) -> object:
    def tool() -> None:
        raise ToolError("no_stock", "The shelf is empty.", retryable=True)

    with run.step("Look"):
        return run.tool("stock", tool)


def system_exit(run: Run) -> object:
    raise SystemExit(SECRET)


def system_exit_in_tool(run: Run) -> object:
    def tool() -> None:
        raise SystemExit(SECRET)

    return run.tool("quit", tool)


def keyboard_interrupt(run: Run) -> object:
    raise KeyboardInterrupt(SECRET)


def greenlet_exit(run: Run) -> object:
    raise GreenletExit(SECRET)


def own_interruption(run: Run) -> object:
    from workers.execution.interrupts import Cancelled

    raise Cancelled(SECRET)


def recursion(run: Run) -> object:
    return recursion(run)


# What is returned.


def nan(run: Run) -> object:
    return {"score": float("nan")}


def huge_integer(run: Run) -> object:
    return {"n": 2**53}


def raw_bytes(run: Run) -> object:
    return b"bytes"


def an_object(run: Run) -> object:
    return {"made": object()}


def key_not_text(run: Run) -> object:
    return {1: "one"}


def too_deep(run: Run) -> object:
    value: list[Any] = []
    for _ in range(100):
        value = [value]
    return value


def contains_itself(run: Run) -> object:
    value: dict[str, Any] = {}
    value["me"] = value
    return value


def too_large(run: Run) -> object:
    return {"text": "x" * 3_000_000}


def other_text(run: Run) -> object:
    run.stream(["what was ", "streamed"])
    return "what was returned"


def in_threads(run: Run) -> object:
    """A tool that does its work in threads, within a step."""

    def work() -> list[str]:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run.progress, [0.25]))
            return list(pool.map(lambda _: run.idempotency_key, range(3)))

    with run.step("Step"):
        return {"keys": run.tool("work", work)}


def overlapping_steps(run: Run) -> object:
    """Steps of two generators, of which the first ends first."""

    def step(title: str) -> Iterator[None]:
        with run.step(title):
            yield

    first, second = step("First"), step("Second")
    next(first)
    next(second)
    list(first)
    run.tool("in_second", str)
    list(second)
    run.tool("outside", str)
    return None


def two_texts(run: Run) -> object:
    return run.stream(["one ", "text, "]) + run.stream(["another"])


def header_and_text(run: Run) -> object:
    return "Report: " + run.stream(["the text"])


def stripped_text(run: Run) -> object:
    return run.stream([" the text\n"]).strip()


def no_text(run: Run) -> object:
    run.stream(["something"])
    return ""


def long_text(run: Run) -> object:
    return run.stream("some words é " * 1_000 for _ in range(200))


def long_text_only(run: Run) -> object:
    return "some words é " * 200_000


def long_stream(run: Run) -> object:
    run.stream("some words é " * 1_000 for _ in range(200))
    return None


def much_plain(run: Run) -> object:
    return "x" * 2_000_000


def much_control(run: Run) -> object:
    return run.stream(["\x01" * 250_000, "\x02" * 250_000])


def much_separators(run: Run) -> object:
    with run.message() as message:
        message.write("\u2028" * 500_000)
    return None


def much_trucks(run: Run) -> object:
    return run.stream(["🚚" * 500_000])


def much_sources(run: Run) -> object:
    for n in range(200):
        run.source(f"Source {n}", snippet="x" * 10_000)
    return None


def same_text(run: Run) -> object:
    return run.stream(["what was ", "streamed"])


def text_only(run: Run) -> object:
    return "an answer"


def nothing(run: Run) -> object:
    run.stream(["an answer"])
    run.source("A book", url="https://example.org", snippet="page 1")
    run.check("tone", True, score=0.5, note="kind")
    return None


def tuple_and_mapping(run: Run) -> object:
    return {"pair": (1, 2.5), "none": None, "yes": True}


# What is emitted.


def reserved_type(run: Run) -> object:
    return _refused(run, "run.completed", {"output": 1})


def unknown_type(run: Run) -> object:
    return _refused(run, "tick", {})


def bad_name(run: Run) -> object:
    return _refused(run, "custom.Not A Name", {})


def emitted_nan(run: Run) -> object:
    return _refused(run, "custom.tick", {"n": float("inf")})


def emitted_object(run: Run) -> object:
    return _refused(run, "custom.tick", {"n": object()})


def emitted_list(run: Run) -> object:
    return _refused(run, "custom.tick", [1])  # type: ignore[arg-type]


def emitted_too_much(run: Run) -> object:
    return _refused(run, "custom.tick", {"text": "x" * 2_100_000})


def _refused(run: Run, type: str, payload: dict[str, Any]) -> object:
    try:
        run.emit(type, payload)
    except Exception as error:
        return {"refused": error.__class__.__name__}
    return {"refused": None}


def dirty_text(run: Run) -> object:
    run.emit("custom.tick", {"text": "NUL \0, lone \ud800", "key\0": 1})
    run.source("\udfff source")
    run.tool("dirty", lambda: {"text": "\0 \ud800"}, label="\0 label")
    return run.stream(["NUL \0, ", "lone \ud800, ", "pair 😀"])


def dirty_output(run: Run) -> object:
    return {"text": "NUL \0, lone \udc00"}


def megabyte(run: Run) -> object:
    return run.stream(["0123456789abcdef" * 65_536])


def huge_tool_result(run: Run) -> object:
    result = run.tool("big", lambda: [{"row": n, "text": "ä" * 100} for n in range(10_000)])
    return {"rows": len(result)}


def odd_tool_result(run: Run) -> object:
    return {"odd": run.tool("odd", lambda: object()) is not None}


def secrets(run: Run) -> object:
    result = run.tool(
        "login",
        lambda: {"user": "ann", "password": SECRET, "nested": [{"apiKey": SECRET}], "tokens": 5},
        summary={"user": "ann", "api_key": SECRET},
    )
    run.emit("custom.login", {"Authorization": SECRET, "user": "ann", "businessName": "Acme"})
    assert result["password"] == SECRET, "the agent itself sees everything"
    return {"user": "ann", "refresh_token": SECRET}


def message_left_open(run: Run) -> object:
    message, step = run.message(), run.step("Never left")
    step.__enter__()
    message.__enter__().write("unfinished")
    run.input["kept"] = message, step
    return None


def two_messages(run: Run) -> object:
    with run.message() as first, run.message() as second:
        first.write("a")
        second.write("b")
        first.write("c")
    return None


def sleeps(run: Run) -> object:
    run.stream(["before "])
    with run.step("Sleep"):
        time.sleep(60)
    return None


def module_emit(run: Run) -> object:
    _shared_code(1)
    run.tool("shared", _shared_code, 2)
    return {"done": True}


def _shared_code(n: int) -> int:
    emit("custom.shared", {"n": n})
    return n


_shared_code(0)
"""At import there is no run: nothing happens."""


WAYS: dict[str, Callable[[Run], object]] = {
    function.__name__: function
    for function in list(globals().values())
    if getattr(function, "__module__", "") == __name__ and callable(function) and not isinstance(function, type)
}


@agent("misbehave", input=WayInput)
def misbehave(run: Run) -> object:
    return WAYS[run.input["way"]](run)


@agent("strict", input=AnyInput, strict_output=True)
def strict(run: Run) -> object:
    run.stream(["what was ", "streamed"])
    return run.input["text"]


@agent("showcase", input=AnyInput)
def showcase(run: Run) -> object:
    """Every call of Run once."""
    ids = run.plan(["First", "Second"])
    with run.step("First") as step:
        step.progress(0.25, "a quarter")
        with run.step("Inside"):
            run.progress(2, "more than all")
        run.tool("add", _add, run, 1, b=2, label="Adding 1 and 2", summary={"a": 1})
    with run.step("Second", id=ids[1]):
        try:
            run.tool("fail", _fail)
        except ToolError:
            run.progress(0.5)
    run.progress(0.5, "outside of everything")
    with run.message("system") as message:
        message.write("internal")
    run.usage(input_tokens=10, output_tokens=5, cost=0.5, budget_used_pct=1)
    run.usage(input_tokens=1)
    run.source("A book")
    run.check("tone", False, note="rude")
    run.emit("custom.note", {"any": ["thing", None]})
    run.sleep(0.01)
    run.check_cancelled()
    return run.stream(f"word{n} " for n in range(20))


def _add(run: Run, a: int, b: int) -> int:
    run.progress(0.5, "half")
    return a + b


def _fail() -> None:
    1 / 0  # noqa: B018


# What is hard to stop.


@agent("block", input=AnyInput)
def block(run: Run) -> object:
    """Blocks in a tool for `seconds`, by the ordinary time.sleep."""
    run.tool("wait", time.sleep, run.input.get("seconds", 30))
    return {"slept": True}


@agent("spin", input=AnyInput)
def spin(run: Run) -> object:
    """Computes for ever, with a cancel point or an event now and then."""
    while True:
        sum(range(20_000))
        if run.input.get("emit"):
            run.emit("custom.tick", {})
        else:
            run.check_cancelled()


@agent("stubborn", input=AnyInput)
def stubborn(run: Run) -> object:
    """Swallows whatever is thrown into it, `times` times."""
    for _ in range(run.input.get("times", 1)):
        try:
            time.sleep(30)
        except BaseException:
            run.input["swallowed"] = True
    run.emit("custom.survived", {})
    return {"survived": True}


@agent("steady", input=AnyInput)
def steady(run: Run) -> object:
    """Says who executes it, then `count` ticks and words, `interval` seconds apart; more while there is no `gate`.

    Beside the gate it writes down who executes each of its invocations.
    """
    run.emit("custom.pid", {"pid": os.getpid()})
    count, gate = run.input.get("count", 20), run.input.get("gate")
    if gate is not None:
        with open(f"{gate}.pids", "a") as pids:
            pids.write(f"{os.getpid()}\n")
    with run.message() as message:
        for n in itertools.count():
            if n >= count and (gate is None or os.path.exists(gate)):
                break
            message.write(f"word{n} ")
            run.emit("custom.tick", {"n": n})
            time.sleep(run.input.get("interval", 0.1))
    return None


@agent("kill_worker", input=AnyInput)
def kill_worker(run: Run) -> object:
    """Takes its worker with it, by the `way` given."""
    run.stream(["last words"])
    time.sleep(run.input.get("after", 0))
    match run.input.get("way", "kill"):
        case "kill":
            os.kill(os.getpid(), 9)
        case "segfault in a branch":
            run.parallel(lambda branch: branch.tool("crash", ctypes.string_at, 0))
        case "abort in a tool":
            run.tool("abort", os.abort)
        case "block":
            monkey.get_original("time", "sleep")(1_000)
    return None


@agent("flood", input=AnyInput)
def flood(run: Run) -> object:
    """Writes `chunks` texts of 4 KB as fast as it can."""
    with run.message() as message:
        for n in range(run.input["chunks"]):
            message.write(f"{n:04}" + "x" * 4_092)
            if n % 8 == 0:
                emit("custom.at", {"n": n})
    return None
