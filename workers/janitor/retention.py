"""Removes what is older than it is to be kept: runs that ended long ago, and rows that refer to nothing any more.

One is in each worker, as a duty of its janitor; they need no leader, because each takes runs that no other has.
"""

import logging
import time

from app.storage.erasure import Erasure

PURGE_SECONDS = 60.0
"""Between two looks, as long as there is nothing to remove."""

log = logging.getLogger(__name__)


class Retention:
    """Call `purge` about every second."""

    def __init__(self, erasure: Erasure, days: int) -> None:
        """:param days: that a run is kept after its end; 0 = for ever."""
        self._erasure = erasure
        self._days = days
        self._due = time.monotonic()

    def purge(self) -> None:
        """Remove one batch, if it is time to: in each call as long as there is another, so that no call takes long.

        :raises StoreUnavailable: Postgres or Redis cannot be reached; what is not removed is tried again.
        """
        if time.monotonic() < self._due:
            return
        erased = self._erasure.erase_old(self._days) if self._days else 0
        if erased:
            log.info("%d runs are erased: they ended more than %d days ago.", erased, self._days)
            return
        self._erasure.retention.remove_leftovers()
        self._due = time.monotonic() + PURGE_SECONDS
