"""A Redis behind TLS, with a certificate of its own making, as Heroku's is."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from tests.harness import ROOT


@contextlib.contextmanager
def tls_relay(redis_url: str) -> Iterator[str]:
    """The `rediss://` URL of that Redis."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ROOT / "tests" / "localhost.pem")
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, context, redis_url), daemon=True).start()
        parts = urlsplit(redis_url)
        credentials = parts.netloc.rpartition("@")[0]
        yield f"rediss://{credentials}@localhost:{server.getsockname()[1]}{parts.path or '/0'}"


def _accept(server: socket.socket, context: ssl.SSLContext, url: str) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            threading.Thread(target=_serve, args=(client, context, url), daemon=True).start()


def _serve(client: socket.socket, context: ssl.SSLContext, url: str) -> None:
    with (
        contextlib.suppress(OSError),
        context.wrap_socket(client, server_side=True) as outside,
        _plain(url) as inside,
    ):
        threading.Thread(target=_copy, args=(inside, outside), daemon=True).start()
        _copy(outside, inside)


def _plain(url: str) -> socket.socket:
    parts = urlsplit(url)
    if parts.hostname:
        return socket.create_connection((parts.hostname, parts.port or 6379))
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(parts.path)
    return connection


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_RDWR)
