"""What becomes of a run that this worker stops executing: it has ended, or it goes back to pending."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import gevent

from app.errors import StoreUnavailable
from app.protocol.ending import Ending
from app.protocol.events import Event
from app.storage.log_writer import LogWriter
from app.storage.run_store import OwnedRun, RunRecord
from app.wiring import Services
from workers.execution.retry import until_reachable

T = TypeVar("T")

log = logging.getLogger(__name__)


class Settlement:
    """Each method is repeated until Postgres can be reached. What Redis misses meanwhile, a janitor makes good."""

    def __init__(self, services: Services, sleep: Callable[[float], object] = gevent.sleep) -> None:
        """:param sleep: of a process without an event loop, another one."""
        self._ownership = services.ownership
        self._queue = services.queue
        self._sleep = sleep

    def finish(self, writer: LogWriter, ending: Ending) -> None:
        """End the run that is written here.

        :raises Fenced: another owner has the run, or has finished it.
        """
        self.reach(lambda: self._ownership.end(writer, ending))
        self.reach(lambda: self._ownership.commit_end(writer))
        self.publish(writer.run_id, writer.epoch, writer.appendable())

    def publish(self, run_id: str, epoch: int, rest: Sequence[Event] = ()) -> None:
        """Append what is left of a run that has ended; `rest`: its last events, if they are known."""
        try:
            self._ownership.publish(run_id, epoch, rest)
        except StoreUnavailable as error:
            log.warning("The end of %s is committed; the janitor will publish it. %s", run_id, error.detail)

    def hand_back(self, run: RunRecord | OwnedRun, reason: str | None, queue: str | None = None) -> None:
        """Put the run back to pending, which costs no attempt; nothing happens if it has another owner by now.

        :param queue: where it goes from now on; None: where it came from.
        """
        store = self._ownership.store
        released = self.reach(lambda: store.release(run.id, run.epoch, reason, queue, owner=run.owner))
        if released is not None:
            self.enqueue(released)

    def enqueue(self, run: RunRecord) -> None:
        """Tell the workers of a run that is pending again."""
        try:
            self._queue.enqueue(run.id, run.epoch, run.queue)
        except StoreUnavailable as error:
            log.warning("%s is pending again; a janitor will enqueue it. %s", run.id, error.detail)

    def reach(self, call: Callable[[], T]) -> T:
        """The result of the call, repeated while it raises StoreUnavailable."""
        return until_reachable(call, self._sleep)
