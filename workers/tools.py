"""Calling a tool: its entries in the timeline, its record, its retries."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from app.errors import InvalidCall, InvalidOutput, NeedsIsolation, NondeterministicAgent, RuntailError
from app.protocol.events import clean_text
from app.protocol.redaction import preview
from workers import values
from workers.calls import Calls, as_result

UNFORESEEN = "tool_error"
"""Code of a failure that the tool has not foreseen with a ToolError of its own."""
CODE_CHARS = 100
PAUSE_MAX_DOUBLINGS = 30
"""Of the pause between two tries; it stays below SECONDS_MAX in any case."""


class ToolError(RuntailError):
    """Raise it in a tool to say in public what went wrong.

    What is no text is made one, and cut to CODE_CHARS or `detail_chars`.

    :param code: a short stable word.
    :param retryable: the same call may succeed later.
    """

    detail = "The tool failed."
    detail_chars = 10_000
    retryable = False

    def __init__(self, code: str, detail: str, *, retryable: bool = False) -> None:
        super().__init__(clean_text(str(detail)))
        self.code = clean_text(str(code))[:CODE_CHARS]
        self.retryable = bool(retryable)

    @property
    def worth_another_try(self) -> bool:
        """It may succeed later, or nobody knows."""
        return self.retryable or self.code == UNFORESEEN

    def public(self) -> dict[str, Any]:
        """{code, message, retryable}, as it is shown and recorded, whatever a subclass has made of them."""
        fit = ToolError(self.code, self.detail, retryable=self.retryable)
        return {"code": fit.code, "message": fit.detail, "retryable": fit.retryable}

    @classmethod
    def of(cls, public: Mapping[str, Any]) -> "ToolError":
        """The error that `public` was made of."""
        return cls(public["code"], public["message"], retryable=public["retryable"])


ABOUT_THE_AGENT = (InvalidCall, InvalidOutput, NondeterministicAgent)


@contextmanager
def foreseen(code: str, message: str) -> Iterator[None]:
    """Make a ToolError of whatever else is raised: an agent meets the same error when it runs again.

    :raises InvalidCall, InvalidOutput, NondeterministicAgent: which say something about the agent.
    """
    try:
        yield
    except (*ABOUT_THE_AGENT, ToolError):
        raise
    except NeedsIsolation as error:
        raise ToolError(error.code, error.detail) from error
    except Exception as error:
        raise ToolError(code, message) from error


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a failed call is made again, and after how many seconds; each pause is twice the one before."""

    times: int = 0
    backoff: float = 1.0

    @classmethod
    def of(cls, times: object, backoff: object, call: str) -> "Retries":
        """As an agent gave them.

        :raises InvalidCall: they are none.
        """
        return cls(values.times(times, f"{call}: retries"), values.seconds(backoff, f"{call}: backoff"))


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


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call under way."""

    op: str
    id: str
    idempotency_key: str
    """The same whenever this call is made again: after a crash, and by the retry policy."""


class Tools:
    """The tool calls of one branch."""

    def __init__(self, calls: Calls, sleep: Callable[[float], None], running: Sequence[ToolCall] = ()) -> None:
        """:param sleep: as a call of the agent."""
        self._calls = calls
        self._sleep = sleep
        self.running = list(running)
        """The calls under way, innermost last."""

    def call(self, tool: Tool, retries: Retries) -> Any:
        """Call a tool. Returns its result as JSON, once that is recorded.

        :raises ToolError: the tool raised, and the policy has come to its end.
        :raises InvalidOutput: its result is not JSON.
        """
        first = ""
        for attempt in range(retries.times + 1):
            op = self._calls.next("tool.", records="tool")
            first = first or op
            try:
                return self._once(tool, ToolCall(op, f"call_{op}", f"{self._calls.run_id}:{first}"))
            except ToolError as error:
                if attempt == retries.times or not error.worth_another_try:
                    raise
            self._sleep(min(values.SECONDS_MAX, retries.backoff * 2 ** min(attempt, PAUSE_MAX_DOUBLINGS)))
        raise AssertionError("unreachable")

    def _once(self, tool: Tool, call: ToolCall) -> Any:
        record = self._calls.recorded(call.op, "tool", tool.name, tool.arguments)
        if record is None:
            return self._make(tool, call)
        if record.failed:
            raise ToolError.of(record.result)
        return record.result

    def _make(self, tool: Tool, call: ToolCall) -> Any:
        self._calls.emit("tool.started", {"tool_call_id": call.id, "name": tool.name, **tool.about}, call.op)
        started = time.monotonic()
        try:
            with self._within(call), foreseen(UNFORESEEN, "The tool failed."):
                result = as_result(tool.function(), f"the tool {tool.name!r}")
        except ABOUT_THE_AGENT as error:
            reason = {"code": error.code, "message": error.detail, "retryable": False}
            shown = {"tool_call_id": call.id, **reason, "duration_ms": ms_since(started)}
            try:
                self._calls.emit("tool.failed", shown, call.op)  # or the end would show an interruption
            finally:
                self._calls.journal.spoil(error)  # the call was made, and must not be made again
            raise
        except ToolError as error:
            shown = {"tool_call_id": call.id, **error.public(), "duration_ms": ms_since(started)}
            self._record(tool, call, error.public(), ("tool.failed", shown), failed=True)
            raise
        shown = {"tool_call_id": call.id, **preview(result), "duration_ms": ms_since(started)}
        self._record(tool, call, result, ("tool.completed", shown))
        return result

    def _record(
        self, tool: Tool, call: ToolCall, result: Any, event: tuple[str, Mapping[str, Any]], *, failed: bool = False
    ) -> None:
        about = {"arguments": tool.arguments, "kept": tool.kept}
        self._calls.record(call.op, "tool", tool.name, result, **about, failed=failed, event=event)

    @contextmanager
    def _within(self, call: ToolCall) -> Iterator[None]:
        self.running.append(call)
        try:
            with self._calls.within(call.op):
                yield
        finally:
            self.running.remove(call)


def ms_since(started: float) -> int:
    """Milliseconds since a moment of the monotonic clock."""
    return round((time.monotonic() - started) * 1_000)
