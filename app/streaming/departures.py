"""Clients that left a run before its end: did they come back?

Not responsible for noticing that one left (the windows), or for counting what is open (`app.streaming.admission`).
"""

import time
from collections import deque
from itertools import islice
from typing import NamedTuple

from app import metrics
from app.storage.leases import Leases

ABANDONED_SECONDS = 60.0
DEPARTURES_MAX = 20_000
"""Departures that are remembered; beyond it the oldest are not looked into."""
BATCH = 32
"""Departures looked into at a time."""


class _Departure(NamedTuple):
    due: float
    run_id: str
    opens: int
    """The run's windows ever, when the client had left."""


class Departures:
    """Those of one process. A process that ends forgets them: the count is a lower bound."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._departures: deque[_Departure] = deque(maxlen=DEPARTURES_MAX)

    def add(self, run_id: str, opens: int) -> None:
        """A client has left; `opens`: how many windows the run has had, this one among them."""
        self._departures.append(_Departure(time.monotonic() + ABANDONED_SECONDS, run_id, opens))

    def look_into(self) -> None:
        """Count as abandoned those that were due and whose run has had no window since.

        :raises StoreUnavailable: Redis cannot be reached; it is tried again the next time.
        """
        now = time.monotonic()
        due = [departure for departure in islice(self._departures, BATCH) if departure.due <= now]
        runs = self._leases.look([departure.run_id for departure in due]) if due else {}
        for departure in due:
            run = runs[departure.run_id]
            if not run.windows and run.opens == departure.opens:
                metrics.ABANDONED_STREAMS.inc()
            self._departures.popleft()
