"""What RQ and Celery do to the job that this code is in. Neither is imported where it is not in use."""

import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from inspect import unwrap
from typing import Any

_SUCCESSFUL, _FAILED, _STOPPED, _RETRIES_EXCEEDED = 1, 2, 3, 5
_FINAL = (_SUCCESSFUL, _FAILED, _STOPPED, _RETRIES_EXCEEDED)
"""`rq.results.Result.Type` of an execution after which RQ does not try again by itself."""

RQ_LOST_SECONDS = 30 + 60 + 600 + 420
"""After so long RQ has noticed, with its defaults, that a worker is gone: the job's last sign of life runs out, and
another worker looks for such jobs, which it does every ten minutes and not while it waits for a job."""
CELERY_LOST_SECONDS = 3_600
"""After so long Celery hands a task that was not acknowledged to another worker, where its broker is Redis."""
MARGIN_SECONDS = 60
SHARE_OF_TIME = 0.25
"""Of the time that a job has left, so much at most is spent on waiting for its run to begin."""

log = logging.getLogger("runtail")


@dataclass(frozen=True, slots=True)
class Naming:
    """How the run of this execution of a job is named: an idempotency key, and an end that is added to it.

    :ivar key: the same for all executions of the job, for a job without a ref; None: there is none.
    :ivar first: the end for the run that the execution goes on with, if it has not ended.
    :ivar then: the end for the run that it writes otherwise; None: there is no other one.
    :ivar after: how the first run has to have ended for that.
    :ivar known: only if a try before this one has written it.
    """

    key: str | None = None
    first: str = ""
    then: str | None = None
    after: tuple[str, ...] = ("failed",)
    known: bool = False


def retried(error: BaseException) -> bool:
    """Whether RQ will try the job again, after this error."""
    job = _rq_job()
    return job is not None and bool(job.retries_left)


def again(result: Any) -> bool | None:
    """Whether RQ will try a job again that has returned this; None: it is a result like any other."""
    job, rq = _rq_job(), sys.modules.get("rq")
    if job is None or not isinstance(result, getattr(rq, "Retry", ())):
        return None
    most: int = result.max  # type: ignore[union-attr]
    return (job.number_of_retries or 0) < most


def start_seconds(seconds: float) -> float:
    """How long a job may wait for its run to begin, if it may wait for so long at all."""
    if _rq_job() is None or not hasattr(signal, "getitimer"):
        return seconds
    left, _ = signal.getitimer(signal.ITIMER_REAL)  # with it RQ limits the time of a job
    return min(seconds, SHARE_OF_TIME * left) if left > 0 else seconds


def lease() -> int | None:
    """Seconds that the queue may take to try this job again if its worker is lost; None: it will not."""
    job, task = _rq_job(), _celery_task()
    if job is not None and job.retries_left:
        pause: int = max(job.retry_intervals or [0])
        return RQ_LOST_SECONDS + pause + MARGIN_SECONDS
    if task is not None:
        return _celery_lease(task)
    return None


def naming(function: Callable[..., Any], *, opened: bool) -> Naming:
    """The name of the run of this execution. Where the queue does not answer it is that of a first one.

    :param function: what the job is made of. One that the queue's job only calls writes a run of its own each time.
    :param opened: the job has a ref.
    """
    job, task = _rq_job(), _celery_task()
    try:
        if job is not None and unwrap(job.func) is unwrap(function):
            return _rq_naming(job)
        if task is not None and task.request.id and unwrap(task.run) is unwrap(function):
            return _celery_naming(task.request, opened)
    except Exception:
        log.exception("The queue does not say what the job's last execution has come to.")
    return Naming()


def _rq_naming(job: Any) -> Naming:
    """A *repetition* follows an execution whose success RQ has recorded; after a failure it is a job put back.

    The names are the same for all tries of an execution: they come from what was recorded before the first of them.
    """
    # An id may be used again by a later job.
    key = f"rq:{job.id}:{job.created_at.timestamp() if job.created_at else ''}"
    ends = [(id, type) for id, type in _results(job) if type in _FINAL]
    if getattr(job, "repeat_intervals", None) is not None and job.ended_at is not None and not ends:
        # A long pause: the results are gone by now. What is left to repeat has changed with each success.
        return Naming(key, f":left-{job.repeats_left}")
    if not ends:
        return Naming(key)
    (last, type), *earlier = ends
    if type == _SUCCESSFUL:
        return Naming(key, f":{last}")
    return Naming(key, f":{earlier[0][0]}" if earlier else "", f":{last}")


def _celery_naming(request: Any, opened: bool) -> Naming:
    """A task has an id of its own each time that it is sent, as by beat with the ref of the first; its tries share it.

    Celery records nothing of a ref. So the first task with a ref writes its run, and each later one another run.
    """
    tried = bool(request.retries or (request.delivery_info or {}).get("redelivered"))
    ends = ("completed", "failed", "cancelled")
    return Naming(f"celery:{request.id}", then=f":{request.id}" if opened else None, after=ends, known=tried)


def _results(job: Any) -> list[tuple[str, int]]:
    """The id and type of what RQ has recorded of the job's executions, newest first. No value is deserialised."""
    key = sys.modules["rq.results"].Result.get_key(job.id)
    found = job.connection.xrevrange(key, count=10)
    return [(_text(id), int(payload.get(b"type", payload.get("type", 0)))) for id, payload in found]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _celery_lease(task: Any) -> int | None:
    pause = 0
    if task.request.retries or getattr(task, "autoretry_for", ()):
        backoff = getattr(task, "retry_backoff_max", 0) if getattr(task, "retry_backoff", False) else 0
        pause = max(int(task.default_retry_delay or 0), int(backoff))
    lost = 0
    if task.acks_late:
        options = task.app.conf.broker_transport_options or {}
        lost = int(options.get("visibility_timeout", CELERY_LOST_SECONDS))
    return pause + lost + MARGIN_SECONDS if pause or lost else None


def _rq_job() -> Any:
    rq = sys.modules.get("rq")
    return None if rq is None else rq.get_current_job()


def _celery_task() -> Any:
    celery = sys.modules.get("celery")
    task = None if celery is None else celery.current_task
    return task or None  # a proxy, which is false outside a task
