"""What can go wrong, with a stable code each. Everything but `Cancelled` is a `RuntailError`."""

from collections.abc import Mapping
from typing import Any

from runtail.texts import clean_text

DETAIL_CHARS = 1_000
"""Of most details: one may quote what somebody has given, and goes into answers, rows and logs."""
CODE_CHARS = 100
"""Of a ToolError's code."""
RETRY_AFTER_MS_MAX = 2**53 - 1
UNFORESEEN = "tool_error"
"""Code of a failure that the tool has not foreseen with a ToolError of its own."""


class RuntailError(Exception):
    """
    :ivar detail: a sentence for humans, cut to `detail_chars`.
    :ivar code: a short stable word; those of the server are in its protocol's table of error codes.
    :ivar status: the HTTP status of an answer that says so; None: there is none.
    :ivar title: what all errors of this code have in common.
    """

    code: str = "internal_error"
    status: int | None = None
    title: str = "Internal error"
    detail_chars: int = DETAIL_CHARS

    def __init__(self, detail: str = "") -> None:
        self.detail = detail[: self.detail_chars] or self.title
        super().__init__(self.detail)


# Of values.


class InvalidJson(RuntailError):
    """A value that has no faithful JSON form: NaN, infinity, integer beyond ±(2^53-1), not JSON."""

    code = "invalid_json"
    status = 400
    title = "Not valid JSON"


class TooDeep(RuntailError):
    """JSON nested deeper than the limit."""

    code = "json_too_deep"
    status = 400
    title = "JSON nested too deeply"


class InvalidEvent(RuntailError, ValueError):
    """An event whose type is unknown or not the caller's own, or whose payload does not fit its schema."""

    code = "invalid_event"
    status = 422
    title = "Invalid event"


# Of calls.


class InvalidCall(RuntailError, ValueError):
    """The agent gave one of its calls a value that cannot be kept; the detail names the call."""

    code = "invalid_call"
    title = "A call of the agent was given a value that cannot be kept"


class InvalidOutput(RuntailError):
    """What the agent, or one of its tools, returned has no faithful JSON form, or is too large."""

    code = "invalid_output"
    title = "The agent's output is not valid"


class NondeterministicAgent(RuntailError):
    """Run again after a crash or a wait, the agent made other calls than those that are recorded."""

    code = "nondeterministic_agent"
    title = "The agent did not repeat its recorded calls"


class NeedsIsolation(RuntailError, ValueError):
    """The agent did what would reach every run of a shared worker, such as a fork.

    A ValueError as CPython raises it for signals outside the main thread: libraries expect that one.
    """

    code = "needs_isolation"
    title = 'The agent needs isolation="process"'


class ToolError(RuntailError):
    """Raise it in a tool to say in public what went wrong.

    What is no text is made one, and cut to CODE_CHARS or `detail_chars`.

    :param code: a short stable word.
    :param retryable: the same call may succeed later.
    :param retry_after_ms: after so many milliseconds, where that is known.
    """

    title = detail = "The tool failed."
    detail_chars = 10_000
    retryable = False
    retry_after_ms: int | None = None

    def __init__(self, code: str, detail: str, *, retryable: bool = False, retry_after_ms: int | None = None) -> None:
        super().__init__(clean_text(_text_of(detail)))
        self.code = clean_text(_text_of(code))[:CODE_CHARS]
        self.retryable = bool(retryable)
        if isinstance(retry_after_ms, int) and 0 <= retry_after_ms <= RETRY_AFTER_MS_MAX:
            self.retry_after_ms = int(retry_after_ms)

    @property
    def worth_another_try(self) -> bool:
        """It may succeed later, or nobody knows."""
        return self.retryable or self.code == UNFORESEEN

    def public(self) -> dict[str, Any]:
        """{code, message, retryable, retry_after_ms?}, as shown and recorded, whatever a subclass has made of them."""
        fit = ToolError(self.code, self.detail, retryable=self.retryable, retry_after_ms=self.retry_after_ms)
        more = {} if fit.retry_after_ms is None else {"retry_after_ms": fit.retry_after_ms}
        return {"code": fit.code, "message": fit.detail, "retryable": fit.retryable, **more}

    @classmethod
    def of(cls, public: Mapping[str, Any]) -> "ToolError":
        """The error that `public` was made of."""
        about = {"retryable": public["retryable"], "retry_after_ms": public.get("retry_after_ms")}
        return cls(public["code"], public["message"], **about)


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:  # whatever the `__str__` of somebody's own raises
        return f"<{type(value).__name__}>"


# Of a server.


class ServerError(RuntailError):
    """What became of a call to the server, or of a run there. Its text shows the code."""

    def __str__(self) -> str:
        return f"{self.detail} ({self.code})"


class Unreachable(ServerError):
    """The server does not answer, or something else does."""

    code = "unreachable"
    retry_after = 0.0
    passing = True


class Refused(ServerError):
    """The server answered with an error."""

    def __init__(self, status: int, code: str, detail: str, retry_after: float = 0.0) -> None:
        """:param retry_after: seconds that the server asks to wait; 0: it does not say."""
        super().__init__(detail)
        self.status = status
        self.code = code
        self.retry_after = retry_after

    @property
    def passing(self) -> bool:
        """The same request may well succeed a little later."""
        return self.status in (408, 429) or (self.status or 0) >= 500


class WriterLost(ServerError):
    """The run is not this writer's any more: another one has it, or it has ended. Nothing more can be written."""

    code = "writer_lost"


class RunEnded(ServerError):
    """The run that was to be written has ended before.

    :ivar run_id: its id.
    :ivar run_status: how: completed, failed or cancelled.
    :ivar user: for whom it was opened; None: the client's own user.
    """

    code = "run_ended"

    def __init__(self, run_id: str, run_status: str, user: str | None = None) -> None:
        super().__init__(f"{run_id} has ended: {run_status}.")
        self.run_id = run_id
        self.run_status = run_status
        self.user = user


class RunFailed(ServerError):
    """The run was to be completed, and the server has failed it: its output cannot be stored, or a hook refuses it."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Cancelled(BaseException):
    """The run was cancelled. Raised by its verbs, and caught at the end of the run's block.

    No `Exception`, so that an `except Exception` around some work lets it pass.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(f"{run_id} was cancelled.")
        self.run_id = run_id
