"""Functions side by side, each in a greenlet or a thread of its own."""

from collections.abc import Callable, Sequence
from threading import Thread
from typing import Generic, TypeVar

import gevent

from workers.execution.interrupts import Interrupted, Suspended

T = TypeVar("T")

STOP_SECONDS = 1.0
"""Time that the functions get for their `finally` blocks once they are stopped."""


def in_greenlets(functions: Sequence[Callable[[], T]]) -> list[T]:
    """The results, in order, once all have ended. No greenlet outlives the call.

    :raises Suspended: if any of them is to wait, with what all of them wait for.
    :raises Exception: what the first in order that failed has raised.
    """
    outcomes = [_Outcome(function) for function in functions]
    greenlets = [gevent.spawn(outcome.find) for outcome in outcomes]
    try:
        gevent.joinall(greenlets)
    finally:
        gevent.killall(greenlets, exception=Interrupted, timeout=STOP_SECONDS)
    return _results(outcomes)


def in_threads(functions: Sequence[Callable[[], T]]) -> list[T]:
    """As `in_greenlets`, for functions that block; a thread cannot be stopped."""
    outcomes = [_Outcome(function) for function in functions]
    threads = [Thread(target=outcome.find, daemon=True) for outcome in outcomes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _results(outcomes)


class _Outcome(Generic[T]):
    """What a function comes to: it is found where the function is called, and taken by who waits for it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self.error: BaseException | None = None
        self._result: list[T] = []

    def find(self) -> None:
        try:
            self._result.append(self._function())
        except BaseException as error:  # the waiting one's to raise; what runs this must end quietly
            self.error = error

    def take(self) -> T:
        if self.error is not None:
            raise self.error
        return self._result[0]


def _results(outcomes: Sequence[_Outcome[T]]) -> list[T]:
    suspended = [outcome.error for outcome in outcomes if isinstance(outcome.error, Suspended)]
    if suspended:
        raise Suspended([wait for one in suspended for wait in one.waits])
    return [outcome.take() for outcome in outcomes]
