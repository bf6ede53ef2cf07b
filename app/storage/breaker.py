"""A Redis that does not answer costs one caller its timeout, not each: the others are told at once for a while.

One that refuses connections, or that loses them, answers at once as it is: that opens no breaker.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from app.errors import StoreUnavailable

OUTAGE_SECONDS = 1.0
"""After Redis did not answer in time, nobody asks it for so long."""
PROBE_SECONDS = 5.0
"""Then one caller asks; the others go on without for as long as it may wait for its answer."""

log = logging.getLogger(__name__)


class Breaker:
    """One for each server, shared by all who ask it. May be used by any thread."""

    def __init__(self) -> None:
        self._hangs = False
        self._retry_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whoever asks now is told at once that Redis cannot be reached."""
        return time.monotonic() < self._retry_at

    @contextmanager
    def asking(self) -> Iterator[None]:
        """For a block that asks Redis.

        :raises StoreUnavailable: Redis cannot be reached, or could not a moment ago; or it refuses.
        """
        if self.is_open:
            raise StoreUnavailable("Redis did not answer a moment ago.")
        probing_until = time.monotonic() + PROBE_SECONDS if self._hangs else None
        if probing_until is not None:
            self._retry_at = probing_until
        try:
            yield
        except (redis.TimeoutError, TimeoutError) as error:
            self._give_up()
            raise StoreUnavailable("Redis does not answer.") from error
        except (redis.RedisError, OSError) as error:  # connection refused or lost, loading, out of memory, script busy
            self._go_on()
            raise StoreUnavailable("Redis cannot be reached.") from error
        except BaseException:  # it tells nothing of Redis: the next caller asks in place of this one
            if self._retry_at == probing_until:
                self._retry_at = 0.0
            raise
        self._go_on()

    def _give_up(self) -> None:
        self._retry_at = time.monotonic() + OUTAGE_SECONDS
        if not self._hangs:
            log.warning("Redis does not answer. It is asked again once a second.")
        self._hangs = True

    def _go_on(self) -> None:
        if self._hangs:
            log.info("Redis answers again.")
        self._hangs, self._retry_at = False, 0.0
