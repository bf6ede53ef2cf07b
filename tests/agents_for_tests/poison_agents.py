"""Agents that give to their calls what cannot be kept: each notes an effect first, then makes one such call."""

import time
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from marshmallow import INCLUDE, Schema, fields

from runtail import Run, ToolError, agent

SURROGATE, NAN, INF = "\ud83d", float("nan"), float("inf")


class GivesInput(Schema):
    """`way`: one of WAYS. `calls`: a file that gets a line for each effect."""

    class Meta:
        unknown = INCLUDE

    way = fields.String(required=True)
    calls = fields.String(required=True)


def _tool_error(*error: Any, **more: Any) -> Callable[[Run], object]:
    def way(run: Run) -> object:
        def tool() -> None:
            raise ToolError(*error, **more)

        try:
            return run.tool("fails", tool)
        except ToolError as failed:
            return {"code": failed.code, "detail": failed.detail}

    return way


class NeverInitialised(ToolError):
    """A subclass that forgets about its base."""

    def __init__(self) -> None: ...


def _tool_error_of(kind: str) -> Callable[[Run], object]:
    def way(run: Run) -> object:
        def tool() -> None:
            error = ToolError("a", "b") if kind == "changed" else NeverInitialised()
            error.code, error.retryable = f"{SURROGATE}\0", "no"  # type: ignore[assignment]
            if kind == "changed":
                error.detail = 5  # type: ignore[assignment]
            raise error

        try:
            with run.step("Fail"):
                return run.tool("fails", tool)
        except ToolError:
            return None

    return way


def _given(**arguments: Any) -> Callable[[Run], object]:
    return lambda run: run.tool("given", lambda **_: None, **arguments)


def _in_step(**more: Any) -> Callable[[Run], object]:
    def way(run: Run) -> object:
        with run.step(**more):
            return None

    return way


WAYS: dict[str, Callable[[Run], object]] = {
    # Cleaned: the run completes.
    "tool_name_nul": lambda run: run.tool("read\0file", lambda: 1),
    "tool_name_surrogate": lambda run: run.tool(SURROGATE + "read", lambda: 1),
    "arguments_dirty": lambda run: run.tool("a", lambda *_: 1, "\0", SURROGATE, {"\0": NAN}, INF, 10**400),
    "error_code_surrogate": _tool_error(SURROGATE, "Why."),
    "error_code_number": _tool_error(404, KeyError("gone")),
    "error_detail_long": _tool_error("long", "x" * 3_000_000),
    "error_retryable_text": _tool_error("again\0", "\0", retryable="yes"),
    "error_without_init": _tool_error_of("no init"),
    "error_changed": _tool_error_of("changed"),
    "label_dirty": lambda run: run.tool("a", lambda: 1, label=f"\0{SURROGATE}", summary={"\0": SURROGATE}),
    "title_dirty": _in_step(title=f"\0{SURROGATE}", id="\0"),
    "plan_dirty": lambda run: run.plan([f"{SURROGATE}\0", "two"]),
    "sleep_negative": lambda run: run.sleep(-1),
    "sleep_decimal": lambda run: run.sleep(Decimal("0.01")),
    "progress_infinite_past": lambda run: run.progress(-3),
    "random_is_fine": lambda run: run.random(),
    # Refused, with a sentence.
    "sleep_inf": lambda run: run.sleep(INF),
    "sleep_nan": lambda run: run.sleep(NAN),
    "sleep_huge": lambda run: run.sleep(1e18),
    "sleep_bigger": lambda run: run.sleep(10**400),
    "sleep_text": lambda run: run.sleep("5"),  # type: ignore[arg-type]
    "sleep_none": lambda run: run.sleep(None),  # type: ignore[arg-type]
    "approve_expires_inf": lambda run: run.approve("Go?", expires_in=INF),
    "approve_expires_max": lambda run: run.approve("Go?", expires_in=timedelta.max),
    "approve_label_number": lambda run: run.approve(5),  # type: ignore[arg-type]
    "approve_call_bytes": lambda run: run.approve("Go?", tool_call_id=b"call_1"),  # type: ignore[arg-type]
    "approve_requires": lambda run: run.approve("Go?", requires="anybody\0"),
    "tool_name_bytes": lambda run: run.tool(b"a", lambda: 1),  # type: ignore[arg-type]
    "tool_no_function": lambda run: run.tool("a", "b"),  # type: ignore[arg-type]
    "retries_negative": _given(retries=-1),
    "retries_half": _given(retries=0.5),
    "backoff_nan": _given(retries=1, backoff=NAN),
    "label_number": _given(label=5),
    "summary_list": _given(summary=["a"]),
    "step_timeout_nan": _in_step(title="a", timeout_s=NAN),
    "step_title_none": _in_step(title=None),
    "plan_text": lambda run: run.plan("abc"),
    "plan_number": lambda run: run.plan([1]),  # type: ignore[list-item]
    "progress_nan": lambda run: run.progress(NAN),
    "exec_nul": lambda run: run.exec(["echo", "a\0b"]),
    "exec_text": lambda run: run.exec("echo a"),
    "exec_empty": lambda run: run.exec([]),
    "exec_number": lambda run: run.exec(["sleep", 1]),  # type: ignore[list-item]
    "exec_timeout_inf": lambda run: run.exec(["true"], timeout_s=INF),
    "exec_env_number": lambda run: run.exec(["true"], env={"A": 1}),  # type: ignore[dict-item]
    "exec_input_bytes": lambda run: run.exec(["cat"], input=b"a"),  # type: ignore[arg-type]
    "usage_huge": lambda run: run.usage(input_tokens=2**53),
    "usage_nan": lambda run: run.usage(cost=NAN),
    "usage_negative": lambda run: run.usage(output_tokens=-1),
    "usage_text": lambda run: run.usage(input_tokens="5"),  # type: ignore[arg-type]
    "source_number": lambda run: run.source(5),  # type: ignore[arg-type]
    "check_score_inf": lambda run: run.check("a", True, score=INF),
    "custom_object": lambda run: run.emit("custom.a", {"made": object()}),
    "custom_type_long": lambda run: run.emit("custom." + "x" * 3_000_000, {}),
    "custom_type_none": lambda run: run.emit(None, {}),  # type: ignore[arg-type]
    "message_role": lambda run: _message(run, role="\0"),
    "message_bytes": lambda run: _message(run, text=b"a"),
    "stream_none": lambda run: run.stream(["a", None]),  # type: ignore[list-item]
    "stream_number": lambda run: run.stream(5),  # type: ignore[arg-type]
    "parallel_list": lambda run: run.parallel([lambda _: 1]),  # type: ignore[arg-type]
}


def _message(run: Run, role: str = "assistant", text: Any = "a") -> None:
    with run.message(role) as message:
        message.write(text)


@agent("gives", input=GivesInput)
def gives(run: Run) -> object:
    """An effect, then the call."""
    run.tool("effect", _note, run.input["calls"])
    WAYS[run.input["way"]](run)
    return {"done": True}


@agent("gives_isolated", input=GivesInput, isolation="process")
def gives_isolated(run: Run) -> object:
    return gives.function(run)


def _note(calls: str) -> None:
    with Path(calls).open("a") as file:
        file.write("called\n")


@agent("records", input=GivesInput)
def records(run: Run) -> object:
    """Calls a tool of that name, or emits an event of that type, which a trigger of the test's database refuses."""
    way = run.input["way"]
    if way.startswith("custom."):
        run.tool("effect", _note, run.input["calls"])
        run.emit(way, {"secret": "hunter2"})
        time.sleep(run.input.get("seconds", 60))
    elif way == "approve":
        run.approve("refuse me")
    else:
        run.tool(way, _note, run.input["calls"])
    return {"done": True}


@agent("records_isolated", input=GivesInput, isolation="process")
def records_isolated(run: Run) -> object:
    return records.function(run)
