"""What an agent sees of its run: `RunContext`, and the module-level `emit` for code shared with other paths.

Every call takes the next number of its branch (see `workers.journal`), and is a cancel point: it may raise
Interrupted, and does so once the run has been stopped.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath
from typing import Any, TypeVar

from app.errors import InvalidCall, InvalidEvent, InvalidJson, InvalidOutput, TooDeep
from app.hooks import Hooks
from app.pace import paced
from app.protocol.ending import Ending, reconcile, said_output
from app.protocol.events import clean
from app.protocol.payloads import SUMMARY_MAX_CHARS
from app.protocol.redaction import REDACTED, shown, without_secrets
from app.storage.run_store import OpRecord
from app.turns import give_way
from workers import values
from workers.calls import Calls
from workers.execution.interrupts import Suspended, TimedOut
from workers.execution.named import call_named
from workers.execution.programs import ProgramTimeout, run_program
from workers.handles import Approval, Message, Step, clamped, given
from workers.tools import Retries, Tool, ToolError, Tools, foreseen, ms_since
from workers.waits import Waits

__all__ = ["Approval", "RunContext", "ToolError", "emit"]

T = TypeVar("T")

_current: ContextVar["RunContext | None"] = ContextVar("runtail_run", default=None)


def emit(type: str, payload: Mapping[str, Any]) -> None:
    """Emit a `custom.<name>` event of the current run; outside a run this does nothing."""
    run = _current.get()
    if run is not None:
        run.emit(type, payload)


@dataclass(slots=True)
class _Shared:
    """What the branches of a run have in common."""

    planned: list[dict[str, str]] = field(default_factory=list)
    answered: bool = False
    """An assistant message was written."""


class RunContext(Waits):
    """One branch of one run, in the hands of its agent.

    :ivar input: the run's input, as the agent's schema loaded it.
    """

    def __init__(
        self,
        input: dict[str, Any],
        calls: Calls,
        hooks: Hooks,
        within: "RunContext | None" = None,
    ) -> None:
        """:param within: the context of which this one is a branch."""
        super().__init__(calls)
        self.run_id = calls.run_id
        self.input = input
        self._hooks = hooks
        self._shared: _Shared = within._shared if within else _Shared()
        self._steps: list[Step] = list(within._steps) if within else []
        self._tools: Tools = Tools(calls, Waits(calls).sleep, within._tools.running if within else ())

    # Progress.

    def plan(self, titles: Sequence[str]) -> list[str]:
        """Say what is going to happen. Returns the steps' ids, for `step(..., id=…)`.

        Said again, it changes the plan: a title that stays keeps its id, and so its status.
        """
        titles, planned = values.texts(titles, "run.plan: titles"), self._shared.planned
        op, type = self._calls.next("plan."), "plan.updated" if planned else "plan.created"
        known = {step["title"]: step["id"] for step in planned}
        planned[:] = [{"id": known.get(title, f"step_{op}_{n}"), "title": title} for n, title in enumerate(titles, 1)]
        self._calls.emit(type, {"steps": planned}, op)
        return [step["id"] for step in planned]

    @contextmanager
    def step(self, title: str, *, id: str | None = None, timeout_s: float | None = None) -> Iterator[Step]:
        """A step of the work. Without an id, the planned step of that title, if there is one.

        :param timeout_s: a step that takes longer fails the run, as `timeout`. Waiting costs no time, and after a
            crash or a wait it begins again.
        """
        title, id = values.text(title, "run.step: title"), values.may_text(id, "run.step: id")
        timeout_s = values.may_seconds(timeout_s, "run.step: timeout_s")
        op, planned = self._calls.next("step."), self._shared.planned
        known = (step["id"] for step in planned if step["title"] == title)
        step = Step(id or next(known, f"step_{op}"), lambda type, payload: self._calls.emit(type, payload, op))
        index = next((n for n, p in enumerate(planned) if p["id"] == step.id), len(planned))
        self._calls.emit("step.started", {"step_id": step.id, "title": title, "index": index}, op)
        self._steps.append(step)
        started = time.monotonic()
        try:
            with self._limited(f"The step {title!r}", timeout_s):
                yield step
        except Exception as failure:
            error = {"code": "step_failed", "message": "The step failed."}
            if isinstance(failure, ToolError):
                public = failure.public()
                error = {"code": public["code"], "message": public["message"]}
            self._calls.tell("step.failed", {"step_id": step.id, "error": error}, op)
            raise
        finally:
            self._steps.remove(step)
        self._calls.tell("step.completed", {"step_id": step.id, "duration_ms": ms_since(started)}, op)

    @contextmanager
    def _limited(self, what: str, seconds: float | None) -> Iterator[None]:
        if seconds is None:
            yield
            return
        timed_out = TimedOut(f"{what} took longer than {seconds:g} s.")
        stop = self._calls.outbox.alarm(seconds, timed_out)
        try:
            yield
        finally:
            stop()

    def progress(self, fraction: float, label: str | None = None) -> None:
        """How far the running tool is, or outside a tool the running step. Outside both this does nothing."""
        about = {"fraction": clamped(fraction), **given(label=label)}
        op = self._calls.next("tool.progress", "step.progress")
        if self._tools.running:
            self._calls.emit("tool.progress", {"tool_call_id": self._tools.running[-1].id, **about}, op)
        elif self._steps:
            self._calls.emit("step.progress", {"step_id": self._steps[-1].id, **about}, op)

    # Tools.

    def tool(
        self,
        name: str,
        function: Callable[..., T],
        *args: Any,
        label: str | None = None,
        summary: Mapping[str, Any] | None = None,
        retries: int = 0,
        backoff: float = 1.0,
        **kwargs: Any,
    ) -> T:
        """Call a tool and return its result, as JSON gives it back, once it is committed. It is not called again.

        :param label: a sentence for humans; the name where none is given.
        :param summary: the arguments that may be shown; none where it is not given.
        :param retries: how often to call it again when it fails: with a ToolError that is retryable, or unforeseen.
        :param backoff: seconds before the first of them; each pause is twice the one before.
        :raises ToolError: the tool raised; what it has not foreseen is a `tool_error`.
        """
        name = values.text(name, "run.tool: name")
        call = f"run.tool({name!r})"
        values.function(function, f"{call}: function")
        label = values.may_text(label, f"{call}: label") or name
        about = {"label": label, "summary": _summary(values.mapping(summary or {}, f"{call}: summary"))}
        if self._steps:
            about["step_id"] = self._steps[-1].id
        arguments = {"args": args, "kwargs": kwargs}
        kept = {"args": without_secrets(_parameters(function), args), "kwargs": kwargs}
        tool = Tool(name, partial(function, *args, **kwargs), arguments, kept, about)
        result: T = self._tools.call(tool, Retries.of(retries, backoff, call))
        return result

    @property
    def tool_call_id(self) -> str:
        """Within a tool: the id of its call."""
        return self._tools.running[-1].id

    @property
    def idempotency_key(self) -> str:
        """Within a tool: a key that is the same when the call is made again, after a crash or by its retry policy.

        Give it to whoever has the effect: a call may have had it although its result was not recorded.
        """
        return self._tools.running[-1].idempotency_key

    def exec(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        timeout_s: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        label: str | None = None,
    ) -> dict[str, Any]:
        """Run a program as a tool: {returncode, stdout, stderr, truncated}. It ends when the run is stopped.

        :param env: its whole environment; None: what is harmless of the worker's, see `programs.INHERITED`.
        :raises ToolError: it cannot be started (`not_started`), or took too long (`timeout`, retryable).
        """
        name = values.text(PurePath(values.program(argv, "run.exec: argv")[0]).name, "run.exec: argv")
        timeout_s = values.may_seconds(timeout_s, "run.exec: timeout_s")
        values.may_text(input, "run.exec: input")
        values.environment(env or {}, "run.exec: env")
        if cwd is not None:
            values.for_system(cwd, "run.exec: cwd")

        def run() -> dict[str, object]:
            try:
                return run_program(argv, input, timeout_s, cwd, env)
            except OSError as error:
                raise ToolError("not_started", f"{name} cannot be started.") from error
            except ProgramTimeout as error:
                raise ToolError("timeout", f"{name} took longer than {timeout_s:g} s.", retryable=True) from error

        about = {"label": label or f"Running {name}", **({"step_id": self._steps[-1].id} if self._steps else {})}
        arguments = {"argv": argv, "input": input, "cwd": cwd, "env": env}
        kept = {**arguments, "env": None if env is None else dict.fromkeys(env, REDACTED)}
        result: dict[str, Any] = self._tools.call(Tool(name, run, arguments, kept, about), Retries())
        return result

    def parallel(self, *functions: "Callable[[RunContext], T]") -> list[T]:
        """Call each function with a context of its own, side by side. Returns their results, in order.

        If one of them waits, the run does, once the others have ended. What the first that failed has raised is
        raised when all have ended.
        """
        for function in functions:
            values.function(function, "run.parallel: each branch")
        op = self._calls.next()

        def call(n: int, function: "Callable[[RunContext], T]") -> T:
            branch = self._calls.branch(f"{op}.{n}.")
            context = RunContext(self.input, branch, self._hooks, within=self)
            with context.active():
                return call_named(self.run_id, function, context)

        try:
            branches = [partial(call, n, function) for n, function in enumerate(functions, 1)]
            return self._calls.outbox.side_by_side(branches)
        except Suspended as suspended:
            self._calls.suspend(*suspended.waits)

    # Text.

    @contextmanager
    def message(self, role: str = "assistant") -> Iterator[Message]:
        """A message that is written bit by bit. It is completed at the end of the block, also of one that raises.

        It begins with its first character: where nothing is written there is no message. The block runs again after a
        crash; what it writes must then be the same. For a text that would not be, such as a model's, use `stream`.
        """
        role = values.text(role, "run.message: role")
        op = self._calls.next("message.", records="message")
        record = self._calls.recorded(op, "message", role)
        if record is not None:
            message_id = record.result["message_id"]
            message = Message(message_id, partial(self._calls.unsaid, message_id))
            yield message
            if message.text != self._text(message_id):
                self._calls.journal.broken(f"The message of call {op} had another text before.")
            self._shared.answered |= role == "assistant" and bool(message.text)
            return
        with self._new_message(op, role) as message:
            yield message

    @contextmanager
    def _new_message(self, op: str, role: str) -> Iterator[Message]:
        earlier = self._calls.journal.count(op, "message.started")
        message_id = f"msg_{op}.{earlier + 1}" if earlier else f"msg_{op}"
        begun = False

        def send(text: str) -> str:
            nonlocal begun
            if not begun:
                begun = True
                self._calls.emit_anew("message.started", {"message_id": message_id, "role": role}, op)
            return self._calls.delta(message_id, text, op)

        message = Message(message_id, send)
        result: dict[str, Any] = {"message_id": message_id, "error": None}
        try:
            yield message
        except ToolError as error:
            result["error"] = error.public()
            raise
        except InvalidCall as error:
            result["error"] = ToolError(error.code, error.detail).public()
            raise
        finally:
            self._shared.answered |= role == "assistant" and begun
            completed = ("message.completed", {"message_id": message_id, "chars": len(message.text)})
            event = completed if begun else None
            self._calls.quietly(lambda: self._calls.record(op, "message", role, result, event=event))

    def stream(self, texts: Iterable[str]) -> str:
        """Write each text as it comes, as one message. Returns the whole; once recorded, `texts` is not asked again.

        Where all texts are empty, as in a model's turn of tool calls only, there is no message.

        :raises ToolError: `texts` raised; what it has not foreseen is a `stream_error`.
        """
        values.iterable(texts, "run.stream: texts")
        op = self._calls.next("message.", records="message")
        try:
            record = self._calls.recorded(op, "message", "assistant")
            if record is not None:
                text = self._streamed_before(record)
                self._shared.answered |= bool(text)
                return text
            failing = foreseen("stream_error", "The stream failed.")
            with self._new_message(op, "assistant") as message, failing, self._calls.within(op):
                for text in texts:
                    message.write(text)
            return message.text
        finally:
            if isinstance(texts, Iterator) and hasattr(texts, "close"):
                texts.close()  # a provider's stream ends with the run, not when somebody collects the garbage

    def _streamed_before(self, record: OpRecord) -> str:
        error = record.result["error"]
        if error is not None:
            raise InvalidCall(error["message"]) if error["code"] == InvalidCall.code else ToolError.of(error)
        return self._text(record.result["message_id"])

    def _text(self, message_id: str) -> str:
        message = self._calls.outbox.writer.message(message_id)
        return "" if message is None else str(message["text"])

    # Evidence.

    def source(self, title: str, url: str | None = None, snippet: str | None = None) -> None:
        """Something that the answer rests on."""
        self._say("source.added", {"title": title, **given(url=url, snippet=snippet)})

    def check(self, name: str, passed: bool, score: float | None = None, note: str | None = None) -> None:
        """The outcome of a quality check."""
        self._say("quality.checked", {"name": name, "passed": passed, **given(score=score, note=note)})

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
        self._say("context.usage", used)

    def emit(self, type: str, payload: Mapping[str, Any]) -> None:
        """Emit an event of your own, `custom.<name>`.

        :raises InvalidEvent: another type, or a payload that is not an object or too large.
        :raises InvalidJson, TooDeep: the payload is not JSON.
        """
        if not values.text(type, "run.emit: type").startswith("custom."):
            raise InvalidEvent(f"An agent's own events are named custom.<name>, not {type!r}.")
        self._say(type, payload)

    def _say(self, type: str, payload: Mapping[str, Any]) -> None:
        self._calls.emit(type, payload, self._calls.next(type))

    def cancel_point(self) -> None:
        """Raise Interrupted if the run has been stopped. Cheap enough for a loop that computes."""
        self._calls.outbox.give_way()
        self._calls.check()

    # For the executor.

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make this the current run of the module-level `emit`."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def conclude(self, output: object) -> Ending:
        """How the run ends, given what the agent returned.

        A text that was not streamed is streamed now, so that there is one answer; for nothing see `reconcile`.

        :raises InvalidOutput: it is not JSON, or too large.
        :raises HookFailed: a hook refuses it.
        :raises ReconciliationFailed: a text was returned that is not the one that was streamed.
        :raises NondeterministicAgent: a recorded call was not made.
        """
        self._calls.check()  # an agent may have caught what was to stop it
        if isinstance(output, str) and not self._shared.answered:
            output = self.stream([output])
        self._calls.journal.check_used_up()
        self._calls.outbox.settle()
        state = self._calls.state
        try:
            said = said_output(state, reconcile(state, clean(output, give_way)), paced)
            payload = {**said, "usage": state["usage"], "digest": ""}
            return Ending.of(state, self._hooks("run.completed", payload))
        except (InvalidJson, TooDeep, InvalidEvent) as error:
            raise InvalidOutput(f"The agent's output is not valid: {error.detail}") from error


def _parameters(function: Callable[..., Any]) -> list[str]:
    """The names of its positional parameters; none where it does not tell."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _summary(pairs: Mapping[str, Any]) -> str:
    return shown(pairs)[:SUMMARY_MAX_CHARS]
