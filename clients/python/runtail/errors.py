"""What a call may raise. Everything but `Cancelled` is a `RuntailError`."""


class RuntailError(Exception):
    """
    :ivar detail: a sentence for humans.
    :ivar code: a short stable word; those of the server are in its protocol's table of error codes.
    :ivar status: the HTTP status of the server's answer; None: it did not come from an answer.
    """

    code = "client_error"
    status: int | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.detail} ({self.code})"


class Unreachable(RuntailError):
    """The server does not answer, or something else does."""

    code = "unreachable"
    retry_after = 0.0
    passing = True


class Refused(RuntailError):
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


class WriterLost(RuntailError):
    """The run is not this writer's any more: another one has it, or it has ended. Nothing more can be written."""

    code = "writer_lost"


class RunEnded(RuntailError):
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


class RunFailed(RuntailError):
    """The run was to be completed, and the server has failed it: its output is not the text that was streamed."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class InvalidEvent(RuntailError, ValueError):
    """Refused where it was emitted: not JSON that every reader reads alike, too large, or of a type not its own."""

    code = "invalid_event"


class ToolError(RuntailError):
    """Raise it in a tool to say in public what went wrong.

    :ivar retryable: the same call may succeed later.
    """

    def __init__(self, code: str, detail: str, *, retryable: bool = False) -> None:
        super().__init__(detail)
        self.code = code
        self.retryable = retryable


class Cancelled(BaseException):
    """The run was cancelled. Raised by its verbs, and caught at the end of the run's block.

    No `Exception`, so that an `except Exception` around some work lets it pass.
    """

    def __init__(self, run_id: str) -> None:
        super().__init__(f"{run_id} was cancelled.")
        self.run_id = run_id
