"""What the RQ job that this code is in knows of itself. RQ is not imported where it is not in use."""

import sys
from typing import Any


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
