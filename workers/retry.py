"""Waiting for Postgres and Redis to come back."""

import logging
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
