"""One window: the bytes that a client which follows a run gets, from its cursor to the end of the run.

Replay and live are the same cursor loop, so there is no moment of hand-over. The caller has authorised the client
and decided what to answer before the first byte; a window never changes the run.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

from app.errors import StoreUnavailable
from app.protocol import framing
from app.protocol.events import TERMINAL, Event, control
from app.protocol.reducer import ENDED
from app.storage.history import History
from app.storage.run_store import RunRecord

WAIT_MS = 1_000
"""How long one wait for events may block; a draining process ends its windows that fast."""
HEALING_SECONDS = 5.0
"""How long a cursor beyond a live run's head waits for the log to catch up."""
RETRY_MS = 1_000
BATCH = 500

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Framing:
    """How a window writes what it sends."""

    mimetype: str
    opening: bytes
    heartbeat: bytes
    event: Callable[[Event], bytes]
    control: Callable[[str, str, int | None], bytes]


def sse(*, named: bool) -> Framing:
    """Server-sent events; without names, everything reaches a browser's `onmessage`."""
    return Framing(
        "text/event-stream",
        framing.sse_retry(RETRY_MS),
        framing.SSE_HEARTBEAT,
        lambda event: framing.sse(event, named),
        lambda type, text, seq: framing.sse_control(type, text, seq, named),
    )


NDJSON = Framing(
    "application/x-ndjson",
    framing.NDJSON_HEARTBEAT,
    framing.NDJSON_HEARTBEAT,
    framing.ndjson,
    lambda type, text, seq: framing.ndjson_control(text),
)


def _never() -> bool:
    return False


@dataclass(slots=True)
class Windows:
    """Opens the windows of one web process."""

    history: History
    heartbeat_seconds: float
    draining: Callable[[], bool] = _never
    """Set by the server; true once this process is to end: windows end cleanly, their clients come back elsewhere."""

    def open(self, run: RunRecord, cursor: int | None, frame: Framing) -> Iterator[bytes]:
        """The window's bytes. Blocks between events; ends after the terminal event, or when the process drains.

        :param cursor: seq of the last event that the client has; None: begin with a snapshot at the head.
        """
        yield frame.opening
        try:
            start = yield from self._start(run, cursor, frame)
            if start is not None:
                yield from self._follow(run.id, start, frame)
        except StoreUnavailable as error:
            log.warning("A window of %s ends; its client will come back. %s", run.id, error.detail)

    def _start(self, run: RunRecord, cursor: int | None, frame: Framing) -> Generator[bytes, None, int | None]:
        """Where to follow from, after a snapshot where one is due; None: there is nothing to follow."""
        if cursor and not run.terminal and not self._heals(run.id, cursor):
            if self.draining():
                return None
            gap = {"requested": cursor, "earliest": 1, "head": self.history.head(run.id)}
            yield frame.control("stream.gap", control(run.id, "stream.gap", gap), None)
            cursor = None
        if cursor is None:
            return (yield from self._snapshot(run.id, frame))
        return None if run.terminal and cursor >= run.state_seq else cursor

    def _follow(self, run_id: str, cursor: int, frame: Framing) -> Iterator[bytes]:
        quiet_since = time.monotonic()
        events: Sequence[Event] = self._stored(run_id, cursor)
        while True:
            if events:
                yield b"".join(map(frame.event, events))
                cursor, quiet_since = events[-1].seq, time.monotonic()
                if events[-1].type in TERMINAL:
                    return
            if self.draining():
                return
            # After a full batch there may be more where it came from, which need not be where one can wait.
            events = self._stored(run_id, cursor) if len(events) == BATCH else self._wait(run_id, cursor)
            if not events and time.monotonic() - quiet_since >= self.heartbeat_seconds:
                yield frame.heartbeat
                quiet_since = time.monotonic()
                events = self._stored(run_id, cursor)  # Redis may have lost what Postgres has
                if not events and self._over(run_id, cursor):
                    return

    def _wait(self, run_id: str, cursor: int) -> Sequence[Event]:
        try:
            events = self.history.log.wait(run_id, cursor, WAIT_MS, BATCH)
        except StoreUnavailable:
            time.sleep(WAIT_MS / 1_000)  # Redis is away; what is archived meanwhile can be served
            return self._stored(run_id, cursor)
        if not events or events[0].seq == cursor + 1:
            return events
        stored = self._stored(run_id, cursor)
        if not stored:
            time.sleep(WAIT_MS / 1_000)  # behind what Redis still has, and Postgres is away
        return stored

    def _stored(self, run_id: str, cursor: int) -> Sequence[Event]:
        try:
            return self.history.after(run_id, cursor, BATCH)
        except StoreUnavailable as error:
            log.warning("A window of %s waits. %s", run_id, error.detail)
            return ()

    def _over(self, run_id: str, cursor: int) -> bool:
        try:
            return self.history.is_over(run_id, cursor)
        except StoreUnavailable:
            return False  # the window outlasts it

    def _heals(self, run_id: str, cursor: int) -> bool:
        """Wait up to HEALING_SECONDS for a log whose head is before the client's cursor."""
        deadline = time.monotonic() + HEALING_SECONDS
        while (head := self.history.head(run_id)) < cursor:
            if time.monotonic() >= deadline or self.draining():
                return False
            self.history.log.wait(run_id, head, WAIT_MS, 1)
        return True

    def _snapshot(self, run_id: str, frame: Framing) -> Generator[bytes, None, int | None]:
        """Yields the folded state. Returns its seq, or None where the run has ended and nothing follows."""
        run = self.history.store.get(run_id)
        if run is None:
            return None
        state = self.history.state(run)
        seq = state["last_seq"]
        text = control(run_id, "stream.snapshot", {"seq": seq, "state": state})
        yield frame.control("stream.snapshot", text, seq)
        return None if state["status"] in ENDED else seq
