"""A reader of `GET /admin/feed`: keeps what it is sent, in a thread of its own, and counts it when it is asked.

It shares the cores with what is measured: while events come it does as little as it can. Not responsible for what
should have come.
"""

import json
import threading
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from socket import SHUT_RDWR
from typing import Any, Self

from bench.client import HOST, TIMEOUT_SECONDS
from bench.processes import BenchError

STATUS = "feed.status"
PIECE_BYTES = 65_536


class Feed:
    """An open feed, for the length of a `with` block."""

    def __init__(self, port: int, sample: float) -> None:
        """Opens it.

        :raises BenchError: the server refuses.
        """
        self._pieces: list[bytes] = []
        self._connection = HTTPConnection(HOST, port, timeout=TIMEOUT_SECONDS)
        self._connection.request("GET", f"/admin/feed?sample={sample}", headers={"Accept": "application/x-ndjson"})
        assert self._connection.sock
        self._socket = self._connection.sock  # http.client forgets it with the head of an answer that ends by a close
        self._response = self._connection.getresponse()
        if self._response.status != 200:
            raise BenchError(f"The feed answered {self._response.status}: {self._response.read(300)!r}")
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        with suppress(ValueError, HTTPException):  # it is cut off in the middle of a chunk: see `__exit__`
            while piece := self._response.read1(PIECE_BYTES):
                self._pieces.append(piece)

    def of_type(self, type: str) -> list[dict[str, Any]]:
        """The envelopes of that type that have come so far."""
        *lines, _ = b"".join(self._pieces).split(b"\n")
        return [envelope for envelope in map(json.loads, filter(None, lines)) if envelope["type"] == type]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(SHUT_RDWR)
        self._thread.join()
        self._response.close()
        self._connection.close()
