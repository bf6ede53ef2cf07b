"""Ids that sort by the time they were made (ULID: 48 bits of milliseconds, 80 random, Crockford's base 32)."""

import secrets
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS = 80
_STEP_BITS = 64

_last = 0
_turn = threading.Lock()


def new_id(prefix: str) -> str:
    """`prefix` + `_` + 26 characters. Those of one process sort as they were made, also within a millisecond."""
    number = _next()
    return f"{prefix}_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -5, -5))


def _next() -> int:
    global _last
    number = time.time_ns() // 1_000_000 << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    with _turn:
        if number <= _last:
            number = _last + 1 + secrets.randbits(_STEP_BITS)
        _last = number
        return number
