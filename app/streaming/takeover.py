"""gunicorn's gevent worker, for an application that takes connections over.

Loaded before gevent patches the standard library: imports gunicorn and gevent, and nothing of ours.
"""

import errno
import os
from collections.abc import Callable
from typing import Any, Final

import gevent
from gunicorn.workers.ggevent import GeventWorker

POLL_SECONDS = 0.02


class HandedOver:
    """What an application returns instead of a body once the connection is no longer gunicorn's. Empty."""

    def __iter__(self) -> "HandedOver":
        return self

    def __next__(self) -> bytes:
        raise StopIteration


HANDED_OVER: Final = HandedOver()


class Worker(GeventWorker):
    """Lets go of connections that were handed over, and ends as soon as there is nothing left to do."""

    requests = 0
    """Under way."""
    has_windows: Callable[[], bool] = staticmethod(lambda: False)
    """Set by the application: whether some windows have not ended yet."""

    def is_already_handled(self, respiter: Any) -> bool:
        """End the request, and with it the keep-alive loop, without touching the connection."""
        if respiter is HANDED_OVER:
            raise StopIteration  # gunicorn's own ALREADY_HANDLED would make it wait for the next request
        return bool(super().is_already_handled(respiter))

    def handle_request(self, *args: Any) -> Any:
        """Count the request while it is under way.

        :raises ConnectionResetError: the kernel has given up a client that did not read. Of a timeout gunicorn would
            log a page as an error.
        """
        self.requests += 1
        try:
            return super().handle_request(*args)
        except TimeoutError as error:
            if error.errno != errno.ETIMEDOUT:
                raise
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)) from error
        finally:
            self.requests -= 1

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM. gunicorn looks once a second whether it may end, and waits for idle connections too."""
        super().handle_exit(sig, frame)
        gevent.spawn(self._end)

    def _end(self) -> None:
        while self.requests or self.has_windows():
            gevent.sleep(POLL_SECONDS)
        raise SystemExit(0)  # gevent raises it where the worker waits
