"""gunicorn's settings: the same for `runtail dev`, the Procfile and the container, told by the environment.

Responsible for how connections are accepted and how a worker ends. Not responsible for the application.
"""

import ipaddress
import logging
import os
import resource
import socket
from contextlib import suppress
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.workers.base import Worker

from app import metrics_folder
from app.storage.cooperative import make_psycopg_cooperative
from app.turns import collect_little

POSTGRES_SILENCE_SECONDS = 8
"""A request that meets a Postgres that stands still is answered 503 before a router gives up on it, at 30 s."""

UNREAD_SECONDS = 30
"""An answer of which a client has taken nothing for so long is not kept for it. Windows have a limit of their own."""

dev = os.environ.get("RUNTAIL_DEV", "") not in ("", "0")

bind = f"{'127.0.0.1' if dev else '0.0.0.0'}:{os.environ.get('PORT') or 8000}"
backlog = 2048

# gevent patches the standard library when the worker starts, and the application must be loaded after that:
# nothing is preloaded.
worker_class = "app.streaming.takeover.Worker"
preload_app = False
workers = int(os.environ.get("WEB_CONCURRENCY") or 2)
# Windows are long-lived and cheap; the application has limits of its own, this one only has to be above them.
worker_connections = 20_000
# Recycling a worker by its number of requests would wait for its windows, and new requests would wait for it.
max_requests = 0

# Seconds. The application ends its windows itself when its worker is told to stop; what is left then are idle
# kept-alive connections, which gunicorn waits for.
graceful_timeout = 2 if dev else 5
# Longer than proxies keep an idle connection to us (60 to 90 s), so that it is the proxy that closes it.
keepalive = 95

# A socket for remote control, in the home folder: of no use here.
control_socket_disable = True

accesslog = None
errorlog = "-"
loglevel = os.environ.get("LOG_LEVEL", "info").lower()


def on_starting(server: Arbiter) -> None:
    """Every window is an open file, and many systems begin with 1,024: take what the system lets us have."""
    metrics_folder.prepare()
    wanted = worker_connections + 1_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):  # some systems have a lower ceiling than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _bound_unread(listener: Any) -> None:
    """Give up on clients that take nothing of an answer: what is accepted here inherits the option."""
    option = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux has it
    with suppress(OSError):  # a Unix socket has not
        if option is not None:
            listener.sock.setsockopt(socket.IPPROTO_TCP, option, UNREAD_SECONDS * 1_000)


def when_ready(server: Arbiter) -> None:
    """Without keys everybody is the development principal: then nobody else may reach the port.

    :raises SystemExit: RUNTAIL_DEV=1 on an address that is not loopback.
    """
    for listener in server.LISTENERS:
        _bound_unread(listener)
        address = listener.getsockname()
        if dev and isinstance(address, tuple) and not ipaddress.ip_address(address[0]).is_loopback:
            raise SystemExit(f"RUNTAIL_DEV=1 serves without keys and listens on loopback only, not {address[0]}.")


def post_fork(server: Arbiter, worker: Worker) -> None:
    """psycopg2 blocks the whole process unless it is told to wait in gevent's way."""
    make_psycopg_cooperative(POSTGRES_SILENCE_SECONDS)


def post_worker_init(worker: Any) -> None:
    """Begin to serve windows, and let them see that their process is to end."""
    windows = worker.wsgi.extensions["runtail"].windows  # to gunicorn any WSGI callable; here it is the Flask app
    windows.draining = lambda: not worker.alive
    worker.has_windows = lambda: len(windows) > 0
    windows.start()
    collect_little()


def worker_exit(server: Arbiter, worker: Worker) -> None:
    """Wait for the last windows to end."""
    app: Any = getattr(worker, "wsgi", None)  # a worker that could not load the application has none
    if app is not None:
        app.extensions["runtail"].windows.close()
        if not worker.alive:  # it was told to end: the kernel takes it down at once, Python would take half a second
            logging.shutdown()
            os._exit(0)


def child_exit(server: Arbiter, worker: Worker) -> None:
    """However it ended, it has no window open any more."""
    metrics_folder.forget(int(worker.pid))


def on_exit(server: Arbiter) -> None:
    """The metrics end with the server."""
    metrics_folder.remove()
