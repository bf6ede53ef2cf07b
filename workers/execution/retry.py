"""Waiting for Postgres and Redis to come back."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import gevent

from app.errors import StoreUnavailable

T = TypeVar("T")

FIRST_SECONDS = 0.05
LONGEST_SECONDS = 2.0

log = logging.getLogger(__name__)


def until_reachable(call: Callable[[], T], sleep: Callable[[float], object] = gevent.sleep) -> T:
    """The result of the call, repeated while it raises StoreUnavailable; it must bear being repeated.

    :param sleep: of a process without an event loop, another one.
    """
    pause = FIRST_SECONDS
    while True:
        try:
            return call()
        except StoreUnavailable as error:
            log.warning("%s Trying again in %.2f s.", error.detail, pause)
            sleep(pause)
            pause = min(LONGEST_SECONDS, pause * 2)


class Backoff:
    """When something that was refused is tried again: each time later, up to LONGEST_SECONDS."""

    __slots__ = ("_pause", "until")

    def __init__(self) -> None:
        self.until = 0.0
        """By `time.monotonic()`; 0: it was not refused."""
        self._pause = FIRST_SECONDS

    def put_off(self) -> None:
        """It was refused."""
        self.until = time.monotonic() + self._pause
        self._pause = min(LONGEST_SECONDS, self._pause * 2)

    def clear(self) -> None:
        """It was not."""
        if self.until:
            self.until, self._pause = 0.0, FIRST_SECONDS
