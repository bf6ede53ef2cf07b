"""What something may cost on a machine of whatever speed.

A bound on processor time is said for the machine of the docs' figures, and stretched by how much slower a piece of
work that is not ours takes here and now. Time on the wall is not stretched; but where a thread that only sleeps is
woken late, because others have the processors, that is no delay of ours.
"""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

BASELINE_SECONDS: Final = 0.04
"""What `json.dumps` of a text of 8 MB takes on the machine of the docs' figures (docs/operations.md)."""
TEXT: Final = "x" * 8_000_000
LOOKS: Final = 3
NAP_SECONDS: Final = 0.005
LATE_SECONDS: Final = 0.002
"""A nap may take so much longer on a machine with nothing else to do."""
TURNS: Final = 4
"""Processes whose turns what is timed waits for, one after the other: web, store, worker, client."""


def _baseline() -> float:
    began = time.process_time()
    json.dumps(TEXT)
    return time.process_time() - began


def here(seconds: float) -> float:
    """Seconds of the docs' machine as seconds of this one; never fewer. Ask just after what is measured."""
    taken = max(_baseline() for _ in range(LOOKS))
    return seconds * max(1.0, taken / BASELINE_SECONDS)


class Timed:
    """How long a block took."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._late = 0.0
        self._over = threading.Event()
        self._napping = threading.Thread(target=self._nap, daemon=True)
        self._napping.start()

    @property
    def seconds(self) -> float:
        """So far, without what everybody has had to wait for a processor."""
        return time.monotonic() - self._began - TURNS * self._late

    def _nap(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            self._over.wait(NAP_SECONDS)
            late = time.monotonic() - began - NAP_SECONDS
            self._late += late if late > LATE_SECONDS else 0.0

    def end(self) -> None:
        """No more naps."""
        self._over.set()
        self._napping.join()


@contextmanager
def timed() -> Iterator[Timed]:
    """Time what is done in the block; ask at its end, within it."""
    block = Timed()
    try:
        yield block
    finally:
        block.end()
