"""What RQ and Celery do to the job that this code is in. Neither is imported where it is not in use."""

import sys
from typing import Any

_TIME_LIMITS = (("rq.timeouts", "BaseTimeoutException"), ("billiard.exceptions", "SoftTimeLimitExceeded"))


def out_of_time(error: Exception) -> bool:
    """Whether the queue has thrown this into its job, whose time is over."""
    kinds = (getattr(sys.modules.get(module), name, None) for module, name in _TIME_LIMITS)
    return any(kind is not None and isinstance(error, kind) for kind in kinds)


def key() -> str | None:
    """An idempotency key that is the same whenever the job is tried again; None: this is no RQ job."""
    job = _job()
    return None if job is None else f"rq:{job.id}"


def retried(error: BaseException) -> bool:
    """Whether RQ will try the job again, after this error."""
    job = _job()
    return job is not None and bool(job.retries_left)


def _job() -> Any:
    rq = sys.modules.get("rq")
    return None if rq is None else rq.get_current_job()
