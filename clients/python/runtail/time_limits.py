"""What RQ and Celery throw into a job whose time is over. Neither is imported where it is not in use."""

import sys

_TIME_LIMITS = (("rq.timeouts", "BaseTimeoutException"), ("billiard.exceptions", "SoftTimeLimitExceeded"))


def out_of_time(error: BaseException) -> bool:
    """Whether a queue has thrown this into its job, whose time is over."""
    kinds = (getattr(sys.modules.get(module), name, None) for module, name in _TIME_LIMITS)
    return any(kind is not None and isinstance(error, kind) for kind in kinds)
