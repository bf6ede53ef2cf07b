"""The events that a writer has made and not yet sent, in batches. No threads, no sockets."""

import time
from collections import deque

from runtail.deltas import Deltas
from runtail.errors import InvalidEvent
from runtail.values import dumps

BATCH_EVENTS = 500
BATCH_BYTES = 256_000
EVENT_BYTES = 900_000
"""A larger event is refused: with its batch it has to fit into a request, 1 MB by default."""


class Outbox:
    """Lines of NDJSON, and text of open messages that waits for more of it. The caller sees to locking."""

    def __init__(self) -> None:
        self.bytes = 0
        """Of the lines."""
        self._batch_bytes = BATCH_BYTES
        self._lines: deque[bytes] = deque()
        self._deltas = Deltas()

    def __bool__(self) -> bool:
        return bool(self._lines or self._deltas)

    def begin(self, message_id: str) -> None:
        """A message has been started."""
        self._deltas.begin(message_id)

    def add(self, line: bytes) -> None:
        """Add an event; the text that came before it goes before it."""
        if self._deltas:
            self.settle()
        self._add(line)

    def write(self, message_id: str, text: str) -> bool:
        """Add text to a message. Returns whether that makes something due which was not."""
        first = not self._deltas
        if self._deltas.write(message_id, text):
            self.settle()
            return True
        return first

    def settle(self) -> None:
        """Make events of the text that waits."""
        for message_id, text, _ in self._deltas.take():
            self._add(event_line("message.delta", {"message_id": message_id, "text": text}))

    def due_in(self) -> float | None:
        """Seconds until there is something to send; None: there is nothing."""
        if self._lines:
            return 0.0
        if self._deltas:
            return max(0.0, self._deltas.due_at - time.monotonic())
        return None

    def take(self) -> bytes:
        """Take the next batch, which has at least one event where something is due."""
        if not self._lines:
            self.settle()
        batch = [self._lines.popleft()]
        size = len(batch[0])
        while self._lines and len(batch) < BATCH_EVENTS and size + len(self._lines[0]) <= self._batch_bytes:
            batch.append(self._lines.popleft())
            size += len(batch[-1])
        self.bytes -= size
        return b"".join(batch)

    def put_back(self, batch: bytes) -> bool:
        """Take back a batch that was too large: it is cut in two, and later ones are as small. False: it cannot be."""
        lines = batch.splitlines(keepends=True)
        self._batch_bytes = len(batch) // 2
        if len(lines) == 1:
            return False
        self._lines.extendleft(reversed(lines))
        self.bytes += len(batch)
        return True

    def clear(self) -> None:
        """Forget everything."""
        self._lines.clear()
        self._deltas.clear()
        self.bytes = 0

    def _add(self, line: bytes) -> None:
        self._lines.append(line)
        self.bytes += len(line)


def event_line(type: str, payload: object) -> bytes:
    """The line of an event whose payload is clean.

    :raises InvalidEvent: it is too large.
    """
    line = f'{{"type":{dumps(type)},"payload":{dumps(payload)}}}\n'.encode()
    if len(line) > EVENT_BYTES:
        raise InvalidEvent(f"{type}: an event of {len(line)} bytes is too large; at most {EVENT_BYTES} are taken.")
    return line
