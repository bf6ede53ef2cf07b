"""The clients: each follows one run from its first event to its last, over any number of connections.

A window keeps the text of every event that it got, and notes whatever it should not have got; nothing is raised while
processes are being killed. One loop reads them all (`Windows.turn`). Not responsible for what is right: what a window
has seen is compared with the archive in `evidence`.
"""

import json
import selectors
import time
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Final

from app.protocol.events import TERMINAL
from app.protocol.reducer import ENDED
from tests.chaos.schedule import NDJSON
from tests.raw_client import Incoming, RawClient

RETRY_SECONDS = 0.2
SILENT_SECONDS = 12.0
"""Four heartbeats: after so long without a byte the connection is given up."""
ANSWER_SECONDS = 20.0
"""How long a request may wait for its head, in the backlog of a web that is starting."""
READ_BYTES: Final = 262_144


class Window:
    """One client of one run."""

    def __init__(
        self, port: int, run_id: str, accept: str, on_event: Callable[["Window", dict[str, Any]], None]
    ) -> None:
        """`on_event` is given each envelope as it arrives."""
        self.run_id = run_id
        self.accept = accept
        self.cursor = 0
        self.texts: dict[int, str] = {}
        """Of the events, by seq, as they were received."""
        self.snapshots: list[tuple[int, dict[str, Any]]] = []
        """(seq, state) of those that stood in the place of events."""
        self.type = ""
        """Of the last event."""
        self.done = False
        self.connections = self.repeated = self.lost = self.gaps = self.silences = 0
        self.statuses: Counter[int] = Counter()
        self.complaints: list[str] = []
        self._port = port
        self._on_event = on_event
        self._client: RawClient | None = None
        self._incoming = Incoming()
        self._text = b""
        self._data: str | None = None
        self._heard = self.due = time.monotonic()

    def fileno(self) -> int:
        """Of its connection, for `select`."""
        assert self._client is not None
        return self._client.socket.fileno()

    @property
    def open(self) -> bool:
        """It has a connection."""
        return self._client is not None

    @property
    def silent(self) -> bool:
        """Nothing has come for too long."""
        patience = SILENT_SECONDS if self._incoming.status else ANSWER_SECONDS
        return self.open and time.monotonic() - self._heard > patience

    def connect(self) -> bool:
        """Ask for what follows the cursor. False: nobody listens."""
        try:
            self._client = client = RawClient(self._port, timeout=2)
            client.ask(f"/runs/{self.run_id}/events?since_seq={self.cursor}", self.accept)
        except OSError:
            self.leave()
            return False
        client.socket.setblocking(False)
        self._incoming, self._text, self._data, self._heard = Incoming(), b"", None, time.monotonic()
        self.connections += 1
        return True

    def leave(self, reset: bool = False, after: float = RETRY_SECONDS) -> None:
        """Give the connection up, to come back after so many seconds."""
        client, self._client = self._client, None
        if client is not None:
            client.reset() if reset else client.socket.close()
        self.due = time.monotonic() + after

    def read(self) -> bool:
        """Take in what there is; False once the connection has ended."""
        assert self._client is not None
        try:
            data = self._client.socket.recv(READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        self._heard = time.monotonic()
        try:
            self._take(self._incoming.feed(data))
        except (AssertionError, ValueError, KeyError) as error:
            self.complaints.append(f"after seq {self.cursor}: {error!r}")
            return False
        return not self._incoming.complete

    def ended(self) -> float:
        """The connection has ended: note how, and return after how many seconds to come back."""
        status = self._incoming.status or 0
        self.statuses[status] += 1
        if status == 204 and not self.done:
            self.complaints.append(f"after seq {self.cursor}: there is no more, it was told, but the end is missing")
            self.done = True
        return float(self._incoming.headers.get("retry-after", 0)) or RETRY_SECONDS

    # What came.

    def _take(self, body: bytes) -> None:
        if self._incoming.status != 200:
            if body and self._incoming.status not in (429, 503):
                self.complaints.append(f"after seq {self.cursor}: {self._incoming.status} {body[:300]!r}")
            return
        *lines, self._text = (self._text + body).split(b"\n")
        for line in lines:
            self._take_line(line.decode())

    def _take_line(self, line: str) -> None:
        if self.accept == NDJSON:
            if line:
                self._take_text(line)
        elif line.startswith("data: "):
            assert self._data is None, f"two lines of data: {line[:200]}"
            self._data = line.removeprefix("data: ")
        elif not line and self._data is not None:
            text, self._data = self._data, None
            self._take_text(text)

    def _take_text(self, text: str) -> None:
        envelope = json.loads(text)
        if "seq" not in envelope:
            return self._take_control(envelope)
        seq = envelope["seq"]
        if seq <= self.cursor:
            self.repeated += 1
            self.complaints.append(f"seq {seq} came after seq {self.cursor}")
            return
        if seq > self.cursor + 1:
            self.lost += seq - self.cursor - 1
            self.complaints.append(f"seq {seq} came after seq {self.cursor}")
        self.texts[seq] = text
        self.cursor, self.type = seq, envelope["type"]
        self.done |= self.type in TERMINAL
        self._on_event(self, envelope)

    def _take_control(self, envelope: dict[str, Any]) -> None:
        match envelope["type"]:
            case "stream.snapshot":
                self.cursor = envelope["payload"]["seq"]
                self.done |= envelope["payload"]["state"]["status"] in ENDED
                self.snapshots.append((self.cursor, envelope["payload"]["state"]))
            case "stream.gap":
                self.gaps += 1
                self.complaints.append(f"after seq {self.cursor}: {envelope['payload']}")
            case "stream.rejected":
                self.statuses[-1] += 1


class Windows:
    """All clients, read by one loop."""

    def __init__(self) -> None:
        self.all: list[Window] = []
        self._selector = selectors.DefaultSelector()

    def __iter__(self) -> Iterator[Window]:
        return (window for window in self.all if not window.done)

    def add(self, window: Window) -> None:
        """Follow its run from now on."""
        self.all.append(window)

    def turn(self, seconds: float) -> None:
        """Read what comes within so long, and connect those whose time it is."""
        for key, _ in self._selector.select(seconds):
            window: Window = key.data
            if not window.read() or window.done:
                after = window.ended()
                self._drop(window, after=after)
        for window in self:
            if window.silent:
                window.silences += 1
                self._drop(window)
            elif not window.open and time.monotonic() >= window.due and window.connect():
                self._selector.register(window, selectors.EVENT_READ, window)

    def disturb(self, share: float, randomly: Random) -> None:
        """A share of the clients lose their connections and come back."""
        for window in list(self):
            if randomly.random() < share and window.open:
                self._drop(window, reset=randomly.random() < 0.5)

    def close(self) -> None:
        """Leave, all of them."""
        for window in self.all:
            if window.open:
                self._drop(window)
        self._selector.close()

    def _drop(self, window: Window, reset: bool = False, after: float = RETRY_SECONDS) -> None:
        self._selector.unregister(window)
        window.leave(reset, after)
