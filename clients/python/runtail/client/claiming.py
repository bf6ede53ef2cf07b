"""How an execution of a job comes to its run: at its beginning, or at its end where that could not be done before."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runtail.client import queues
from runtail.client.patience import within
from runtail.client.refs import Ref
from runtail.client.sender import Sender
from runtail.current import current_run
from runtail.errors import Refused, RunEnded, RuntailError
from runtail.time_limits import out_of_time

START_SECONDS = 10.0
"""How long a job waits for its run to begin, at most."""

log = logging.getLogger("runtail")


@dataclass(frozen=True, slots=True)
class JobRuns:
    """How the jobs of one function come to their runs.

    :ivar about: the run of a ref, or for None a new one, with an idempotency key.
    :ivar claim: claims a run, with a lease; raises RunEnded where there is nothing to write any more.
    :ivar known: whether there is such a run, of those that `Ref.followed_by` has made.
    :ivar output: that of a run that was completed.
    """

    about: Callable[[str | None, str | None], Ref]
    claim: Callable[[Ref, int | None], Sender]
    known: Callable[[Ref], bool]
    output: Callable[[RunEnded], Any]

    def start(self, ref: str | None, naming: queues.Naming, lease: int | None) -> Sender:
        """Claim the run of this execution.

        :raises RunEnded: there is nothing to write any more.
        """
        about = self.about(ref, naming.key)
        try:
            return self.claim(about.followed_by(naming.first), lease)
        except RunEnded as ended:
            if naming.then is None or ended.run_status not in naming.after:
                raise
            then = about.followed_by(naming.then)
            if naming.known and not self.known(then):
                raise
        return self.claim(then, lease)


class Done(Exception):
    """An execution before this one has done the work, or nobody wants it any more."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


class Claim:
    """The run of one execution of a job. Make it in the job's own thread: only there is the queue's job known."""

    def __init__(self, function: Callable[..., Any], runs: JobRuns, ref: str | None) -> None:
        self._runs = runs
        self._ref = ref
        self._seconds = queues.start_seconds(START_SECONDS)
        within_another = current_run().id != ""
        self._naming = queues.Naming() if within_another else queues.naming(function, opened=ref is not None)
        self._lease = queues.lease()
        self._turn = threading.Lock()
        self._late: Sender | None = None
        """Came when nobody waited for it any more, and keeps the run until the end of the job."""
        self._over = False
        self._drop: Callable[[Sender], None] = _abandon
        """What becomes of who comes when it is over."""
        self._again = False

    def first(self) -> Sender | None:
        """The writer of the run; None: the job does its work without one.

        :raises Done: there is nothing to do.
        """
        try:
            return within(self._seconds, self._start, self._keep)
        except RunEnded as error:
            ended = error
        except Exception as error:
            check_time(error)
            log.error("The job does its work without a run. %s", error, exc_info=not isinstance(error, RuntailError))
            self._again = not isinstance(error, Refused) or error.passing
            return None
        if ended.run_status == "cancelled":
            log.info("%s The job has nothing to do.", ended.detail)
            raise Done(None)
        if ended.run_status == "completed":
            self._give_output(ended)
        log.error("%s The job does its work without it.", ended.detail)
        return None

    def last(self) -> Sender | None:
        """The writer of the run for who has done the work without one; None: the run cannot be told of it."""
        late = self._end()
        if late is not None or not self._again:
            return late
        try:
            return within(self._seconds, self._start, _abandon)
        except Exception as error:  # RunEnded too: whoever has ended it
            check_time(error)
            log.error("The job has done its work, and its run does not show it. %s", error)
            return None

    def give_up(self, tried_again: bool) -> None:
        """The job was stopped: whoever has come too late, or is still to come, does not keep the run.

        :param tried_again: the run is left open for the job's next try; otherwise it has failed.
        """
        if tried_again:
            self._drop = Sender.stop
        if (late := self._end()) is not None:
            self._drop(late)

    def _end(self) -> Sender | None:
        """From now on nobody is kept. Returns who was, as the caller's own."""
        with self._turn:
            self._over = True
            late, self._late = self._late, None
            return late

    def _start(self) -> Sender:
        return self._runs.start(self._ref, self._naming, self._lease)

    def _keep(self, sender: Sender) -> None:
        with self._turn:
            if not self._over:
                self._late = sender
                return
        self._drop(sender)

    def _give_output(self, ended: RunEnded) -> None:
        """
        :raises Done: with the output of the run, if it can be read.
        """
        try:
            output = within(self._seconds, lambda: self._runs.output(ended), lambda output: None)
        except Exception as error:
            check_time(error)
            log.error("The output of %s cannot be read. %s", ended.run_id, error)
        else:
            raise Done(output)


def check_time(error: Exception) -> None:
    """
    :raises Exception: the job's own time is over; that is between it and its queue.
    """
    if out_of_time(error):
        raise error


def _abandon(sender: Sender) -> None:
    sender.abandon("writer_lost", "The job went on, or ended, without this run: the server took too long to answer.")
