"""Puts right what a vanished process left behind: lost owners, pending runs without a job, ends not yet published.

One runs in each worker. They need no leader: every repair is safe to make twice.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence

import gevent
from gevent.pool import Group

from app.errors import StoreUnavailable
from app.storage.run_queue import ISOLATED_QUEUE, NO_ISOLATED
from app.storage.run_store import OwnerBeat
from app.wiring import Services
from workers.heartbeat import always

PASS_SECONDS = 1.0
LEASE_SECONDS = 6.0
"""An owner whose row stood still for so long, as observed here with Postgres reachable, is lost. Not for longer: once
it was called lost its row is another one, which is to be observed for as long."""
PENDING_SECONDS = 5.0
"""A pending run that nobody has claimed for so long may have lost its job."""
DOUBT_AGAIN_SECONDS = 5.0
"""Longer than it takes from an append to the mark that it was made."""
WARN_SECONDS = 60.0
"""How often the log is told that nobody is there for isolated runs."""
BATCH = 200

Duty = Callable[[], None]

log = logging.getLogger(__name__)


class Janitor:
    """One pass each PASS_SECONDS."""

    def __init__(
        self,
        services: Services,
        *others: Duty,
        apart: Sequence[Duty] = (),
        worker_id: str = "",
        gets_through: Callable[[], bool] = always,
    ) -> None:
        """
        :param others: what else is to be done in each pass.
        :param apart: likewise, but each may take long, and keeps no other waiting.
        :param worker_id: of this process, which is there.
        :param gets_through: whether its heartbeat does; nobody is called lost while it does not.
        """
        self._worker_id = worker_id
        self._gets_through = gets_through
        self._store = services.store
        self._ownership = services.ownership
        self._waits = services.waits
        self._database = services.database
        self._recovery = services.recovery
        self._losses: int | None = None
        """`Database.losses` when the waiting runs were last looked through."""
        self._queue = services.queue
        self._stream_ttl_seconds = services.config.stream_ttl_seconds
        self._others = others
        self._apart = apart
        self._seen: dict[OwnerBeat, float] = {}
        """Heartbeats as first seen here, by our own monotonic clock."""
        self._warn_at = -math.inf
        self._looked = time.monotonic()
        self._connects: int | None = None
        """`EventLog.connects` when it was last seen to that Redis has all the ends."""
        self._doubt_again = math.inf
        """When to see to it once more: somebody may have marked an end as published that Redis had just lost."""

    def run(self) -> None:
        """Pass after pass, for ever. Who has lost its worker waits for no other duty."""
        loops = Group()
        for duties in (
            [self.release_lost],
            [self.wake_due, self.wake_lost, self.enqueue_forgotten, self.warn],
            [self.publish_ends, *self._others],
            *([duty] for duty in self._apart),
        ):
            loops.spawn(self._repeat, duties)
        try:
            loops.join()
        finally:
            loops.kill()

    def _repeat(self, duties: Sequence[Duty]) -> None:
        """A duty that fails keeps no other from being done."""
        while True:
            gevent.sleep(PASS_SECONDS)
            for duty in duties:
                try:
                    duty()
                except StoreUnavailable as error:
                    log.warning("The janitor waits. %s", error.detail)
                except Exception:
                    log.exception("The janitor failed at a duty.")

    # Each may raise StoreUnavailable; what it has done until then is done.

    def release_lost(self) -> None:
        """Put back the runs of owners whose heartbeat stands still."""
        for beat in self._lost():
            self._seen.pop(beat)
            for run in self._store.release_lost(beat):
                log.warning("%s lost its worker %s; it is pending again.", run.id, beat.owner)
                self._queue.enqueue(run.id, run.epoch, run.queue)

    def _lost(self) -> list[OwnerBeat]:
        try:
            beats = self._store.owner_beats()
        except StoreUnavailable:
            self._seen.clear()  # nobody may be called lost for a time in which no heartbeat could be seen
            raise
        now = time.monotonic()
        if now - self._looked > LEASE_SECONDS / 2 or not self._gets_through():
            # This process stood still, most likely together with others: it has seen nothing. Or it does not get
            # through to Postgres itself, and is no judge of others.
            self._seen.clear()
        self._looked = now
        self._seen = {beat: self._seen.get(beat, now) for beat in beats if beat.owner != self._worker_id}
        return [beat for beat, since in self._seen.items() if now - since > LEASE_SECONDS]

    def wake_due(self) -> None:
        """Expire the approvals whose time is over, and wake the runs that have slept long enough."""
        for run in (*self._waits.expire_due(BATCH), *self._waits.wake_due(BATCH)):
            self._queue.enqueue(run.id, run.epoch, run.queue)

    def wake_lost(self) -> None:
        """After a connection to Postgres was lost: wake the runs of which it may have lost that they went on."""
        losses = self._database.losses
        if losses != self._losses:
            for run in self._recovery.wake_lost():
                self._queue.enqueue(run.id, run.epoch, run.queue)
            self._losses = losses

    def enqueue_forgotten(self) -> None:
        """Enqueue pending runs that have no job."""
        forgotten = self._store.take_forgotten(PENDING_SECONDS, BATCH)
        waiting = self._queue.waiting() if forgotten else ()
        for run in forgotten:
            if run.id not in waiting:
                self._queue.enqueue(run.id, run.epoch, run.queue)

    def warn(self) -> None:
        """Write to the log that nobody is there for isolated runs."""
        if time.monotonic() > self._warn_at and self._store.unserved(ISOLATED_QUEUE):
            self._warn_at = time.monotonic() + WARN_SECONDS
            log.warning(NO_ISOLATED)

    def publish_ends(self) -> None:
        """Bring terminal events into Redis that are committed but are not there."""
        self._ownership.log.ping()
        if self._connects != self._ownership.log.connects:
            if sentence := self._ownership.log.evicts():
                log.warning(sentence)
            # A new connection may be to a Redis that has lost what it was known to have.
            self._store.doubt_published(self._stream_ttl_seconds)
            self._connects = self._ownership.log.connects
            self._doubt_again = time.monotonic() + DOUBT_AGAIN_SECONDS
        elif time.monotonic() > self._doubt_again:
            self._store.doubt_published(self._stream_ttl_seconds)
            self._doubt_again = math.inf
        ended = self._store.unpublished(BATCH, self._stream_ttl_seconds)
        heads = self._ownership.log.heads([run.id for run in ended])
        behind = [run for run, head in zip(ended, heads, strict=True) if head != run.last_seq and not run.overdue]
        for run in ended:
            if run.overdue:
                self._ownership.log.delete(run.id)  # it would have expired by now, had it got its end
        self._store.mark_all_published([(run.id, None) for run in ended if run not in behind])
        for run in behind:
            self._ownership.publish(run.id, run.epoch)
