"""Many windows that stay open on runs that wait, and what a server holds meanwhile.

Responsible for opening them and weighing the server. Not responsible for the runs.
"""

import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

import redis

from bench.peers.peer import ANSWER_SECONDS, Peer, Run
from bench.peers.wire import HOST
from bench.processes import usage

AT_ONCE = 10
PAUSE_SECONDS = 0.1
READ_BYTES = 65_536


class Windows:
    """So many of them, in turn over the runs."""

    def __init__(self, peer: Peer, runs: Sequence[Run], count: int) -> None:
        self._peer = peer
        self._requests = [peer.follow(runs[number % len(runs)]).encoded() for number in range(count)]
        self._sockets: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()

    def open(self, settle: float) -> None:
        """Open them a few at a time, and give the server so many seconds."""
        for first in range(0, len(self._requests), AT_ONCE):
            for request in self._requests[first : first + AT_ONCE]:
                opened = socket.create_connection((HOST, self._peer.port), ANSWER_SECONDS)
                opened.sendall(request)
                self._sockets.append(opened)
                self._selector.register(opened, selectors.EVENT_READ)
            self._read(PAUSE_SECONDS)
        self._read(settle)

    def still_open(self) -> int:
        """How many the server has not closed."""
        self._read(0)
        return len(self._selector.get_map())

    def _read(self, seconds: float) -> None:
        """Take what comes; one that has ended is not watched any more."""
        end = time.monotonic() + seconds
        while found := self._selector.select(max(0.0, end - time.monotonic())):
            for key, _ in found:
                with suppress(OSError):
                    if key.fileobj.recv(READ_BYTES):  # type: ignore[union-attr]
                        continue
                self._selector.unregister(key.fileobj)
            if time.monotonic() >= end:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        for each in self._sockets:
            each.close()


def bytes_held(peer: Peer) -> dict[str, int]:
    """By all processes of a server, and by the Redis that it uses."""
    with redis.Redis.from_url(peer.redis_url) as client:
        in_redis = int(client.info("memory")["used_memory"])
    return {"server": usage(peer.pids()).rss, "redis": in_redis}
