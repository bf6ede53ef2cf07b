"""The events that benchmarks write: `custom.tick`, with the moment of its writing.

Responsible for their text, the same for every server. Not responsible for where they go.
"""

import time

from app.protocol.events import Event, encode

TYPE = "custom.tick"
STAMP_BYTES = 60
"""What the payload takes without its filling."""


def tick(run_id: str, seq: int, payload_bytes: int) -> Event:
    """An event whose payload takes about so many bytes and says "@<CLOCK_MONOTONIC ns>@"."""
    pad = "x" * max(0, payload_bytes - STAMP_BYTES)
    return encode(run_id, seq, TYPE, {"text": f"tick {seq}", "at": f"@{time.monotonic_ns()}@", "pad": pad})


def end(run_id: str, seq: int) -> Event:
    """The terminal event."""
    return encode(run_id, seq, "run.completed", {"output": None, "usage": None, "digest": "0" * 64})
