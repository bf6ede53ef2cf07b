"""Functions side by side."""

from collections.abc import Callable, Sequence
from threading import Thread
from typing import Generic, TypeVar

from runtail.interrupts import Suspended

T = TypeVar("T")


def in_threads(functions: Sequence[Callable[[], T]]) -> list[T]:
    """The results of the functions, in order, each called in a thread of its own; a thread cannot be stopped.

    :raises Suspended: if any of them is to wait, with what all of them wait for.
    :raises Exception: what the first in order that failed has raised.
    """
    outcomes = [Outcome(function) for function in functions]
    threads = [Thread(target=outcome.find, daemon=True) for outcome in outcomes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results(outcomes)


class Outcome(Generic[T]):
    """What a function comes to: it is found where the function is called, and taken by who waits for it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self.error: BaseException | None = None
        self._result: list[T] = []

    def find(self) -> None:
        """Call the function."""
        try:
            self._result.append(self._function())
        except BaseException as error:  # the waiting one's to raise; what runs this must end quietly
            self.error = error

    def take(self) -> T:
        """What it has returned, or raised."""
        if self.error is not None:
            raise self.error
        return self._result[0]


def results(outcomes: Sequence[Outcome[T]]) -> list[T]:
    """See `in_threads`."""
    suspended = [outcome.error for outcome in outcomes if isinstance(outcome.error, Suspended)]
    if suspended:
        raise Suspended([wait for one in suspended for wait in one.waits])
    return [outcome.take() for outcome in outcomes]
