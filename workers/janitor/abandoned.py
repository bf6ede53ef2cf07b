"""Cancels the runs that were to be cancelled once nobody follows them, and that nobody follows any more.

One is in each worker, as a duty of its janitor; they need no leader, because a run is cancelled once however often.

The grace period never starts before a run's first window. It counts only what was observed without a break: it starts
again when Redis does, because leases may be missing until the web processes have written them again, and when this
process stood still, because the clients may have stood still with it.
"""

import logging
import time
from collections.abc import Iterator, Sequence

from app.errors import StoreUnavailable
from app.storage.leases import Lease, Leases
from app.storage.ownership import Ownership

SETTLE_SECONDS = 3.0
"""After a new connection to Redis, the time in which the web processes write their leases again."""
STOOD_STILL_SECONDS = 5.0
"""Between two looks; longer, and nothing was observed meanwhile."""
BATCH = 100
"""Runs looked at in one round trip."""

log = logging.getLogger(__name__)


class Abandoned:
    """Call `cancel` about every second."""

    def __init__(self, ownership: Ownership, leases: Leases, grace_seconds: float) -> None:
        self._ownership = ownership
        self._leases = leases
        self._grace_seconds = grace_seconds
        self._connects = leases.connects
        self._looked = time.monotonic()
        self._settled = self._looked
        self._since: dict[tuple[str, int], float] = {}
        """Runs without a window, with the number of windows they have had, as first seen here."""

    def cancel(self) -> None:
        """Cancel, as the API does, every run whose grace period is over.

        :raises StoreUnavailable: Postgres or Redis cannot be reached.
        """
        for run_id in self._due(self._ownership.store.cancelled_on_disconnect()):
            run = self._ownership.store.request_cancel(run_id, "disconnected")
            if run is None or run.terminal:
                continue
            log.info("%s is cancelled: nobody follows it any more.", run.id)
            self._ownership.end_unowned(run)
            if run.owner is not None:
                self._ownership.log.ring(run.owner)

    def _due(self, run_ids: Sequence[str]) -> list[str]:
        """Those of the runs that had a window, and have been without one for the grace period."""
        if not run_ids:
            self._leases.close()  # a worker that has nothing to look at holds no connection for it
        found = dict(self._look(run_ids))
        now = time.monotonic()
        if self._interrupted(now):
            self._since.clear()
        gone = [(run_id, lease.opens) for run_id, lease in found.items() if lease.opens and not lease.windows]
        self._since = {one: self._since.get(one, now) for one in gone} if now >= self._settled else {}
        return [run_id for (run_id, _), since in self._since.items() if now - since >= self._grace_seconds]

    def _look(self, run_ids: Sequence[str]) -> Iterator[tuple[str, Lease]]:
        try:
            for start in range(0, len(run_ids), BATCH):
                yield from self._leases.look(run_ids[start : start + BATCH]).items()
        except StoreUnavailable:
            self._since.clear()
            raise

    def _interrupted(self, now: float) -> bool:
        """Whether this look does not continue the one before."""
        reconnected = self._connects != self._leases.connects
        stood_still = now - self._looked > STOOD_STILL_SECONDS
        self._connects, self._looked = self._leases.connects, now
        if reconnected:
            self._settled = now + SETTLE_SECONDS
        return reconnected or stood_still
