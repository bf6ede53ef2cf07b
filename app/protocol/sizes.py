"""How large a message to a client may be: docs/protocol.md, Sizes of messages."""

from collections.abc import Iterator
from typing import Final

PAYLOAD_BYTES: Final = 1_000_000
"""Of the payload of an event, as it is sent. With its envelope it stays below 1 MiB, more than which many WebSocket
clients do not take."""
OUTPUT_BYTES: Final = 990_000
"""Of an output that is not a text, as it is given: usage and digest stand beside it in the payload."""
DELTA_MAX_CHARS: Final = 65_536
"""Of one `message.delta`: a longer text is written in several."""
LONG_OUTPUT_BYTES: Final = 256_000
"""Of an output as JSON: one that was streamed is said by its name beyond."""
PART_CHARS: Final = 30_000
"""Of the text in one `stream.snapshot.part`: at most 128,000 bytes with its envelope."""


def pieces(text: str, chars: int) -> Iterator[str]:
    """The text in pieces of at most so many characters; at least one, which may be empty."""
    return (text[start : start + chars] for start in range(0, len(text) or 1, chars))
