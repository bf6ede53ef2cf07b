"""How a window writes what it sends: the format, chunks, snapshots whole or in parts. Bytes only; no connections."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Final

from app.pace import encoded
from app.protocol import framing
from app.protocol.events import Event, snapshot, snapshot_parts
from app.turns import give_way

RETRY_MS: Final = 1_000
"""After how long an SSE client comes back from a lost connection."""
NORMAL_CLOSURE: Final = 1000
"""Code of the close frame after the terminal event."""


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """A wire format. There is one instance of each: windows of the same format share what is framed."""

    mimetype: str
    opening: bytes
    heartbeat: bytes
    event: Callable[[Event], bytes]
    control: Callable[[str, bytes, int | None], bytes]
    """(type, text in UTF-8, id of a snapshot) of a control frame."""
    retry: Callable[[int], bytes]
    """Says after how many milliseconds to come back."""
    capped: bool
    """A window far behind gets a snapshot instead of the events."""
    ending: bytes = b""
    """Says that the run has ended, where the end of the body does not say it."""


def _sse(named: bool) -> Format:
    return Format(
        mimetype="text/event-stream",
        opening=framing.sse_retry(RETRY_MS),
        heartbeat=framing.SSE_HEARTBEAT,
        event=lambda event: framing.sse(event, named),
        control=lambda type, data, seq: framing.sse_control(type, data, seq, named),
        retry=framing.sse_retry,
        capped=True,
    )


SSE: Final = _sse(named=True)
SSE_UNNAMED: Final = _sse(named=False)
"""Everything reaches a browser's `onmessage`."""
NDJSON: Final = Format(
    mimetype="application/x-ndjson",
    opening=framing.NDJSON_HEARTBEAT,
    heartbeat=framing.NDJSON_HEARTBEAT,
    event=framing.ndjson,
    control=lambda type, data, seq: framing.ndjson_control(data),
    retry=lambda ms: b"",
    capped=False,
)
WEBSOCKET: Final = Format(
    mimetype="application/json",
    opening=b"",
    heartbeat=framing.WEBSOCKET_PING,
    event=framing.websocket,
    control=lambda type, data, seq: framing.websocket_text(data),
    retry=lambda ms: b"",
    capped=True,
    ending=framing.websocket_close(NORMAL_CLOSURE),
)


@dataclass(frozen=True, slots=True, eq=False)
class Wire:
    """A format on a connection: in chunks (HTTP/1.1), or plain (HTTP/1.0, or where the server does the framing)."""

    format: Format
    chunked: bool
    parts: bool
    """A snapshot comes in messages of bounded size."""

    def wrap(self, body: bytes) -> bytes:
        """The body, which is not empty, as it goes onto the connection."""
        return b"%x\r\n%b\r\n" % (len(body), body) if self.chunked else body

    def snapshot(self, run_id: str, seq: int, state: str) -> Iterator[bytes]:
        """The frames of a snapshot; its seq is the id of the last one.

        :param state: JSON of the state at `seq`.
        """
        if not self.parts:
            text = snapshot(run_id, seq, state)
            give_way()
            data = b"".join(encoded(text))
            give_way()
            yield self.format.control("stream.snapshot", data, seq)
            return
        frame, before = partial(self.format.control, "stream.snapshot.part"), None
        for text in snapshot_parts(run_id, seq, state):
            if before is not None:
                yield frame(before, None)
            before = text.encode()
        if before is not None:
            yield frame(before, seq)

    @property
    def end(self) -> bytes:
        """What ends the body in order; plain bodies end with the connection."""
        return b"0\r\n\r\n" if self.chunked else self.format.ending


_BOTH: Final = (True, False)
_WIRES: Final = {key: Wire(*key) for key in product((SSE, SSE_UNNAMED, NDJSON, WEBSOCKET), _BOTH, _BOTH)}


def wire(format: Format, *, chunked: bool, parts: bool = False) -> Wire:
    """The one instance: windows with the same wire share what is sent."""
    return _WIRES[format, chunked, parts]
