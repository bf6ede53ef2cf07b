"""Watches the event loop of a worker from a native thread: what blocks it blocks every run of the process.

A loop that stands still for longer than BLOCKED_SECONDS is written to stderr once, with the stack that it stands in,
and again when it goes on. One that stands still for STALLED_SECONDS ends the process, because nothing here would ever
go on; the janitors of the other workers then put its runs back, and the run whose agent is on the stack is charged.

Time counts in which the process runs. When it is stopped as a whole, or the machine is, nobody is to blame.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable

import gevent
from gevent import monkey

from app.errors import StoreUnavailable
from workers.execution.named import run_on

TURN_SECONDS = 0.25
"""How often the loop shows that it turns, and the watchdog looks."""
BLOCKED_SECONDS = 1.0
STALLED_SECONDS = 60.0
EXIT_STALLED = 70
STACK_FRAMES = 40
"""The innermost ones are shown."""
_native_sleep = monkey.get_original("time", "sleep")
_native_ident = monkey.get_original("_thread", "get_ident")
_start_native_thread = monkey.get_original("_thread", "start_new_thread")


class Clock:
    """Seconds in which this process was running, as seen by the one thread that ticks."""

    def __init__(self) -> None:
        self.now = 0.0
        self._seen = time.monotonic()
        self._used = time.process_time()

    def tick(self) -> None:
        """To be called every TURN_SECONDS. If it comes late, the process has used the time in between, or was stopped.

        Late it is also when something has held the interpreter's lock, computing: that was no stop.
        """
        seen, used = time.monotonic(), time.process_time()
        self.now += min(seen - self._seen, max(2 * TURN_SECONDS, used - self._used))
        self._seen, self._used = seen, used


class Watchdog:
    """Watches the loop of the thread that starts it, until the process ends or `stop` is called."""

    def __init__(self, blame: Callable[[str], None]) -> None:
        """:param blame: told the run that has ended this process. Bounded in time; may raise StoreUnavailable."""
        self._blame = blame
        self._clock = Clock()
        self._turned = 0.0
        self._thread = 0
        self._stopped = False

    def start(self) -> None:
        """Begin to watch."""
        self._thread = _native_ident()
        gevent.spawn(self._turn)
        _start_native_thread(self._watch, ())

    def stop(self) -> None:
        """Watch no more."""
        self._stopped = True

    def _turn(self) -> None:
        while True:
            self._turned = self._clock.now
            gevent.sleep(TURN_SECONDS)

    def _watch(self) -> None:
        blocked_since: float | None = None
        while not self._stopped:
            _native_sleep(TURN_SECONDS)
            self._clock.tick()
            turned, still = self._turned, self._clock.now - self._turned
            if blocked_since is not None and turned != blocked_since:
                tell(f"The event loop goes on; it stood still for {turned - blocked_since:.1f} s.")
                blocked_since = None
            if blocked_since is None and still > BLOCKED_SECONDS:
                blocked_since = turned
                self._tell_stack(f"The event loop has stood still for {still:.1f} s")
            if still > STALLED_SECONDS:
                self._end()

    def _end(self) -> None:
        """End this process, and say who has ended it."""
        run_id = self._tell_stack(f"The event loop stood still for {STALLED_SECONDS:.0f} s: this worker ends itself")
        try:
            if run_id is not None:
                self._blame(run_id)
        except StoreUnavailable as error:
            tell(f"{run_id} cannot be charged. {error.detail}")
        finally:
            os._exit(EXIT_STALLED)

    def _tell_stack(self, what: str) -> str | None:
        """Returns the run whose agent is on the stack."""
        frame = sys._current_frames().get(self._thread)
        stack = "".join(traceback.format_stack(frame, STACK_FRAMES)) if frame is not None else ""
        run_id = run_on(frame)
        tell(f"{what}{f', in the agent of {run_id}' if run_id else ''}:\n{stack}")
        return run_id


def tell(text: str) -> None:
    """Write to stderr. Not by logging: its lock is gevent's, and not made for contention with native threads."""
    os.write(2, f"{text}\n".encode())
