"""The worker's heartbeat row, written by a native thread: a busy or blocked gevent loop does not stop it.

A loop that stands still for STALLED_SECONDS ends the process, because nothing here would ever go on; the janitors
of the other workers then put its runs back.
"""

import logging
import os
import time

import gevent
from gevent import monkey

from app.errors import StoreUnavailable
from app.storage.run_store import Database, Registry

BEAT_SECONDS = 2.0
STALLED_SECONDS = 60.0
EXIT_STALLED = 70

log = logging.getLogger(__name__)

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
        """Begin to beat."""
        gevent.spawn(self._turn_loop)
        _start_native_thread(self._beat, ())

    def stop(self) -> None:
        """Stop beating; the row is the caller's to remove."""
        self._stopped = True

    def _turn_loop(self) -> None:
        while True:
            self._turned = time.monotonic()
            gevent.sleep(1)

    def _beat(self) -> None:
        database = Database(self._database_url, pool_size=1)
        registry = Registry(database)
        while not self._stopped:
            if time.monotonic() - self._turned > STALLED_SECONDS:
                log.critical("The event loop stood still for %d s: this worker ends itself.", STALLED_SECONDS)
                os._exit(EXIT_STALLED)
            try:
                registry.beat(self._worker_id)
            except StoreUnavailable:
                log.warning("No heartbeat: Postgres cannot be reached.")
            except Exception:
                # Without this thread the worker would be called lost for good, and go on taking runs.
                log.exception("No heartbeat.")
            _native_sleep(BEAT_SECONDS)
        database.close()
