"""A provider that accepts whoever calls, never says a word, and notes when they hang up.

Responsible for that. Not responsible for the agent that calls (`bench.agents`).
"""

import queue
import socket
import threading
import time
from contextlib import suppress
from typing import Self

LEFT_SECONDS = 30.0
BACKLOG = 64


class Silent:
    """On loopback, for the length of a `with` block; one thread for each client."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._asked: queue.Queue[None] = queue.Queue()
        self._left: queue.Queue[float] = queue.Queue()

    @property
    def url(self) -> str:
        """What to ask."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def wait_asked(self) -> None:
        """Wait for the next client's request."""
        self._asked.get(timeout=LEFT_SECONDS)

    def wait_left(self) -> float:
        """Wait for the next client to be gone; the moment, by `time.monotonic`."""
        return self._left.get(timeout=LEFT_SECONDS)

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._hear_out, args=(connection,), daemon=True).start()

    def _hear_out(self, connection: socket.socket) -> None:
        with connection, suppress(ConnectionError):  # a reset is gone too
            if connection.recv(65_536):
                self._asked.put(None)
            while connection.recv(65_536):
                pass
        self._left.put(time.monotonic())

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
