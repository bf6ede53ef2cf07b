"""Functions side by side, each in a greenlet, none of which outlives the call."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import gevent

from workers.interrupts import Interrupted, Suspended

T = TypeVar("T")

STOP_SECONDS = 1.0
"""Time that the functions get for their `finally` blocks once they are stopped."""


def side_by_side(functions: Sequence[Callable[[], T]]) -> list[T]:
    """The results, in order, once all have ended.

    :raises Suspended: if any of them is to wait, with what all of them wait for.
    :raises Exception: what the first in order that failed has raised.
    """
    outcomes: list[T | BaseException | None] = [None] * len(functions)

    def run(index: int) -> None:
        try:
            outcomes[index] = functions[index]()
        except BaseException as error:  # the caller's to raise; the greenlet itself must end quietly
            outcomes[index] = error

    greenlets = [gevent.spawn(run, index) for index in range(len(functions))]
    try:
        gevent.joinall(greenlets)
    finally:
        gevent.killall(greenlets, exception=Interrupted, timeout=STOP_SECONDS)
    suspended = [outcome for outcome in outcomes if isinstance(outcome, Suspended)]
    if suspended:
        raise Suspended([wait for one in suspended for wait in one.waits])
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes  # type: ignore[return-value]  # every one of them is a result
