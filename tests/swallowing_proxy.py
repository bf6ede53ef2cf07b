"""A TCP proxy that can swallow what is sent: every connection stays open, and nothing comes through any more."""

import contextlib
import socket
from threading import Event, Thread
from typing import Self
from urllib.parse import urlsplit


class SwallowingProxy:
    """Listens on a port of its own, in front of the server of a URL."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self._flows = Event()
        self._flows.set()

    @property
    def url(self) -> str:
        """The server's, by way of this proxy."""
        user = self._target.netloc.rpartition("@")[0]
        netloc = f"{user}@127.0.0.1:{self._listener.getsockname()[1]}".removeprefix("@")
        return self._target._replace(netloc=netloc).geturl()

    @property
    def accepted(self) -> int:
        """How many connections were made."""
        return (len(self._sockets) - 1) // 2

    def swallow(self) -> None:
        """From now on nothing comes through, neither on old connections nor on new ones."""
        self._flows.clear()

    def flow(self) -> None:
        """New connections work again; what the old ones lost stays lost."""
        self._flows.set()

    def __enter__(self) -> Self:
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((self._target.hostname, self._target.port))
            self._sockets += [client, server]
            for source, sink in ((client, server), (server, client)):
                Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                if self._flows.is_set():
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
