"""Calling a tool: its entries in the timeline, its record, its retries."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from runtail import checks
from runtail.errors import (
    UNFORESEEN,
    InvalidCall,
    InvalidJson,
    InvalidOutput,
    NeedsIsolation,
    NondeterministicAgent,
    TooDeep,
    ToolError,
    WriterLost,
)
from runtail.ports import Calls
from runtail.redaction import preview
from runtail.time_limits import out_of_time
from runtail.values import clean, dumps
from runtail.within import CALL, Place, inside

PAUSE_MAX_DOUBLINGS = 30
"""Of the pause between two tries; it stays below SECONDS_MAX in any case."""
RESULT_CHARS = 2_000_000
"""Of one recorded result as JSON."""

ABOUT_THE_AGENT = (InvalidCall, InvalidOutput, NondeterministicAgent)


@contextmanager
def foreseen(calls: Calls, code: str, message: str) -> Iterator[None]:
    """Make a ToolError of whatever else is raised: an agent meets the same error when it runs again.

    :raises InvalidCall, InvalidOutput, NondeterministicAgent: which say something about the agent.
    :raises WriterLost: in a process of the caller's own: the run is somebody else's. And what a queue throws into a
        job whose time is over.
    """
    try:
        yield
    except (*ABOUT_THE_AGENT, ToolError):
        raise
    except NeedsIsolation as error:
        raise ToolError(error.code, error.detail) from error
    except Exception as error:
        if not calls.keeps and (isinstance(error, WriterLost) or out_of_time(error)):
            raise
        raise ToolError(code, message) from error


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a failed call is made again, and after how many seconds; each pause is twice the one before."""

    times: int = 0
    backoff: float = 1.0

    def pause(self, attempt: int) -> float:
        """Seconds after the attempt, from 0."""
        pause: float = self.backoff * 2 ** min(attempt, PAUSE_MAX_DOUBLINGS)
        return min(checks.SECONDS_MAX, pause)


@dataclass(frozen=True, slots=True)
class Tool:
    """What is called. `arguments` distinguish this call from another; `about` is {label, summary, step_id?}.

    `kept` is what is stored of the arguments, where they are known to hold secrets; more are found by their names.
    """

    name: str
    function: Callable[[], Any]
    arguments: object
    kept: object
    about: Mapping[str, Any]


def call_tool(calls: Calls, tool: Tool, retries: Retries, sleep: Callable[[float], None]) -> Any:
    """Call a tool. Returns its result, once that is recorded: as JSON, where results are kept.

    :param sleep: as a call of the agent.
    :raises ToolError: the tool raised, and the policy has come to its end.
    :raises InvalidOutput: its result is to be kept, and is not JSON, or too large.
    """
    key: str | None = None
    for attempt in range(retries.times + 1):
        op = calls.next("call", "tool.", records="tool")
        key = calls.key(op) if key is None else key
        place = Place(CALL, f"call_{op}", key)
        try:
            return _once(calls, tool, op, place)
        except ToolError as error:
            if attempt == retries.times or not error.worth_another_try:
                raise
        sleep(retries.pause(attempt))
    raise AssertionError("unreachable")


def _once(calls: Calls, tool: Tool, op: str, place: Place) -> Any:
    record = calls.recorded(op, "tool", tool.name, tool.arguments)
    if record is None:
        return _make(calls, tool, op, place)
    if record.failed:
        raise ToolError.of(record.result)
    return record.result


def _make(calls: Calls, tool: Tool, op: str, place: Place) -> Any:
    calls.emit("tool.started", {"tool_call_id": place.id, "name": tool.name, **tool.about}, op)
    started = time.monotonic()

    def record(result: Any, type: str, shown: Mapping[str, Any], *, failed: bool = False) -> None:
        about = {"arguments": tool.arguments, "kept": tool.kept}
        event = type, {"tool_call_id": place.id, **shown, "duration_ms": ms_since(started)}
        calls.record(op, "tool", tool.name, result, **about, failed=failed, event=event)

    try:
        with inside(calls.places, place), calls.within(op), foreseen(calls, UNFORESEEN, "The tool failed."):
            result = tool.function()
            if calls.keeps:
                result = as_result(result, f"the tool {tool.name!r}")
    except ABOUT_THE_AGENT as error:
        shown = {"code": error.code, "message": error.detail, "retryable": False, "duration_ms": ms_since(started)}
        try:
            calls.tell("tool.failed", {"tool_call_id": place.id, **shown}, op)  # or the end would show an interruption
        finally:
            calls.spoil(error)  # the call was made, and must not be made again
        raise
    except ToolError as error:
        record(error.public(), "tool.failed", error.public(), failed=True)
        raise
    record(result, "tool.completed", preview(result))
    return result


def as_result(value: object, of: str) -> Any:
    """A result as it can be recorded, and as the agent sees it from the first time on.

    :raises InvalidOutput: it is not JSON, or too large.
    """
    try:
        result = clean(value)
    except (InvalidJson, TooDeep) as error:
        raise InvalidOutput(f"The result of {of} is not JSON: {error.detail}") from error
    if len(dumps(result)) > RESULT_CHARS:
        raise InvalidOutput(f"The result of {of} is larger than {RESULT_CHARS} characters.")
    return result


def ms_since(started: float) -> int:
    """Milliseconds since a moment of the monotonic clock."""
    return round((time.monotonic() - started) * 1_000)
