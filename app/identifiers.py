"""Ids of runs: new ones, and those that a caller names.

A new id sorts by the time it was made (ULID: 48 bits of milliseconds, 80 random, Crockford's base 32).
"""

import secrets
import threading
import time

from app.errors import RunNotFound

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS = 80
_STEP_BITS = 64

_last = 0
_turn = threading.Lock()


def new_id(prefix: str) -> str:
    """`prefix` + `_` + 26 characters. Those of one process sort as they were made, also within a millisecond."""
    number = _next()
    return f"{prefix}_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -5, -5))


def askable(run_id: str) -> str:
    """The id as it can be looked up: Postgres takes no NUL, and no id holds one."""
    return "" if "\0" in run_id else run_id


def no_run(run_id: str) -> RunNotFound:
    """The error for a run that does not exist, or not for the caller."""
    return RunNotFound(f"There is no run {run_id[:100]!r}.")


def _next() -> int:
    global _last
    number = time.time_ns() // 1_000_000 << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    with _turn:
        if number <= _last:
            number = _last + 1 + secrets.randbits(_STEP_BITS)
        _last = number
        return number
