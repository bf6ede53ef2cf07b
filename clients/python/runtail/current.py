"""`current_run` and `emit`, for code that is shared with a path without a run."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

from runtail.run import Run
from runtail.sinks import Nowhere
from runtail.within import bound

OUTSIDE = Run(Nowhere())

_current: ContextVar[Run] = ContextVar("runtail_run", default=OUTSIDE)


def current_run() -> Run:
    """The run whose block this code is in. Outside one: a run whose verbs emit nothing, and do what else they do."""
    return _current.get()


def emit(type: str, payload: Mapping[str, Any]) -> None:
    """Emit a `custom.<name>` event of the current run; outside a run nothing is sent."""
    _current.get().emit(type, payload)


def current(run: Run) -> AbstractContextManager[None]:
    """Make this the current run within the block."""
    return bound(_current, run)
