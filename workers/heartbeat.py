"""The worker's heartbeat row, written by a native thread: a busy or blocked gevent loop does not stop it."""

import traceback

from gevent import monkey

from app.errors import StoreUnavailable
from app.storage.run_store import Database, Registry
from workers.watchdog import tell

BEAT_SECONDS = 2.0

_native_sleep = monkey.get_original("time", "sleep")
_start_native_thread = monkey.get_original("_thread", "start_new_thread")


class Heartbeat:
    """Beats from `start` until the process ends or `stop` is called."""

    def __init__(self, database_url: str, worker_id: str) -> None:
        self._database_url = database_url
        self._worker_id = worker_id
        self._stopped = False

    def start(self) -> None:
        """Begin to beat."""
        _start_native_thread(self._beat, ())

    def stop(self) -> None:
        """Stop beating; the row is the caller's to remove."""
        self._stopped = True

    def _beat(self) -> None:
        database = Database(self._database_url, pool_size=1)
        registry = Registry(database)
        while not self._stopped:
            try:
                registry.beat(self._worker_id)
            except StoreUnavailable as error:
                tell(f"No heartbeat. {error.detail}")
            except Exception:
                # Without this thread the worker would be called lost for good, and go on taking runs.
                tell(f"No heartbeat. {traceback.format_exc()}")
            _native_sleep(BEAT_SECONDS)
        database.close()
