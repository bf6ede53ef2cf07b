"""Where in a run some code is: the steps and tool calls around it, by a context variable.

A thread or greenlet that somebody starts has an empty context: `carried` takes this one's there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

T = TypeVar("T")

STEP, CALL = "step_id", "tool_call_id"


class Place(NamedTuple):
    """A step or a tool call of a run: `kind` is STEP or CALL."""

    owner: object
    kind: str
    id: str
    idempotency_key: str = ""


_within: ContextVar[tuple[Place, ...]] = ContextVar("runtail_within", default=())
"""The steps and tool calls that this code is in, innermost last."""
current: ContextVar[object] = ContextVar("runtail_run", default=None)
"""The run that this code belongs to; None: it belongs to none."""


@contextmanager
def inside(place: Place) -> Iterator[None]:
    """Make this the innermost one."""
    with bound(_within, (*_within.get(), place)):
        yield


def places_of(owner: object) -> list[Place]:
    """The steps and calls of that run that this code is in."""
    return [place for place in _within.get() if place.owner is owner]


def innermost(owner: object, kind: str) -> Place | None:
    """The innermost of them that is of that kind."""
    return next((place for place in reversed(_within.get()) if place.owner is owner and place.kind == kind), None)


def carried(function: Callable[[], T]) -> Callable[[], T]:
    """The function, for another thread or greenlet: in the steps and calls that this code is in."""
    places = _within.get()

    def call() -> T:
        with bound(_within, places):
            return function()

    return call


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
