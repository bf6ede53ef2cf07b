"""A function as a job that writes a run. The job does its work whether Runtail is there or not."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from runtail_client import queues
from runtail_client.block import RunBlock
from runtail_client.current import current
from runtail_client.errors import RunEnded, RuntailError
from runtail_client.forgiving import Forgiving
from runtail_client.patience import within
from runtail_client.refs import Ref
from runtail_client.run import Run
from runtail_client.sender import Sender
from runtail_client.sinks import Alone

START_SECONDS = 10.0
"""How long a job waits for its run to begin, at most."""

log = logging.getLogger("runtail_client")


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


class _Again(Exception):
    """The job has asked its queue to be tried again."""


class _Done(Exception):
    """An execution before this one has done the work, or nobody wants it any more."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


def as_job(function: Callable[..., Any], runs: JobRuns, retried: Callable[[BaseException], bool]) -> Callable[..., Any]:
    """Of `function(run, …)` a function without `run`, because queues want to find a job by its name."""

    @wraps(function)
    def job(*args: Any, ref: str | None = None, **kwargs: Any) -> Any:
        try:
            sender = _claimed(runs, ref)
        except _Done as done:
            return done.result
        if sender is not None:
            return _write(function, sender, retried, args, kwargs)
        run = Run(Alone())
        with current(run):
            return function(run, *args, **kwargs)

    return job


def _claimed(runs: JobRuns, ref: str | None) -> Sender | None:
    """The writer of this execution's run; None: it does its work without one.

    :raises _Done: there is nothing to do.
    """
    seconds = queues.start_seconds(START_SECONDS)
    # Here, and not where the call is made: a queue's current job is known to its own thread only.
    naming, lease = queues.naming(opened=ref is not None), queues.lease()
    try:
        return within(seconds, lambda: runs.start(ref, naming, lease), _too_late)
    except RunEnded as error:
        ended = error
    except Exception as error:
        _check_time(error)
        log.error("The job does its work without a run. %s", error, exc_info=not isinstance(error, RuntailError))
        return None
    if ended.run_status == "cancelled":
        log.info("%s The job has nothing to do.", ended.detail)
        raise _Done(None)
    if ended.run_status == "completed":
        _give_output(runs, ended, seconds)
    log.error("%s The job does its work without it.", ended.detail)
    return None


def _give_output(runs: JobRuns, ended: RunEnded, seconds: float) -> None:
    """
    :raises _Done: with the output of the run, if it can be read.
    """
    try:
        output = within(seconds, lambda: runs.output(ended), lambda output: None)
    except Exception as error:
        _check_time(error)
        log.error("The output of %s cannot be read. %s", ended.run_id, error)
    else:
        raise _Done(output)


def _write(
    function: Callable[..., Any],
    sender: Sender,
    retried: Callable[[BaseException], bool],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    result, done, again = None, False, None

    def goes_on(error: BaseException) -> bool:
        return bool(again) if isinstance(error, _Again) else retried(error)

    try:
        with RunBlock(lambda: sender, goes_on, Forgiving) as run:
            result = function(run, *args, **kwargs)
            done = True
            if (again := queues.again(result)) is not None:
                raise _Again
            _set_output(run, result)
    except _Again:
        return result
    except Exception as error:
        if not (done and queues.out_of_time(error)):
            raise
        log.error("The job's time was over while the end of %s was on its way.", sender.run_id)
    return result


def _set_output(run: Run, result: Any) -> None:
    if result is None:
        return
    try:
        run.output = result
    except Exception as error:  # whatever a value of the application's own raises when it is looked at
        _check_time(error)
        log.error("%s: the result cannot be shown. %s", run.id, error)


def _too_late(sender: Sender) -> None:
    sender.abandon("writer_lost", "The job did its work without this run: the server took too long to answer.")


def _check_time(error: Exception) -> None:
    """The job's own time is over: that is between it and its queue."""
    if queues.out_of_time(error):
        raise error
