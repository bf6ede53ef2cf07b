"""The worker's heartbeat row, written by a native thread: a busy or blocked gevent loop does not stop it.

A loop that stands still for STALLED_SECONDS ends the process, because nothing here would ever go on; the janitors
of the other workers then put its runs back.
"""

import os
import time
import traceback

import gevent
from gevent import monkey

from app.errors import StoreUnavailable
from app.storage.run_store import Database, Registry

BEAT_SECONDS = 2.0
STALLED_SECONDS = 60.0
EXIT_STALLED = 70

_native_sleep = monkey.get_original("time", "sleep")
_start_native_thread = monkey.get_original("_thread", "start_new_thread")


class Heartbeat:
    """Beats from `start` until the process ends or `stop` is called."""

    def __init__(self, database_url: str, worker_id: str) -> None:
        self._database_url = database_url
        self._worker_id = worker_id
        self._turned = time.monotonic()
        self._stopped = False

    def start(self) -> None:
        """Begin to beat, and to watch the loop."""
        gevent.spawn(self._turn_loop)
        _start_native_thread(self._beat, ())
        _start_native_thread(self._watch, ())

    def stop(self) -> None:
        """Stop beating; the row is the caller's to remove."""
        self._stopped = True

    def _turn_loop(self) -> None:
        while True:
            self._turned = time.monotonic()
            gevent.sleep(1)

    def _watch(self) -> None:
        while not self._stopped:
            if time.monotonic() - self._turned > STALLED_SECONDS:
                _tell(f"The event loop stood still for {STALLED_SECONDS:.0f} s: this worker ends itself.")
                os._exit(EXIT_STALLED)
            _native_sleep(BEAT_SECONDS)

    def _beat(self) -> None:
        database = Database(self._database_url, pool_size=1)
        registry = Registry(database)
        while not self._stopped:
            try:
                registry.beat(self._worker_id)
            except StoreUnavailable as error:
                _tell(f"No heartbeat. {error.detail}")
            except Exception:
                # Without this thread the worker would be called lost for good, and go on taking runs.
                _tell(f"No heartbeat. {traceback.format_exc()}")
            _native_sleep(BEAT_SECONDS)
        database.close()


def _tell(text: str) -> None:
    """Write to stderr. Not by logging: its lock is gevent's, and not made for contention with native threads."""
    os.write(2, f"{text}\n".encode())
