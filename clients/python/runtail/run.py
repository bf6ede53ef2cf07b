"""`Run`: the verbs of a writer."""

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from runtail.errors import InvalidEvent, RunFailed, ToolError, WriterLost
from runtail.handles import Approval, Message, Step
from runtail.sinks import Sink
from runtail.time_limits import out_of_time
from runtail.values import clamped, clean, clean_text, dumps, given, preview, shown
from runtail.within import CALL, STEP, inside, places_of

T = TypeVar("T")

_ERROR_CODE = re.compile(r"[a-z0-9_]{1,64}")
UNFORESEEN = "tool_error"
"""Code of a failure that the tool has not foreseen with a ToolError of its own."""
LONG_OUTPUT_BYTES = 256_000
"""Of an output as JSON that is not sent again, having been streamed."""
EXPIRY_GRACE_SECONDS = 30.0
"""How long after its end the server may take to say that an approval has expired."""


class Run:
    """The verbs. Any number of threads may use them.

    Every verb raises Cancelled once a cancel is known, WriterLost once the run is somebody else's, Refused when the
    server has turned an event down, and InvalidEvent for what cannot be sent. While the server is away verbs go on
    until the buffer is full, and then wait.

    :ivar id: the run's id; empty outside a run.
    """

    def __init__(self, sink: Sink) -> None:
        self.id = sink.run_id
        self._sink = sink
        self._numbers = {kind: itertools.count(1) for kind in ("step", "call", "msg", "apr")}
        self._planned: list[dict[str, str]] = []
        self._ending: dict[str, Any] = {"status": "completed"}
        self._answer: Message | None = None
        """The last message of the assistant."""

    def _new_id(self, kind: str) -> str:
        number = next(self._numbers[kind])
        # What is done again by a writer that starts over takes the place of what the earlier one did. What is said or
        # asked again is new: the earlier one's text, and the decision that was made on it, stay what they were.
        return f"{kind}_{number}" if kind in ("step", "call") else f"{kind}_{number}.{self._sink.epoch}"

    # Being cancelled.

    @property
    def cancelled(self) -> bool:
        """A cancel was requested."""
        return self._sink.cancelled

    def check_cancelled(self) -> None:
        """Do nothing, unless there is something to raise. For a loop that calls no other verb."""
        self._sink.check()

    def sleep(self, seconds: float) -> None:
        """Sleep, and wake up at once when the run is cancelled."""
        self._sink.sleep(seconds)

    # Progress.

    def plan(self, titles: Sequence[str]) -> list[str]:
        """Say what is going to happen. Returns the steps' ids, for `step(..., id=…)`.

        Said again, it changes the plan: a title that stays keeps its id, and so its status.
        """
        type = "plan.updated" if self._planned else "plan.created"
        known = {step["title"]: step["id"] for step in self._planned}
        titles = [clean_text(title) for title in titles]
        self._planned = [{"id": known.get(title) or self._new_id("step"), "title": title} for title in titles]
        self._sink.add(type, {"steps": self._planned})
        return [step["id"] for step in self._planned]

    @contextmanager
    def step(self, title: str, *, id: str | None = None) -> Iterator[Step]:
        """A step of the work. Without an id, the planned step of that title, if there is one."""
        title, planned = clean_text(title), self._planned
        known = next((step["id"] for step in planned if step["title"] == title), None)
        step = Step(id or known or self._new_id("step"), self._emit)
        index = next((n for n, step_ in enumerate(planned) if step_["id"] == step.id), len(planned))
        self._sink.add("step.started", {"step_id": step.id, "title": title, "index": index})
        started = time.monotonic()
        try:
            with inside(self, STEP, step.id):
                yield step
        except Exception as failure:
            error = {"code": "step_failed", "message": "The step failed."}
            if isinstance(failure, ToolError):
                error = {"code": clean_text(failure.code), "message": clean_text(failure.detail)}
            self._sink.add("step.failed", {"step_id": step.id, "error": error}, closes=True)
            raise
        self._sink.add("step.completed", {"step_id": step.id, "duration_ms": _ms_since(started)}, closes=True)

    def progress(self, fraction: float, label: str | None = None) -> None:
        """How far the running tool is, or outside a tool the running step. Outside both this does nothing."""
        within = places_of(self)
        if within:
            key, id = within[-1]
            about = {key: id, "fraction": clamped(fraction), **given(label=label)}
            self._emit("step.progress" if key == STEP else "tool.progress", about)

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
        """Call a function and return what it returned. The arguments are never sent, of the result a preview.

        :param label: a sentence for humans; the name where none is given.
        :param summary: the arguments that may be shown; none where it is not given.
        :param retries: how often to call it again when it fails: with a ToolError that is retryable, or unforeseen.
        :param backoff: seconds before the first of them; each pause is twice the one before.
        :raises ToolError: the tool raised; what it has not foreseen is a `tool_error`.
        """
        about: dict[str, Any] = {"name": name, "label": label or name, "summary": shown(summary or {})}
        for attempt in itertools.count():
            try:
                return self._call(about, lambda: function(*args, **kwargs))
            except ToolError as error:
                if attempt >= retries or not (error.retryable or error.code == UNFORESEEN):
                    raise
            self.sleep(backoff * 2**attempt)
        raise AssertionError("unreachable")

    def _call(self, about: Mapping[str, Any], function: Callable[[], T]) -> T:
        call_id = self._new_id("call")
        step_id = dict(places_of(self)).get(STEP)
        self._emit("tool.started", {"tool_call_id": call_id, **about, **given(step_id=step_id)})
        started = time.monotonic()
        try:
            with inside(self, CALL, call_id), foreseen(UNFORESEEN, "The tool failed."):
                result = function()
        except ToolError as error:
            public = {"code": error.code, "message": error.detail, "retryable": error.retryable}
            failed = {"tool_call_id": call_id, **public, "duration_ms": _ms_since(started)}
            self._sink.add("tool.failed", clean(failed), closes=True)
            raise
        done = {"tool_call_id": call_id, **preview(result), "duration_ms": _ms_since(started)}
        self._sink.add("tool.completed", done, closes=True)
        return result

    # Text.

    @contextmanager
    def message(self, role: str = "assistant") -> Iterator[Message]:
        """A message that is written bit by bit. It is completed at the end of the block, also of one that raises.

        It begins with its first character: where nothing is written there is no message.

        :param role: assistant, system, tool or user.
        """
        if role not in ("assistant", "system", "tool", "user"):
            raise ValueError(f"A message is assistant's, system's, tool's or user's, not {role!r}.")

        def send(message_id: str, text: str) -> None:
            if not message.chars:
                self._answer = message if role == "assistant" else self._answer
                self._sink.add("message.started", {"message_id": message_id, "role": role})
            self._sink.write(message_id, text)

        message = Message(self._new_id("msg"), send)
        try:
            yield message
        finally:
            if message.chars:
                self._sink.add("message.completed", {"message_id": message.id, "chars": message.chars}, closes=True)

    def stream(self, texts: Iterable[str]) -> str:
        """Write each text as it comes, as one message; returns the whole. An iterator is closed at the end.

        :raises ToolError: `texts` raised; what it has not foreseen is a `stream_error`.
        """
        try:
            with foreseen("stream_error", "The stream failed."), self.message() as message:
                for text in texts:
                    message.write(text)
            return message.text
        finally:
            if isinstance(texts, Iterator) and hasattr(texts, "close"):
                texts.close()  # a provider's stream ends with the run, not when somebody collects the garbage

    # Evidence.

    def source(self, title: str, url: str | None = None, snippet: str | None = None) -> None:
        """Something that the answer rests on."""
        self._emit("source.added", {"title": title, **given(url=url, snippet=snippet)})

    def check(self, name: str, passed: bool, score: float | None = None, note: str | None = None) -> None:
        """The outcome of a quality check."""
        self._emit("quality.checked", {"name": name, "passed": bool(passed), **given(score=score, note=note)})

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
        self._emit("context.usage", used)

    def emit(self, type: str, payload: Mapping[str, Any]) -> None:
        """Emit an event of your own, `custom.<name>`, the name being of [a-z0-9_.-].

        :raises InvalidEvent: another type, or a payload that is no JSON object or too large.
        """
        if not type.startswith("custom."):
            self._sink.tell(InvalidEvent(f"Events of your own are named custom.<name>, not {type!r}."))
            return
        self._emit(type, payload)

    def _emit(self, type: str, payload: Mapping[str, Any]) -> None:
        try:
            cleaned = clean(payload)
        except InvalidEvent as error:
            self._sink.tell(error)
            return
        self._sink.add(type, cleaned)

    # Answers from outside.

    def approve(
        self,
        label: str,
        *,
        expires_in: float | timedelta | None = None,
        requires: str = "owner",
        tool_call_id: str | None = None,
        id: str | None = None,
    ) -> Approval:
        """Ask for a decision and wait for it. This thread waits, and the process has to live until then.

        :param id: a name of your own, of [A-Za-z0-9_.-]. A writer that starts over and asks the same under the same
            name gets the decision that was made before; without one it asks anew.
        :param expires_in: seconds, or a timedelta, after which nobody can decide any more; None: never.
        :param requires: who decides: the run's `owner`, or an `operator`, who is an administrator of the tenant.
        """
        if requires not in ("owner", "operator"):
            raise ValueError(f"An approval is given by owner or operator, not {requires!r}.")
        approval_id = id or self._new_id("apr")
        payload = {"approval_id": approval_id, "label": label, "requires": requires, **given(tool_call_id=tool_call_id)}
        seconds = expires_in.total_seconds() if isinstance(expires_in, timedelta) else expires_in
        if seconds is not None:
            end = datetime.now(UTC) + timedelta(seconds=seconds)
            payload["expires_at"] = end.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._emit("approval.required", payload)
        decision = self._sink.decision(approval_id, None if seconds is None else seconds + EXPIRY_GRACE_SECONDS)
        if decision is None:
            return Approval("expired", None, None)
        return Approval(decision["decision"], decision["by"], decision["comment"])

    def inputs(self, *, wait: bool = False) -> list[str]:
        """What the user has sent since the last call, in order. This asks the server.

        :param wait: if there is nothing, wait for it.
        """
        return self._sink.inputs(wait)

    # The end.

    @property
    def output(self) -> Any:
        """What the run is to be completed with at the end of its block; None where nothing was set.

        Without one, the server makes it of the answer, the sources and the checks. A text has to be the one that
        was streamed; one that was not streamed at all the server streams. Set to what has no JSON form it raises
        InvalidEvent.
        """
        return self._ending.get("output")

    @output.setter
    def output(self, output: object) -> None:
        try:
            self._ending["output"] = clean(output)
        except InvalidEvent as error:
            self._sink.tell(error)

    def complete(self, *output: object) -> dict[str, Any]:
        """Complete the run now, with this output or the one that was set; returns it as it ended.

        :raises RunFailed: the output is not the text that was streamed.
        """
        if output:
            (self.output,) = output
        ended = self._sink.finish(self._said())
        if ended["status"] == "failed":
            raise RunFailed(ended["error"]["code"], ended["error"]["message"])
        return ended

    def _said(self) -> dict[str, Any]:
        """The end as it is sent: a long text that was streamed is named, one that was not is streamed first."""
        output = self._ending.get("output")
        if not isinstance(output, str) or len(dumps(output).encode()) <= LONG_OUTPUT_BYTES:
            return self._ending
        if self._answer is None:
            self.stream([output])
        is_answer = self._answer is not None and self._answer.text == output
        return {**self._ending, "output": None, "output_is": "answer"} if is_answer else self._ending

    def fail(self, code: str, message: str, *, seconds: float | None = None) -> dict[str, Any]:
        """Fail the run now; returns it as it ended.

        :param code: 1 to 64 of [a-z0-9_].
        :param message: fit to be shown; what is beyond 500 characters is cut off.
        :param seconds: how long that may take; None: as long as the client's `finish_seconds` say.
        """
        if not _ERROR_CODE.fullmatch(code):
            raise ValueError(f"An error's code is 1 to 64 of [a-z0-9_], not {code!r}.")
        error = {"code": code, "message": clean_text(message)[:500]}
        return self._sink.finish({"status": "failed", "error": error}, seconds)


@contextmanager
def foreseen(code: str, message: str) -> Iterator[None]:
    """Make a ToolError of whatever else is raised."""
    try:
        yield
    except (ToolError, WriterLost):
        raise
    except Exception as error:
        if out_of_time(error):
            raise
        raise ToolError(code, message) from error


def _ms_since(started: float) -> int:
    return round((time.monotonic() - started) * 1_000)
