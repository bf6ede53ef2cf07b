"""A function as a job that writes a run. The job does its work whether Runtail is there or not."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from runtail.client import queues
from runtail.client.block import RunBlock
from runtail.client.claiming import Claim, Done, JobRuns, check_time
from runtail.client.external_run import ExternalRun
from runtail.client.forgiving import Alone, Forgiving
from runtail.client.sender import Sender
from runtail.time_limits import out_of_time

log = logging.getLogger("runtail")


class _Again(Exception):
    """The job has asked its queue to be tried again."""


def as_job(function: Callable[..., Any], runs: JobRuns, retried: Callable[[BaseException], bool]) -> Callable[..., Any]:
    """Of `function(run, …)` a function without `run`, because queues want to find a job by its name."""

    @wraps(function)
    def job(*args: Any, ref: str | None = None, **kwargs: Any) -> Any:
        claim = Claim(function, runs, ref)
        try:
            sender = claim.first()
        except Done as done:
            return done.result
        except BaseException as stopped:
            claim.give_up(retried(stopped))
            raise
        if sender is not None:
            return _write(function, sender, retried, args, kwargs)
        return _work_alone(function, claim, retried, args, kwargs)

    return job


def _work_alone(
    function: Callable[..., Any],
    claim: Claim,
    retried: Callable[[BaseException], bool],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The work without a run, which is told of it afterwards if the server is back by then."""
    result, error = None, None
    run = ExternalRun(Alone())
    try:
        with run.active():
            result = function(run, *args, **kwargs)
    except Exception as raised:
        error = raised
    except BaseException as stopped:
        claim.give_up(retried(stopped))
        raise

    def outcome(run: ExternalRun) -> Any:
        if error is not None:
            raise error
        return result

    try:
        sender = claim.last()
    except Exception:  # the job's time is over
        sender = None
    return outcome(run) if sender is None else _write(outcome, sender, retried, (), {})


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
        if not (done and out_of_time(error)):
            raise
        log.error("The job's time was over while the end of %s was on its way.", sender.run_id)
    return result


def _set_output(run: ExternalRun, result: Any) -> None:
    if result is None:
        return
    try:
        run.output = result
    except Exception as error:  # whatever a value of the application's own raises when it is looked at
        check_time(error)
        log.error("%s: the result cannot be shown. %s", run.id, error)
