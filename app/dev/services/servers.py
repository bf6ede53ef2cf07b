"""What a prepared server is, and the little that PostgreSQL and Redis have in common here.

Responsible for describing a server and telling whether it answers. Not responsible for preparing one
(`postgres_server`, `redis_server`) or for running it (`embedded`, `app.dev.installation`).
"""

import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import redis

from app.dev.services.folder import DevError, disk_full, log_path, main_line, says_disk_full

LOOPBACK = "127.0.0.1"
READY_SECONDS = 20.0
"""How long a server may take until it answers; recovering after a crash is part of it."""


@dataclass(frozen=True, slots=True)
class Server:
    """A prepared server: everything that is needed to run it, restart it, reach it and stop it."""

    name: str
    argv: tuple[str, ...]
    url: str
    url_variable: str
    """The setting by which web and worker learn the URL."""
    folder: Path
    stop_signal: signal.Signals
    account: str | None = None
    """Whom it runs as; None = the caller."""


def is_ready(server: Server) -> bool:
    """Whether the server answers now. Blocks for a second at most."""
    try:
        if server.name == "postgres":
            psycopg2.connect(server.url, connect_timeout=1).close()
        else:
            with redis.Redis.from_url(server.url, socket_timeout=1) as client:
                client.ping()
    except (psycopg2.OperationalError, redis.ConnectionError, redis.TimeoutError):
        return False  # not listening yet, or still reading its files
    return True


def explain_exit(name: str, data: Path) -> DevError:
    """Why a process ended instead of becoming ready, from the end of its log."""
    log = log_path(data, name)
    output = log.read_text(errors="replace") if log.exists() else ""
    if says_disk_full(output):
        return disk_full(data)
    return DevError(f"{name} did not start: {main_line(output)} (its log: {log})")


def free_port() -> int:
    """A TCP port on loopback that nobody listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        port: int = sock.getsockname()[1]
        return port
