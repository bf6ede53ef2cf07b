"""What an agent sees of its run: `RunContext`, and the module-level `emit` for code shared with other paths.

Every call is a cancel point: it may raise Interrupted, and does so once the run has been stopped.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import gevent

from app.errors import InvalidEvent, InvalidJson, InvalidOutput, RuntailError, TooDeep
from app.hooks import Hooks
from app.protocol.ending import reconcile
from app.protocol.events import clean
from app.protocol.payloads import SUMMARY_MAX_CHARS
from app.protocol.redaction import REDACTED, is_secret, preview
from workers.emission import Emission
from workers.handles import Message, Step, clamped, given
from workers.interrupts import Interrupted

T = TypeVar("T")

_current: ContextVar["RunContext | None"] = ContextVar("runtail_run", default=None)


def emit(type: str, payload: Mapping[str, Any]) -> None:
    """Emit a `custom.<name>` event of the current run; outside a run this does nothing."""
    run = _current.get()
    if run is not None:
        run.emit(type, payload)


class RunContext:
    """One attempt of one run, in the hands of its agent.

    :ivar input: the run's input, as the agent's schema loaded it.
    """

    def __init__(
        self,
        run_id: str,
        input: dict[str, Any],
        emission: Emission,
        hooks: Hooks,
        check: Callable[[], None],
    ) -> None:
        self.run_id = run_id
        self.input = input
        self._emission = emission
        self._hooks = hooks
        self._check = check
        self._calls = 0
        self._planned: list[dict[str, str]] = []
        self._steps: list[Step] = []
        self._tools: list[str] = []

    # Progress.

    def plan(self, titles: Sequence[str]) -> list[str]:
        """Say what is going to happen. Returns the steps' ids, for `step(..., id=…)`.

        Said again, it changes the plan: a title that stays keeps its id, and so its status.
        """
        op, type = self._next(), "plan.updated" if self._planned else "plan.created"
        known = {step["title"]: step["id"] for step in self._planned}
        self._planned = [
            {"id": known.get(title, f"step_{op}_{n}"), "title": title} for n, title in enumerate(titles, 1)
        ]
        self._emit(type, {"steps": self._planned}, op)
        return [step["id"] for step in self._planned]

    @contextmanager
    def step(self, title: str, *, id: str | None = None) -> Iterator[Step]:
        """A step of the work. Without an id, the planned step of that title, if there is one."""
        op = self._next()
        planned = (step["id"] for step in self._planned if step["title"] == title)
        step = Step(id or next(planned, f"step_{op}"), lambda type, payload: self._emit(type, payload, op))
        index = next((n for n, p in enumerate(self._planned) if p["id"] == step.id), len(self._planned))
        self._emit("step.started", {"step_id": step.id, "title": title, "index": index}, op)
        self._steps.append(step)
        started = time.monotonic()
        try:
            yield step
        except Exception as failure:
            error = _public(failure, "step_failed", "The step failed.")
            self._emit("step.failed", {"step_id": step.id, "error": error}, op)
            raise
        finally:
            self._steps.remove(step)
        self._emit("step.completed", {"step_id": step.id, "duration_ms": _ms_since(started)}, op)

    def progress(self, fraction: float, label: str | None = None) -> None:
        """How far the running tool is, or outside a tool the running step. Outside both this does nothing."""
        if self._tools:
            call_id = self._tools[-1]
            payload = {"tool_call_id": call_id, "fraction": clamped(fraction), **given(label=label)}
            self._emit("tool.progress", payload, call_id)
        elif self._steps:
            self._steps[-1].progress(fraction, label)

    # Tools.

    def tool(
        self,
        name: str,
        function: Callable[..., T],
        *args: Any,
        label: str | None = None,
        summary: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> T:
        """Call a tool and return its result, once the result is committed.

        :param label: a sentence for humans; the name where none is given.
        :param summary: the arguments that may be shown; none where it is not given.

        What the tool raises passes through, after `tool.failed`.
        """
        op = self._next()
        call_id = f"call_{op}.{self._emission.writer.epoch}"
        payload = {"tool_call_id": call_id, "name": name, "label": label or name, "summary": _shown(summary or {})}
        if self._steps:
            payload["step_id"] = self._steps[-1].id
        self._emit("tool.started", payload, op)
        self._tools.append(call_id)
        started = time.monotonic()
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            reason = _public(error, "tool_error", "The tool failed.")
            retryable = isinstance(error, ToolError) and error.retryable
            failed = {"tool_call_id": call_id, **reason, "retryable": retryable, "duration_ms": _ms_since(started)}
            self._commit("tool.failed", failed, op)
            raise
        finally:
            self._tools.remove(call_id)
        completed = {"tool_call_id": call_id, **preview(result), "duration_ms": _ms_since(started)}
        self._commit("tool.completed", completed, op)
        return result

    # Text.

    @contextmanager
    def message(self, role: str = "assistant") -> Iterator[Message]:
        """A message that is written bit by bit. It is completed at the end of the block, also of one that raises."""
        op = self._next()
        message_id = f"msg_{op}.{self._emission.writer.epoch}"
        message = Message(message_id, lambda text: self._delta(message_id, text, op))
        self._emit("message.started", {"message_id": message.id, "role": role}, op)
        try:
            yield message
        finally:
            self._emit_last("message.completed", {"message_id": message.id, "chars": message.chars}, op)

    def stream(self, texts: Iterable[str]) -> str:
        """Write each text as it comes, as one message. Returns the whole."""
        written: list[str] = []
        with self.message() as message:
            for text in texts:
                written.append(message.write(text))
        return "".join(written)

    # Evidence.

    def source(self, title: str, url: str | None = None, snippet: str | None = None) -> None:
        """Something that the answer rests on."""
        self._emit("source.added", {"title": title, **given(url=url, snippet=snippet)}, self._next())

    def check(self, name: str, passed: bool, score: float | None = None, note: str | None = None) -> None:
        """The outcome of a quality check."""
        self._emit(
            "quality.checked",
            {"name": name, "passed": passed, **given(score=score, note=note)},
            self._next(),
        )

    def usage(
        self,
        *,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost: float | None = None,
        budget_used_pct: float | None = None,
    ) -> None:
        """What a model turn has used; the run's usage is the sum."""
        used = given(input_tokens=input_tokens, output_tokens=output_tokens, cost=cost, budget_used_pct=budget_used_pct)
        self._emit("context.usage", used, self._next())

    def emit(self, type: str, payload: Mapping[str, Any]) -> None:
        """Emit an event of your own, `custom.<name>`.

        :raises InvalidEvent: another type, or a payload that is not an object or too large.
        :raises InvalidJson, TooDeep: the payload is not JSON.
        """
        if not type.startswith("custom."):
            raise InvalidEvent(f"An agent's own events are named custom.<name>, not {type!r}.")
        self._emit(type, payload, self._next())

    # Time.

    def sleep(self, seconds: float) -> None:
        """Sleep, and wake up at once when the run is stopped."""
        self._check()
        gevent.sleep(seconds)

    def cancel_point(self) -> None:
        """Raise Interrupted if the run has been stopped. Cheap enough for a loop that computes."""
        self._emission.give_way()
        self._check()

    # For the executor.

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this the current run of the module-level `emit`."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def conclude(self, output: object) -> Any:
        """The run's output as it goes out, given what the agent returned.

        A text that was not streamed is streamed now, so that there is one answer; for nothing see `reconcile`.

        :raises InvalidOutput: it is not JSON, or too large.
        :raises ReconciliationFailed: a text was returned that is not the one that was streamed.
        """
        self._emission.settle()
        state = self._emission.writer.state
        if isinstance(output, str) and not any(_is_answer(message) for message in state["messages"]):
            output = self.stream([output])
            self._emission.settle()
        try:
            payload = {"output": reconcile(state, clean(output)), "usage": state["usage"], "digest": ""}
            return self._hooks("run.completed", payload)["output"]
        except (InvalidJson, TooDeep, InvalidEvent) as error:
            raise InvalidOutput(f"The agent's output is not valid: {error.detail}") from error

    # Inside.

    def _next(self) -> str:
        self._calls += 1
        return str(self._calls)

    def _emit(self, type: str, payload: Mapping[str, Any], op: str) -> None:
        self._check()
        self._emission.emit(type, self._hooks(type, payload), op)

    def _emit_last(self, type: str, payload: Mapping[str, Any], op: str) -> None:
        """For a `finally`: a run that has been stopped is closed by whoever ends it."""
        try:
            self._emit(type, payload, op)
        except Interrupted:
            return

    def _commit(self, type: str, payload: Mapping[str, Any], op: str) -> None:
        self._check()
        self._emission.commit(type, self._hooks(type, payload), op)

    def _delta(self, message_id: str, text: str, op: str) -> str:
        self._check()
        outbound = self._hooks.delta(message_id, text)
        self._emission.delta(message_id, outbound, op)
        return outbound


class ToolError(RuntailError):
    """Raise it in a tool to say in public what went wrong.

    :param code: a short stable word.
    """

    def __init__(self, code: str, detail: str, *, retryable: bool = False) -> None:
        super().__init__(detail)
        self.code = code
        self.retryable = retryable


def _public(error: Exception, code: str, message: str) -> dict[str, str]:
    """What may be said of an error: what a ToolError says of itself, of any other only that it happened."""
    if isinstance(error, ToolError):
        return {"code": error.code, "message": error.detail}
    return {"code": code, "message": message}


def _shown(summary: Mapping[str, Any]) -> str:
    pairs = (f"{key}={REDACTED if is_secret(key) else value}" for key, value in summary.items())
    return ", ".join(pairs)[:SUMMARY_MAX_CHARS]


def _is_answer(message: Mapping[str, Any]) -> bool:
    return bool(message["role"] == "assistant" and message["status"] != "abandoned")


def _ms_since(started: float) -> int:
    return round((time.monotonic() - started) * 1_000)
