"""`Run`: the verbs of a run, the same wherever it is executed.

Each verb takes the next number of its branch, and is a cancel point: it may raise Interrupted, or in a process of the
caller's own Cancelled, and does so once the run has been stopped. What a verb is given is checked before anything is
emitted.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from functools import partial
from os.path import basename
from typing import Any, TypeVar

from runtail import checks
from runtail.errors import InvalidCall, InvalidEvent, RuntailError, ToolError
from runtail.handles import Approval, Message, Question, Step, progressed
from runtail.interrupts import Suspended, TimedOut
from runtail.messages import Messages
from runtail.ports import Calls
from runtail.redaction import REDACTED, shown, without_secrets
from runtail.texts import clean_text
from runtail.tools import Retries, Tool, call_tool, ms_since
from runtail.values import given
from runtail.within import CALL, STEP, Place, bound, current, inside

T = TypeVar("T")


class _Shared:
    """What the branches of a run have in common."""

    def __init__(self) -> None:
        self.planned: list[dict[str, str]] = []
        self.messages = Messages()


class Run:
    """One branch of one run, in the hands of its agent or job.

    :ivar input: the run's input, as the agent's schema loaded it; None where the code has its own arguments.
    """

    __journal_name__ = "RunContext"
    """What a run that is given to a tool stands as in journals, of which fingerprints are made: its name in 2026."""

    def __init__(self, calls: Calls, input: Any = None, of: "Run | None" = None) -> None:
        """:param of: the run of which this one is a branch."""
        self.input = input
        self._calls = calls
        self._shared: _Shared = of._shared if of else _Shared()

    @property
    def id(self) -> str:
        """The run's id; empty outside a run."""
        return self._calls.run_id

    # Being stopped.

    @property
    def cancelled(self) -> bool:
        """A cancel was requested, as far as is known here."""
        return self._calls.cancelled

    def check_cancelled(self) -> None:
        """Do nothing, unless the run has been stopped. Cheap enough for a loop that computes."""
        self._calls.host.give_way()
        self._calls.check()

    def sleep(self, seconds: float | timedelta) -> None:
        """Sleep, and wake up at once when the run is stopped. In a worker a minute or more costs nothing.

        :param seconds: up to a hundred years; less than 0 is 0.
        """
        self._calls.sleep(**checks.arguments("sleep", seconds=seconds), given=seconds)

    # Progress.

    def plan(self, titles: Sequence[str]) -> list[str]:
        """Say what is going to happen. Returns the steps' ids, for `step(..., id=…)`.

        Said again, it changes the plan: a title that stays keeps its id, and so its status. Of a title that stands
        there twice the first keeps the first one's.
        """
        titles, planned = (
            self._given("plan", titles=titles)["titles"],
            self._shared.planned,
        )
        op, type = self._calls.next("step", "plan."), "plan.updated" if planned else "plan.created"
        known: dict[str, list[str]] = {}
        for step in planned:
            known.setdefault(step["title"], []).append(step["id"])
        ids = [known[title].pop(0) if known.get(title) else f"step_{op}_{n}" for n, title in enumerate(titles, 1)]
        planned[:] = [{"id": id, "title": title} for id, title in zip(ids, titles, strict=True)]
        self._calls.emit(type, {"steps": list(planned)}, op)
        return ids

    @contextmanager
    def step(self, title: str, *, id: str | None = None, timeout_s: float | None = None) -> Iterator[Step]:
        """A step of the work. Without an id, the planned step of that title, if there is one.

        :param timeout_s: a step that takes longer fails the run, as `timeout`. Waiting costs no time, and after a
            crash or a wait it begins again. In a worker only.
        """
        title, id, timeout_s = checks.arguments(
            "step", "", self._calls.refuse, title=title, id=id, timeout_s=timeout_s
        ).values()
        if timeout_s is not None and not self._calls.keeps:
            raise InvalidCall("run.step: timeout_s needs a worker of Runtail, which can stop the code of a step.")
        op, planned = self._calls.next("step", "step."), self._shared.planned
        known = (step["id"] for step in planned if step["title"] == title)
        step = Step(id or next(known, f"step_{op}"), partial(self._said, op))
        index = next((n for n, p in enumerate(planned) if p["id"] == step.id), len(planned))
        self._calls.emit("step.started", {"step_id": step.id, "title": title, "index": index}, op)
        started = time.monotonic()
        try:
            with inside(self._calls.places, Place(STEP, step.id)), self._limited(f"The step {title!r}", timeout_s):
                yield step
        except Exception as failure:
            error = {"code": "step_failed", "message": "The step failed."}
            if isinstance(failure, ToolError):
                public = failure.public()
                error = {"code": public["code"], "message": public["message"]}
            self._calls.tell("step.failed", {"step_id": step.id, "error": error}, op)
            raise
        self._calls.tell("step.completed", {"step_id": step.id, "duration_ms": ms_since(started)}, op)

    @contextmanager
    def _limited(self, what: str, seconds: float | None) -> Iterator[None]:
        if seconds is None:
            yield
            return
        stop = self._calls.host.alarm(seconds, TimedOut(f"{what} took longer than {seconds:g} s."))
        try:
            yield
        finally:
            stop()

    def progress(self, fraction: float, label: str | None = None) -> None:
        """How far the running tool is, or outside a tool the running step. Outside both this does nothing."""
        with self._refused():
            about = progressed(fraction, label)
            op, places = self._calls.next("", "tool.progress", "step.progress"), self._calls.places
            if place := places.innermost(CALL) or places.innermost(STEP):
                type = "tool.progress" if place.kind == CALL else "step.progress"
                self._calls.emit(type, {place.kind: place.id, **about}, op)

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
        """Call a function and return its result. In a worker that is committed first, and given as JSON: the function
        is not called again.

        :param label: a sentence for humans; the name where none is given.
        :param summary: the arguments that may be shown; none where it is not given.
        :param retries: how often to call it again when it fails: with a ToolError that is retryable, or unforeseen.
        :param backoff: seconds before the first of them; each pause is twice the one before.
        :raises ToolError: the tool raised; what it has not foreseen is a `tool_error`.
        """
        name = self._given("tool", name=name)["name"]
        policy = {"retries": retries, "backoff": backoff}
        said = checks.arguments(
            "tool", f"({name!r})", self._calls.refuse, function=function, label=label, summary=summary, **policy
        )
        about = {"label": said["label"] or name, "summary": shown(said["summary"] or {}), **self._in_step()}
        arguments = {"args": args, "kwargs": kwargs}
        kept = {"args": without_secrets(_parameters(function), args), "kwargs": kwargs}
        tool = Tool(name, partial(function, *args, **kwargs), arguments, kept, about)
        result: T = call_tool(self._calls, tool, Retries(said["retries"], said["backoff"]), self.sleep)
        return result

    @property
    def tool_call_id(self) -> str:
        """Within a tool: the id of its call."""
        return self._call("tool_call_id").id

    @property
    def idempotency_key(self) -> str:
        """Within a tool: a key that is the same when the call is made again, after a crash or by its retry policy.

        Give it to whoever has the effect: a call may have had it although its result was not recorded. In a job it is
        the same when the job is tried again, for calls of the thread that the job was begun in.

        :raises InvalidCall: nobody could know the call again: it is made in another thread of a job, or without a run.
        """
        key = self._call("idempotency_key").idempotency_key
        if not key:
            raise InvalidCall("run.idempotency_key: there is none without a run, nor in another thread of a job.")
        return key

    def _call(self, what: str) -> Place:
        place = self._calls.places.innermost(CALL)
        if place is None:
            raise InvalidCall(f"run.{what}: there is none outside a tool.")
        return place

    def _in_step(self) -> dict[str, str]:
        place = self._calls.places.innermost(STEP)
        return {STEP: place.id} if place else {}

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
        """Run a program as a tool: {returncode, stdout, stderr, truncated}. In a worker it ends with the run.

        :param env: its whole environment; None: what is harmless of this process', see `programs.INHERITED`.
        :raises ToolError: it cannot be started (`not_started`), or took too long (`timeout`, retryable).
        """
        given = {"argv": argv, "input": input, "cwd": cwd, "env": env}
        said = self._given("exec", **given, timeout_s=timeout_s, label=label)
        name, timeout_s = clean_text(basename(argv[0])), said["timeout_s"]

        def run() -> dict[str, object]:
            from runtail.programs import run_program  # what it needs, few runs need

            try:
                return run_program(argv, input, timeout_s, cwd, env)
            except OSError as error:
                raise ToolError("not_started", f"{name} cannot be started.") from error

        about = {"label": said["label"] or f"Running {name}", **self._in_step()}
        kept = {**given, "env": None if env is None else dict.fromkeys(env, REDACTED)}
        tool = Tool(name, run, given, kept, about)
        result: dict[str, Any] = call_tool(self._calls, tool, Retries(), self.sleep)
        return result

    def parallel(self, *functions: "Callable[[Run], T]") -> list[T]:
        """Call each function with a run of its own, side by side. Returns their results, in order.

        If one of them waits, the run does, once the others have ended. What the first that failed has raised is
        raised when all have ended.
        """
        for function in functions:
            checks.function(function, "run.parallel: each branch")
        op = self._calls.next("")

        def call(n: int, function: "Callable[[Run], T]") -> T:
            run = Run(self._calls.branch(op, n), self.input, self)
            with run.active():
                return function(run)

        branches = [partial(call, n, function) for n, function in enumerate(functions, 1)]
        try:
            return self._calls.host.side_by_side(branches)
        except Suspended as suspended:
            self._calls.suspended(suspended)

    # Text.

    def message(self, role: str = "assistant") -> AbstractContextManager[Message]:
        """A message that is written bit by bit. It is completed at the end of the block, also of one that raises.

        It begins with its first character: where nothing is written there is no message. In a worker the block runs
        again after a crash; what it writes must then be the same. For a text that would not be, such as a model's, use
        `stream`.

        :param role: assistant, system, tool or user.
        """
        return self._shared.messages.message(self._calls, **self._given("message", role=role))

    def stream(self, texts: Iterable[str]) -> str:
        """Write each text as it comes, as one message. Returns the whole; once recorded, `texts` is not asked again.

        Where all texts are empty, as in a model's turn of tool calls only, there is no message. An iterator is closed
        at the end.

        :raises ToolError: `texts` raised; what it has not foreseen is a `stream_error`.
        """
        checks.arguments("stream", texts=texts)
        return self._shared.messages.stream(self._calls, texts)

    # Evidence.

    def source(self, title: str, url: str | None = None, snippet: str | None = None) -> None:
        """Something that the answer rests on."""
        self._say("source.added", "source", title=title, url=url, snippet=snippet)

    def check(self, name: str, passed: bool, score: float | None = None, note: str | None = None) -> None:
        """The outcome of a quality check."""
        self._say("quality.checked", "check", name=name, passed=passed, score=score, note=note)

    def usage(
        self,
        *,
        input_tokens: int | None = None,
        output_tokens: int | None = None,
        cost: float | None = None,
        budget_used_pct: float | None = None,
    ) -> None:
        """What a model turn has used; the run's usage is the sum."""
        tokens = {"input_tokens": input_tokens, "output_tokens": output_tokens}
        self._say("context.usage", "usage", **tokens, cost=cost, budget_used_pct=budget_used_pct)

    def emit(self, type: str, payload: Mapping[str, Any]) -> None:
        """Emit an event of your own, `custom.<name>`, the name being of [a-z0-9_.-].

        :raises InvalidCall: the payload is no mapping with texts for its keys.
        :raises InvalidEvent: another type, or a payload that is too large.
        :raises InvalidJson, TooDeep: the payload is not JSON.
        """
        with self._refused():
            type = checks.arguments("emit", type=type)["type"]
            named = f"An event of your own is custom.<name>, the name 1 to 100 of [a-z0-9_.-], not {type[:100]!r}."
            if not type.startswith("custom."):
                raise InvalidEvent(named)
            op = self._calls.next("", type)
            if not checks.CUSTOM_TYPE.fullmatch(type):
                raise InvalidEvent(named)
            self._calls.emit(type, checks.arguments("emit", payload=payload)["payload"], op)

    def _say(self, type: str, verb: str, **arguments: object) -> None:
        op = self._calls.next("", type)
        self._said(op, type, lambda: given(**checks.arguments(verb, **arguments)))

    def _said(self, op: str, type: str, payload: Callable[[], Mapping[str, Any]]) -> None:
        with self._refused():
            self._calls.emit(type, payload(), op)

    def _given(self, verb: str, of: str = "", /, **values: object) -> dict[str, Any]:
        """The arguments as they are used; one that is refused and not raised, as in a job, has something stand in."""
        return checks.arguments(verb, of, self._calls.refuse, **values)

    @contextmanager
    def _refused(self) -> Iterator[None]:
        """What cannot be emitted is the backend's to raise, or to say."""
        try:
            yield
        except RuntailError as error:
            self._calls.refuse(error)

    # Answers from outside.

    def approve(
        self,
        label: str,
        *,
        tool_call_id: str | None = None,
        expires_in: float | timedelta | None = None,
        requires: str = "owner",
        id: str | None = None,
    ) -> Approval:
        """Ask for a decision and wait for it. In a worker that costs nothing; elsewhere this thread waits.

        :param label: what is to be decided, a sentence for humans.
        :param tool_call_id: the tool call that waits for it; None: it is said of none.
        :param expires_in: seconds, or a timedelta, after which nobody can decide any more; None: never.
        :param requires: who decides: the run's `owner`, or an `operator`, who is an admin of the tenant.
        :param id: a name of your own, of [A-Za-z0-9_.-]. A job that starts over and asks the same under the same name
            gets the decision that was made before; without one it asks anew. In a worker the call's number says that.
        """
        about = {"label": label, "requires": requires, "tool_call_id": tool_call_id, "expires_in": expires_in}
        *question, id = self._given("approve", **about, id=id).values()
        return self._calls.approve(Question(*question), id)

    def inputs(self, *, wait: bool = False) -> list[str]:
        """What the user has sent since the last call, in order.

        :param wait: if there is nothing, wait for it: in a worker that costs nothing; elsewhere this thread waits.
        """
        return self._calls.inputs(**self._given("inputs", wait=wait))

    def now(self) -> datetime:
        """The time in UTC. In a worker as it was when this call was first made, by Postgres' clock."""
        return self._calls.now()

    def random(self) -> float:
        """A random number from 0 up to 1. In a worker the same whenever this call is made again."""
        return self._calls.random()

    # For whoever executes the run.

    def replace_answer(self, text: str) -> str:
        """Write a text that takes the place of all that the assistant has written; returns it as it went out."""
        return self._shared.messages.stream(self._calls, [text], replaces=True)

    def active(self) -> AbstractContextManager[None]:
        """Make this the current run: see `current_run`."""
        return bound(current, self)

    @property
    def answered(self) -> bool:
        """A message of the assistant was written."""
        return self._shared.messages.answer is not None


def _parameters(function: Callable[..., Any]) -> list[str]:
    """The names of its positional parameters; none where it does not tell."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
