"""Runners: in the worker's greenlet, or in the main thread of a forked process (`workers.isolated.child`).

They differ in how the agent reaches the outbox of its run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from app.protocol.events import Outbound
from app.storage.log_writer import LogWriter
from app.storage.run_store import NewApproval, OpRecord
from runtail.interrupts import TimedOut
from workers.execution.outbox import Outbox

T = TypeVar("T")


class Outlet(Protocol):
    """What the calls of an agent need of its run's outbox. See `workers.execution.outbox.Outbox` for what they do."""

    @property
    def writer(self) -> LogWriter:
        """Only to be read."""

    @property
    def inputs(self) -> Mapping[int, str]:
        """What the user has sent, by number, as it was sent; only to be read."""

    def emit(self, type: str, payload: Outbound, op: str) -> None:
        """Add an event."""

    def commit(
        self,
        type: str,
        payload: Outbound,
        op: str,
        *,
        record: OpRecord | None = None,
        approval: NewApproval | None = None,
    ) -> None:
        """Add an event that is a fact."""

    def record(self, record: OpRecord) -> None:
        """Commit what a call came to."""

    def delta(self, payload: Outbound, op: str) -> None:
        """Add text to a message."""

    def settle(self) -> None:
        """Make an event of the text that was held back."""

    def give_way(self) -> None:
        """Wait while too much is in memory only, and let others run."""

    def sleep(self, seconds: float) -> None:
        """Sleep."""

    def alarm(self, seconds: float, timed_out: TimedOut) -> Callable[[], None]:
        """Stop the run in so many seconds, unless what is returned is called before."""

    def side_by_side(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """The results of the functions, in order."""


class Runner(Protocol):
    """Where the agents of a worker run."""

    def outlet(self, outbox: Outbox) -> Outlet:
        """The outbox as it is used there."""

    def perform(self, function: Callable[[], T]) -> T:
        """Call the function there, and wait for it."""


class InGreenlet:
    """The worker's own thread, in the caller's greenlet."""

    def outlet(self, outbox: Outbox) -> Outlet:
        """The outbox itself."""
        return outbox

    def perform(self, function: Callable[[], T]) -> T:
        """Call the function."""
        return function()
