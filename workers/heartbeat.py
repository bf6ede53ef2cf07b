"""The worker's heartbeat row, written by a native thread: a busy or blocked gevent loop does not stop it.

Others judge the worker by this row, so the worker judges itself by it first: while its own heartbeat does not get
through, it claims no run and calls nobody lost.
"""

import math
import time
import traceback

from gevent import monkey

from app.errors import StoreUnavailable
from app.storage.run_store import Beats
from workers.watchdog import tell

BEAT_SECONDS = 2.0
RETRY_SECONDS = 0.25
"""After one that did not get through: two that hang in a row are made good within the lease of a janitor."""
SILENT_SECONDS = 4.0
"""More than one beat and the time in which it is given up, well below the lease of a janitor."""
SILENCE_SECONDS = 0.1
"""How long it is waited at a time for one to get through."""

_native_sleep = monkey.get_original("time", "sleep")
_start_native_thread = monkey.get_original("_thread", "start_new_thread")


class Heartbeat:
    """Beats from `start` until the process ends or `stop` is called."""

    def __init__(self, beats: Beats) -> None:
        self._beats = beats
        self._through = -math.inf
        self._told = ""
        self._stopped = False

    def start(self) -> None:
        """Begin to beat."""
        _start_native_thread(self._beat, ())

    def stop(self) -> None:
        """Stop beating; the row is the caller's to remove."""
        self._stopped = True

    def gets_through(self) -> bool:
        """Postgres has counted a heartbeat that was sent within the last SILENT_SECONDS. For any thread."""
        return time.monotonic() - self._through < SILENT_SECONDS

    def _beat(self) -> None:
        while not self._stopped:
            sent = time.monotonic()
            problem = self._attempt()
            if not problem:
                self._through = sent
            self._tell(problem)
            _native_sleep(RETRY_SECONDS if problem else max(0.0, sent + BEAT_SECONDS - time.monotonic()))
        self._beats.close()

    def _attempt(self) -> str:
        """Send one. What went wrong; empty: nothing."""
        try:
            self._beats.beat()
        except StoreUnavailable as error:
            return error.detail
        except Exception:
            # Without this thread the worker would be called lost for good.
            return traceback.format_exc()
        return ""

    def _tell(self, problem: str) -> None:
        """Once, and not again while it is the same."""
        if problem != self._told:
            tell(f"No heartbeat. {problem}" if problem else "The heartbeat gets through again.")
        self._told = problem


def always() -> bool:
    """In place of `Heartbeat.gets_through`, where somebody else sees to that."""
    return True
