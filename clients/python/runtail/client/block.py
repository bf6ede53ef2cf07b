"""The block in which a run is written: opens it, ends it, and says what becomes of an exception."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType

from runtail.client.external_run import ExternalRun
from runtail.client.sender import Sender
from runtail.errors import Cancelled, Refused, RunFailed, RuntailError, WriterLost
from runtail.sinks import Sink

INTERRUPTED_SECONDS = 5.0
"""How long the end of a run may take to be confirmed while the process is being stopped."""

log = logging.getLogger("runtail")


def never(error: BaseException) -> bool:
    """What has failed is not done again."""
    return False


class RunBlock:
    """`with client.run(…) as run:`. At the end of the block

    - the run is completed, with `run.output` where that was set, and all of it confirmed by the server;
    - after an exception it has failed, as `agent_error` with a fixed text, and the exception goes on;
    - after Cancelled it is cancelled, and the code after the block goes on: `run.cancelled` says so.
    """

    def __init__(
        self,
        start: Callable[[], Sender],
        retried: Callable[[BaseException], bool] = never,
        sink: Callable[[Sender], Sink] | None = None,
    ) -> None:
        """
        :param retried: whether what has raised this will be done again; then the run is left open for that.
        :param sink: what the run writes to; None: the sender itself.
        """
        self._start = start
        self._sink = sink
        self._retried = retried
        self._exit = ExitStack()

    def __enter__(self) -> ExternalRun:
        self._sender = self._start()
        self._run = ExternalRun(self._sink(self._sender) if self._sink else self._sender)
        self._exit.enter_context(self._run.active())
        return self._run

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        self._exit.close()
        if self._sender.elsewhere or self._sender.ended is not None:
            return False  # a process forked in the block leaves it too, and the run is not its to end
        if error is None:
            self._complete()
            return False
        mine = isinstance(error, Cancelled) and error.run_id == self._run.id
        try:
            self._give_up(error, mine)
        except RuntailError as trouble:
            log.warning("The end of %s was not written: %s", self._run.id, trouble)  # `error` says more
        finally:
            self._sender.stop()
        return mine

    def _complete(self) -> None:
        try:
            self._run.complete()
        except Refused:
            try:
                self._run.fail("agent_error", "The agent failed.")
            finally:
                self._sender.stop()
            raise

    def _give_up(self, error: BaseException, cancelled: bool) -> None:
        seconds = self._sender.patience.finish
        if not isinstance(error, Exception | Cancelled):
            seconds = min(seconds, INTERRUPTED_SECONDS)
        if isinstance(error, WriterLost | RunFailed):
            return
        if cancelled:
            self._sender.finish({"status": "cancelled"}, seconds)
        elif self._retried(error):
            self._sender.leave(seconds)
        else:
            self._run.fail_by(error, seconds)
