"""Every metric of the web processes, in Prometheus' terms. No label says anything about a user.

Under gunicorn each process writes files of its own into a folder that `gunicorn.conf.py` made
(PROMETHEUS_MULTIPROC_DIR), and whichever process answers `/metrics` adds them up.
"""

import os
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

SNAPSHOT_REASONS = ("latest", "replay_cap", "gap")
DELIVERY_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
FIRST_EVENT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TS = '"ts":"'
_TS_LENGTH = len("2026-06-12T12:00:01.234Z")

registry = CollectorRegistry()


class Timing:
    """A histogram of seconds for hot paths: an observation is counted in memory, and `flush` writes what was counted.

    The library's own takes a lock and writes to its file twice for each.
    """

    def __init__(self, name: str, documentation: str, buckets: Sequence[float]) -> None:
        self._histogram = Histogram(name, documentation, registry=registry, buckets=buckets)
        self._bounds = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def flush(self) -> None:
        """Write what was counted since the last time."""
        counts, self._counts = self._counts, [0] * len(self._counts)
        total, self._sum = self._sum, 0.0
        for bucket, count in zip(self._histogram._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
        if total:
            self._histogram._sum.inc(total)


class Tally:
    """A counter or a gauge of hot paths, in the same manner. Threads that count at the same time may lose one."""

    def __init__(self, metric: Counter | Gauge) -> None:
        self._metric = metric
        self._total = self._written = 0
        self._flushing = threading.Lock()

    def inc(self, number: int = 1) -> None:
        """Count so many."""
        self._total += number

    def flush(self) -> None:
        """Write what was counted since the last time."""
        with self._flushing:
            total = self._total
            since, self._written = total - self._written, total
        if since:
            self._metric.inc(since)


OPEN_WINDOWS = Tally(Gauge("runtail_open_windows", "Windows open now.", registry=registry, multiprocess_mode="livesum"))
DELIVERY = Timing(
    "runtail_delivery_seconds",
    "From the `ts` of an event, which has milliseconds, to its delivery to the windows that are level with its run.",
    DELIVERY_BUCKETS,
)
FIRST_EVENT = Timing(
    "runtail_first_event_seconds",
    "From POST /runs to the first event that its own window delivers.",
    FIRST_EVENT_BUCKETS,
)
REPLAYS = Tally(
    Counter("runtail_replays_total", "Windows that began with events from before they opened.", registry=registry)
)
SNAPSHOTS = Counter(
    "runtail_snapshots_total", "Snapshots sent in place of events, by reason.", ["reason"], registry=registry
)
LAG_CLOSES = Counter("runtail_lag_closes_total", "Windows reset because their client did not read.", registry=registry)
ROTATIONS = Counter("runtail_rotations_total", "Windows ended in order because of their age.", registry=registry)
REJECTED_WINDOWS = Counter(
    "runtail_rejected_windows_total", "Windows refused before they opened, by error code.", ["code"], registry=registry
)
ABANDONED_STREAMS = Counter(
    "runtail_abandoned_streams_total",
    "Windows whose client left before the terminal event, with none open on the run a minute later.",
    registry=registry,
)

for _reason in SNAPSHOT_REASONS:
    SNAPSHOTS.labels(_reason)  # a rate needs the zero that it starts from


class Dated(Protocol):
    """An event, as far as a metric looks at it."""

    @property
    def text(self) -> str:
        """Its envelope."""


def observe_delivery(event: Dated) -> None:
    """The event was sent, just now, to every window that was waiting for it. About 1 µs."""
    begins = event.text.index(_TS) + len(_TS)
    emitted = datetime.fromisoformat(event.text[begins : begins + _TS_LENGTH])
    DELIVERY.observe(max(0.0, time.time() - emitted.timestamp()))  # two machines have two clocks


def flush() -> None:
    """Write what this process has counted where every process can read it; to be called about every second."""
    for counted in (DELIVERY, FIRST_EVENT, OPEN_WINDOWS, REPLAYS):
        counted.flush()


def exposition() -> bytes:
    """The metrics of all processes of this server, in Prometheus' text format."""
    flush()
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(registry)
    processes = CollectorRegistry()
    MultiProcessCollector(processes)
    return generate_latest(processes)
