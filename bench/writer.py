"""The writer of Runtail's events: a process of its own that appends to the log as a worker does, without Postgres.

Responsible for appending, and after a restart of Redis for putting back what that has lost, from memory. Not
responsible for the pace (`bench.pacing`).
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import closing

from app.errors import StoreUnavailable
from app.protocol.events import Event
from app.storage.event_log import Append, EventLog
from bench.pacing import CREATED_SEQ, Due, arguments, write
from bench.ticks import end, tick

REMEMBERED = 200
"""Events of each run that are kept for a Redis that comes back without them."""
RETRY_SECONDS = 0.02
TTL_SECONDS = 3_600
EPOCH = 0


class LogSink:
    """Appends to the runs' streams."""

    def __init__(self, log: EventLog, payload_bytes: int) -> None:
        self._log = log
        self._payload_bytes = payload_bytes
        self._recent: dict[str, deque[Event]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    def write(self, events: Sequence[Due]) -> None:
        """Append them in one round trip. Waits for a Redis that is away."""
        self._append(events, lambda run, seq: tick(run, seq, self._payload_bytes))

    def end(self, ends: Sequence[Due]) -> None:
        """Append the terminal events."""
        self._append(ends, end)

    def _append(self, due: Sequence[Due], make: Callable[[str, int], Event]) -> None:
        made: dict[str, list[Event]] = defaultdict(list)
        for run, seq in due:
            event = make(run, seq)
            made[run].append(event)
            self._recent[run].append(event)
        try:
            outcomes = self._log.append_all([Append(run, EPOCH, events, CREATED_SEQ) for run, events in made.items()])
        except StoreUnavailable:
            self._level()
            return
        if not all(isinstance(outcome, int) for outcome in outcomes):
            self._level()

    def _level(self) -> None:
        """Bring every run's log up to what was written, whatever of it has arrived."""
        waiting = deque(self._recent)
        while waiting:
            try:
                self._refill(waiting[0])
                waiting.popleft()
            except StoreUnavailable:
                time.sleep(RETRY_SECONDS)  # Redis is away

    def _refill(self, run: str) -> None:
        head = self._log.head(run)
        if missing := [event for event in self._recent[run] if event.seq > head]:
            self._log.append(Append(run, EPOCH, missing, CREATED_SEQ))


def main() -> None:
    """Write as the arguments say."""
    options = arguments().parse_args()
    with closing(EventLog(options.url, ttl_seconds=TTL_SECONDS, max_connections=2)) as log:
        write(LogSink(log, options.payload_bytes), options)


if __name__ == "__main__":
    main()
