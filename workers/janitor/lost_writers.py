"""Ends the external runs whose writer is lost, or does not heed their cancel.

One is in each worker, as a duty of its janitor; they need no leader, because a run is taken over under the epoch and
the counter that were seen. A counter stands still only as far as it was observed without a break: what was seen is
forgotten when Postgres was away, when this process stood still, and while its own heartbeat does not get through. How
long a first writer may take to come is longer than a process may live, and counted by Postgres' clock.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from app.errors import StoreUnavailable
from app.storage.run_store import ENDING_SECONDS, WriterBeat, ending_seconds
from app.verbs.external_ends import Ends
from app.wiring import Services
from workers.heartbeat import always

STOOD_STILL_SECONDS = 3.0
"""Between two looks: this process, and most likely others with it, stood still."""

log = logging.getLogger(__name__)


class LostWriters:
    """Call `end` about every second."""

    def __init__(self, services: Services, gets_through: Callable[[], bool] = always) -> None:
        """:param gets_through: whether this worker's heartbeat does."""
        self._store = services.external
        self._gets_through = gets_through
        self._ends = Ends(services)
        self._lease_seconds = services.config.external_lease_seconds
        self._claim_seconds = services.config.external_claim_seconds
        self._seen: dict[tuple[str, int, int], float] = {}
        """Signs of life as first seen here, by our own monotonic clock."""
        self._cancelling: dict[str, float] = {}
        """Runs whose cancel is requested, since when as seen here."""
        self._looked = time.monotonic()

    def end(self) -> None:
        """End what is lost.

        :raises StoreUnavailable: Postgres cannot be reached; what is not ended is found again.
        """
        for beat, ignore_heartbeat in self._due(self._look()):
            try:
                if self._ends.end_lost(beat, ignore_heartbeat=ignore_heartbeat):
                    log.warning("%s has lost its writer%s.", beat.run_id, ", which did not heed" * ignore_heartbeat)
            except StoreUnavailable:
                raise
            except Exception:  # one run that cannot be ended keeps no other from it
                log.exception("%s has lost its writer, and could not be ended.", beat.run_id)

    def _look(self) -> list[WriterBeat]:
        try:
            beats = self._store.beats()
        except StoreUnavailable:
            self._forget()  # nobody may be called lost for a time in which no sign of life could be seen
            raise
        now = time.monotonic()
        if now - self._looked > STOOD_STILL_SECONDS or not self._gets_through():
            self._forget()
        self._looked = now
        signs = map(_sign, beats)
        self._seen = {sign: self._seen.get(sign, now) for sign in signs}
        cancelling = [beat.run_id for beat in beats if beat.cancel_requested]
        self._cancelling = {run_id: self._cancelling.get(run_id, now) for run_id in cancelling}
        return beats

    def _due(self, beats: Sequence[WriterBeat]) -> Iterator[tuple[WriterBeat, bool]]:
        """Those that are to be ended, and whether they are although their writers are there."""
        now = time.monotonic()
        for beat in beats:
            if not beat.claimed:
                if beat.cancel_requested or beat.age_seconds > self._claim_seconds:
                    yield beat, False
            elif now - self._seen[_sign(beat)] > self._patience(beat):
                yield beat, False
            elif not beat.ending and now - self._cancelling.get(beat.run_id, now) > self._lease_seconds:
                yield beat, True

    def _patience(self, beat: WriterBeat) -> float:
        """Seconds that it may stay as it is. What was cancelled is not kept for a later try of its job."""
        own = self._lease_seconds
        if beat.ending:
            return ending_seconds(beat.tries, min(ENDING_SECONDS, own))
        lease = beat.lease_seconds or own
        return min(lease, own) if beat.cancel_requested else lease

    def _forget(self) -> None:
        self._seen.clear()
        self._cancelling.clear()


def _sign(beat: WriterBeat) -> tuple[str, int, int]:
    """What changes whenever a writer shows that it is there."""
    return (beat.run_id, beat.epoch, beat.beats)
