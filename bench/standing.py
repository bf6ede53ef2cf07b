"""How long the event loop of a process stands still, as seen from within: a greenlet that is to tick every 2 ms.

Each standstill of SHOWN_MS or more is a line in the file that STANDSTILL_FILE names: `{"at", "wall_ms", "cpu_ms"}`,
`at` by the monotonic clock, which all processes of a machine share. `cpu_ms` is the time of the loop's own thread: what
other processes of a busy machine take is not the loop's fault.
"""

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import gevent

VARIABLE = "STANDSTILL_FILE"
TICK_SECONDS = 0.002
SHOWN_MS = 5.0


class Standstill(NamedTuple):
    """One of them; `at` is its end."""

    at: float
    wall_ms: float
    cpu_ms: float


def watch() -> None:
    """Begin to watch the loop of this thread, where the environment asks for it."""
    if path := os.environ.get(VARIABLE):
        gevent.spawn(_watch, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))


def _watch(file: int) -> None:
    wall, cpu = time.monotonic(), time.thread_time()
    while True:
        gevent.sleep(TICK_SECONDS)
        now, used = time.monotonic(), time.thread_time()
        found = Standstill(now, (now - wall) * 1e3, (used - cpu) * 1e3)
        if found.wall_ms >= SHOWN_MS:
            os.write(file, json.dumps(found).encode() + b"\n")
        wall, cpu = time.monotonic(), time.thread_time()


def longest(path: Path, since: float) -> Standstill:
    """The one that took the loop's thread longest, of those that have ended since that moment."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = (Standstill(*json.loads(line)) for line in lines)
    return max((one for one in found if one.at >= since), key=lambda one: one.cpu_ms, default=Standstill(since, 0, 0))
