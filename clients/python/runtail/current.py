"""`current_run` and `emit`, for code that is shared with a path without a run."""

from collections.abc import Mapping
from typing import Any

from runtail.external import External
from runtail.run import Run
from runtail.sinks import Nowhere
from runtail.within import current

OUTSIDE = Run(External(Nowhere()))


def current_run() -> Run:
    """The run that this code belongs to. Outside one: a run whose verbs emit nothing, and do what else they do."""
    run = current.get()
    return run if isinstance(run, Run) else OUTSIDE


def emit(type: str, payload: Mapping[str, Any]) -> None:
    """Emit a `custom.<name>` event of the current run; outside a run nothing is sent."""
    current_run().emit(type, payload)
