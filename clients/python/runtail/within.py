"""Where in a run some code is: the steps and tool calls around it, by a context variable: each thread has its own."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")

STEP, CALL = "step_id", "tool_call_id"

_within: ContextVar[tuple[tuple[object, str, str], ...]] = ContextVar("runtail_within", default=())
"""The steps and tool calls that this code is in, innermost last: of which run, STEP or CALL, its id."""


@contextmanager
def inside(run: object, key: str, id: str) -> Iterator[None]:
    """Make this the innermost step or call of that run."""
    with bound(_within, (*_within.get(), (run, key, id))):
        yield


def places_of(run: object) -> list[tuple[str, str]]:
    """The steps and calls of that run that this code is in: STEP or CALL, and the id."""
    return [(key, id) for owner, key, id in _within.get() if owner is run]


@contextmanager
def bound(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Give the variable that value within the block."""
    token = variable.set(value)
    try:
        yield
    finally:
        # A generator that servers of async frameworks iterate over ends in another context than it began in. That
        # one never had the value.
        with suppress(ValueError):
            variable.reset(token)
