"""What something may cost in processor time, on a machine of whatever speed.

A bound on processor time is said for the machine of the docs' figures, and stretched by how much slower a piece of
work that is not ours takes here and now. Waiting is not stretched: nothing here is for time on the wall.
"""

import json
import time
from typing import Final

BASELINE_SECONDS: Final = 0.04
"""What `json.dumps` of a text of 8 MB takes on the machine of the docs' figures (docs/operations.md)."""
TEXT: Final = "x" * 8_000_000
LOOKS: Final = 3


def _baseline() -> float:
    began = time.process_time()
    json.dumps(TEXT)
    return time.process_time() - began


def here(seconds: float) -> float:
    """Seconds of the docs' machine as seconds of this one; never fewer. Ask just after what is measured."""
    taken = max(_baseline() for _ in range(LOOKS))
    return seconds * max(1.0, taken / BASELINE_SECONDS)
