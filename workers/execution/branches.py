"""Functions side by side, each in a greenlet of its own."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import gevent

from runtail.branches import Outcome, results
from runtail.interrupts import Interrupted

T = TypeVar("T")

STOP_SECONDS = 1.0
"""Time that the functions get for their `finally` blocks once they are stopped."""


def in_greenlets(functions: Sequence[Callable[[], T]]) -> list[T]:
    """The results, in order, once all have ended. No greenlet outlives the call.

    :raises Suspended: if any of them is to wait, with what all of them wait for.
    :raises Exception: what the first in order that failed has raised.
    """
    outcomes = [Outcome(function) for function in functions]
    greenlets = [gevent.spawn(outcome.find) for outcome in outcomes]
    try:
        gevent.joinall(greenlets)
    finally:
        gevent.killall(greenlets, exception=Interrupted, timeout=STOP_SECONDS)
    return results(outcomes)
