"""A function as a job that writes a run."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from runtail_client.block import RunBlock
from runtail_client.errors import RunEnded

log = logging.getLogger("runtail_client")


def as_job(
    function: Callable[..., Any], block: Callable[[str | None], RunBlock], output: Callable[[str], Any]
) -> Callable[..., Any]:
    """Of `function(run, …)` a function without `run`, because queues want to find a job by its name.

    :param block: the run of a ref; without one a new run.
    :param output: that of a completed run.
    """

    def call(ref: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = None
        with block(ref) as run:
            result = function(run, *args, **kwargs)
            if result is not None:
                run.output = result
        return result

    @wraps(function)
    def job(*args: Any, ref: str | None = None, **kwargs: Any) -> Any:
        try:
            return call(ref, args, kwargs)
        except RunEnded as ended:
            if ended.run_status == "failed":
                raise
            log.info("%s The job has nothing to do.", ended.detail)
            return output(ended.run_id)

    return job
