"""The run of a writer: the verbs of every run, and its end, which is the writer's to say."""

import re
from typing import Any

from runtail import checks
from runtail.errors import UNFORESEEN, InvalidCall, InvalidEvent, RunFailed, ToolError
from runtail.external import External, cleaned
from runtail.run import Run
from runtail.sinks import Sink
from runtail.texts import clean_text
from runtail.values import dumps, given

_ERROR_CODE = re.compile(r"[a-z0-9_]{1,64}")
MESSAGE_CHARS = 500
"""Of why a run has failed."""
LONG_OUTPUT_BYTES = 256_000
"""Of an output as JSON that is not sent again, having been streamed."""


class ExternalRun(Run):
    """A run that this process executes. Any number of threads may use its verbs.

    Every verb raises Cancelled once a cancel is known, WriterLost once the run is somebody else's, Refused when the
    server has turned an event down, and InvalidEvent or InvalidCall for what cannot be sent. While the server is away
    verbs go on until the buffer is full, and then wait.
    """

    def __init__(self, sink: Sink) -> None:
        super().__init__(External(sink))
        self._sink = sink
        self._ending: dict[str, Any] = {"status": "completed"}

    @property
    def output(self) -> Any:
        """What the run is to be completed with at the end of its block; None where nothing was set.

        Without one, the server makes it of the answer, the sources and the checks. A text that was not said yet is said
        at the end, in place of what was. Set to what has no JSON form it raises InvalidEvent.
        """
        return self._ending.get("output")

    @output.setter
    def output(self, output: object) -> None:
        try:
            self._ending["output"] = cleaned(output)
        except InvalidEvent as error:
            self._sink.tell(error)

    def complete(self, *output: object) -> dict[str, Any]:
        """Complete the run now, with this output or the one that was set; returns it as it ended.

        :raises RunFailed: the server has failed it: the output cannot be stored.
        """
        if output:
            (self.output,) = output
        ended = self._sink.finish(self._end())
        if ended["status"] == "failed":
            raise RunFailed(ended["error"]["code"], ended["error"]["message"])
        return ended

    def _end(self) -> dict[str, Any]:
        """The end as it is sent: a long text is named, after it was written where it is not the answer yet."""
        output = self._ending.get("output")
        if not isinstance(output, str) or len(dumps(output).encode()) <= LONG_OUTPUT_BYTES:
            return self._ending
        answer = self._shared.messages.answer
        if answer is None:
            self.stream([output])
        elif answer != output:
            self.replace_answer(output)
        return {**self._ending, "output": None, "output_is": "answer"}

    def fail_by(self, error: BaseException, seconds: float | None = None) -> dict[str, Any]:
        """Fail the run by what its code has raised: of a ToolError that is public, of anything else nothing is."""
        if not isinstance(error, ToolError):
            return self.fail("agent_error", "The agent failed.", seconds=seconds)
        public = error.public()
        code, message = public.pop("code"), public.pop("message")
        return self.fail(code if _ERROR_CODE.fullmatch(code) else UNFORESEEN, message, **public, seconds=seconds)

    def fail(
        self,
        code: str,
        message: str,
        *,
        retryable: bool | None = None,
        retry_after_ms: int | None = None,
        seconds: float | None = None,
    ) -> dict[str, Any]:
        """Fail the run now; returns it as it ended.

        :param code: 1 to 64 of [a-z0-9_].
        :param message: fit to be shown; what is beyond 500 characters is cut off.
        :param retryable: the same may succeed later, after `retry_after_ms` where that is known.
        :param seconds: how long that may take; None: as long as the client's `finish_seconds` say.
        """
        if not _ERROR_CODE.fullmatch(checks.text(code, "run.fail: code")):
            raise InvalidCall(f"run.fail: code is 1 to 64 of [a-z0-9_], not {code!r}.")
        about = given(retryable=retryable, retry_after_ms=retry_after_ms)
        error = {"code": code, "message": clean_text(message)[:MESSAGE_CHARS], **about}
        return self._sink.finish({"status": "failed", "error": error}, seconds)
