"""gunicorn's gevent worker, which also lets go of a connection that a window has taken over.

Loaded before gevent patches the standard library: imports gunicorn and nothing of ours.
"""

from typing import Any, Final

from gunicorn.workers.ggevent import GeventWorker


class HandedOver:
    """What an application returns instead of a body once the connection is no longer gunicorn's. Empty."""

    def __iter__(self) -> "HandedOver":
        return self

    def __next__(self) -> bytes:
        raise StopIteration


HANDED_OVER: Final = HandedOver()


class Worker(GeventWorker):
    """Ends the request, and with it the keep-alive loop, without touching the connection."""

    def is_already_handled(self, respiter: Any) -> bool:
        if respiter is HANDED_OVER:
            raise StopIteration  # gunicorn's own ALREADY_HANDLED would make it wait for the next request
        return bool(super().is_already_handled(respiter))
