"""Where in a run some code is: the steps and tool calls around it.

Of a branch in a worker these are the branch's own, also in the threads that its agent starts. A run that another
process executes has one `Run` for all its threads: there they are the thread's, by a context variable.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import NamedTuple, Protocol, TypeVar

T = TypeVar("T")

STEP, CALL = "step_id", "tool_call_id"


class Place(NamedTuple):
    """A step or a tool call: `kind` is STEP or CALL."""

    kind: str
    id: str
    idempotency_key: str = ""


class Places(Protocol):
    """The steps and tool calls that some code is in. Those that overlap may end in any order."""

    def enter(self, place: Place) -> None:
        """Make this the innermost one."""

    def leave(self, place: Place) -> None:
        """It is over."""

    def innermost(self, kind: str) -> Place | None:
        """The innermost of that kind."""


class OfBranch:
    """Those of one branch."""

    def __init__(self, outside: "OfBranch | None" = None) -> None:
        """:param outside: of the branch in which this one was begun."""
        self._places: list[Place] = list(outside._places) if outside else []

    def enter(self, place: Place) -> None:
        """Make this the innermost one."""
        self._places.append(place)

    def leave(self, place: Place) -> None:
        """It is over."""
        self._places = [one for one in self._places if one is not place]

    def innermost(self, kind: str) -> Place | None:
        """The innermost of that kind."""
        return _innermost(self._places, kind)


_within: ContextVar[tuple[tuple[object, Place], ...]] = ContextVar("runtail_within", default=())
"""The steps and tool calls that this code is in, innermost last, each with whose it is."""
current: ContextVar[object] = ContextVar("runtail_run", default=None)
"""The run that this code belongs to; None: it belongs to none."""


class OfContext:
    """Those of one run in the context at hand."""

    def enter(self, place: Place) -> None:
        """Make this the innermost one."""
        _within.set((*_within.get(), (self, place)))

    def leave(self, place: Place) -> None:
        """It is over. A generator may end in another context than it began in: that one never had it."""
        _within.set(tuple(one for one in _within.get() if one[1] is not place))

    def innermost(self, kind: str) -> Place | None:
        """The innermost of that kind."""
        return _innermost([place for owner, place in _within.get() if owner is self], kind)


def _innermost(places: list[Place], kind: str) -> Place | None:
    return next((place for place in reversed(places) if place.kind == kind), None)


@contextmanager
def inside(places: Places, place: Place) -> Iterator[None]:
    """Be in this step or call within the block."""
    places.enter(place)
    try:
        yield
    finally:
        places.leave(place)


def carried(function: Callable[[], T]) -> Callable[[], T]:
    """The function, for another thread: in the steps and calls that this code is in."""
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
