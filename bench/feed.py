"""A reader of `GET /admin/feed`: counts what it is sent, from a thread of its own.

Responsible for the counting. Not responsible for what should have come.
"""

import json
import threading
from collections import Counter
from http.client import HTTPConnection
from socket import SHUT_RDWR
from typing import Any, Self

from bench.client import HOST, TIMEOUT_SECONDS
from bench.processes import BenchError

STATUS = "feed.status"


class Feed:
    """An open feed, for the length of a `with` block."""

    def __init__(self, port: int, sample: float) -> None:
        """Opens it.

        :raises BenchError: the server refuses.
        """
        self.types: Counter[str] = Counter()
        """How many there came of each type."""
        self.status: dict[str, Any] = {}
        """What the last `feed.status` said."""
        self._connection = HTTPConnection(HOST, port, timeout=TIMEOUT_SECONDS)
        self._connection.request("GET", f"/admin/feed?sample={sample}", headers={"Accept": "application/x-ndjson"})
        assert self._connection.sock
        self._socket = self._connection.sock  # http.client forgets it with the head of an answer that ends by a close
        self._response = self._connection.getresponse()
        if self._response.status != 200:
            raise BenchError(f"The feed answered {self._response.status}: {self._response.read(300)!r}")
        self._thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        while line := self._response.readline():
            if line.strip():
                self._count(json.loads(line))

    def _count(self, envelope: dict[str, Any]) -> None:
        self.types[envelope["type"]] += 1
        if envelope["type"] == STATUS:
            self.status = envelope["payload"]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(SHUT_RDWR)
        self._thread.join()
        self._response.close()
        self._connection.close()
