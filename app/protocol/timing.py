"""When the events of a finished run are due while it is played back. Pure: no clock, no waiting."""

from datetime import datetime
from typing import Final

SPEED_MIN: Final = 0.1
SPEED_MAX: Final = 1_000.0
"""How many times as fast as it was a run can be played back."""


class Timing:
    """The pauses between the `ts` of events, divided by the speed, added up from the first event on.

    What is added up is the log's own time: an event that is sent late delays none after it.
    """

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._passed = 0.0
        """Seconds of the log's time since the first event."""
        self._last: datetime | None = None

    def due(self, ts: str) -> float:
        """Seconds from the first event to the next one, whose `ts` this is. A clock that was set back is no pause."""
        moment = datetime.fromisoformat(ts)
        if self._last is not None:
            self._passed += max(0.0, (moment - self._last).total_seconds())
        self._last = moment
        return self._passed / self._speed
