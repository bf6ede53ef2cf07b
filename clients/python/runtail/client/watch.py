"""Following a run by its cursor, over as many connections as it takes: every event once, in order."""

import json
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from typing import Any

import httpx

from runtail.client.connection import (
    CONNECT_SECONDS,
    FIRST_PAUSE,
    LAST_PAUSE,
    Connection,
    encoded,
    jittered,
    reason,
    refusal,
)
from runtail.errors import Unreachable

Envelope = dict[str, Any]

NDJSON = "application/x-ndjson"
SILENCE_SECONDS = 60.0
"""A window sends a heartbeat every 15 s by default: after this long without a byte its connection is dead."""
GIVE_UP_SECONDS = 300.0
"""How long a server may stay away."""
TERMINAL = frozenset({"run.completed", "run.failed", "run.cancelled"})
ENDED = frozenset({"completed", "failed", "cancelled"})


class _Broken(Exception):
    """A window has ended, or did not open, and the run goes on. `wait`: seconds that the server asks for."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.wait = wait


class Watch:
    """One run, seen by one client."""

    def __init__(
        self, connection: Connection, path: str, headers: Mapping[str, str], query: Mapping[str, str], since: int
    ) -> None:
        self._connection = connection
        self._path = path
        self._headers = {**headers, "Accept": NDJSON}
        self._query = query
        self._cursor = since
        self._pause = FIRST_PAUSE
        self._lost_at: float | None = None

    def envelopes(self) -> Iterator[Envelope]:
        """What follows the cursor, up to the end of the run: events and control frames.

        :raises Refused: the run is not there for the caller.
        :raises Unreachable: the server has been away for GIVE_UP_SECONDS.
        """
        while True:
            opened_at = self._cursor
            try:
                with closing(self._window()) as window:
                    for envelope in window:
                        self._move(envelope)
                        yield envelope
                        if _is_last(envelope):
                            return
            except _Broken as broken:
                self._wait(broken)
                continue
            if self._cursor == opened_at and self._is_at_the_end():
                return
            self._wait(_Broken("The server ended the stream."))

    def _window(self) -> Generator[Envelope, None, None]:
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        query = {**self._query, "since_seq": str(self._cursor)}
        headers = encoded(self._headers)
        window = self._connection.http.stream("GET", self._path, params=query, headers=headers, timeout=timeout)
        try:
            with window as answer:
                if answer.status_code != httpx.codes.OK:
                    answer.read()
                    refused = refusal(answer)
                    raise _Broken(str(refused), refused.retry_after) if refused.passing else refused
                if not answer.headers.get("Content-Type", "").startswith(NDJSON):
                    raise _Broken("What answered is no Runtail server.")
                for line in _lines(answer.iter_bytes()):
                    self._lost_at = None
                    if line.strip():
                        yield json.loads(line)
        except httpx.RequestError as error:
            raise _Broken(f"The connection was lost: {reason(error)}") from error
        except ValueError as error:
            raise _Broken("What came is not NDJSON.") from error

    def _move(self, envelope: Envelope) -> None:
        """Move the cursor past this envelope.

        :raises _Broken: something is missing before it, which another window from the cursor brings.
        """
        payload = envelope["payload"]
        if envelope["type"] == "stream.rejected":
            raise _Broken(f"The server takes no more streams ({payload['code']}).", payload["retry_ms"] / 1_000)
        if envelope["type"] == "stream.snapshot":
            self._cursor = payload["seq"]
        elif "seq" in envelope:
            if envelope["seq"] != self._cursor + 1:
                raise _Broken(f"Event {envelope['seq']} came after event {self._cursor}.")
            self._cursor = envelope["seq"]
        self._pause = FIRST_PAUSE

    def _is_at_the_end(self) -> bool:
        """The cursor is the terminal event: a window from there ends at once, and says nothing."""
        query = {**self._query, "since_seq": str(self._cursor), "limit": "1"}
        headers = {**self._headers, "Accept": "application/json"}
        try:
            page = self._connection.ask("GET", self._path, headers, params=query)
        except Unreachable:
            return False  # the next window tells
        return bool(page["terminal"]) and not page["events"]

    def _wait(self, broken: _Broken) -> None:
        self._lost_at = self._lost_at or time.monotonic()
        away = time.monotonic() - self._lost_at
        if away > GIVE_UP_SECONDS:
            raise Unreachable(f"The server has been away for {away:.0f} s. {broken}") from broken
        time.sleep(max(broken.wait, jittered(self._pause)))
        self._pause = min(LAST_PAUSE, 2 * self._pause)


def _is_last(envelope: Envelope) -> bool:
    if envelope["type"] == "stream.snapshot":
        return envelope["payload"]["state"]["status"] in ENDED
    return envelope["type"] in TERMINAL


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The lines that came whole: what a broken connection left of the last one is no event."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
