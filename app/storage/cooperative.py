"""psycopg2 under gevent: a query lets the other greenlets run, and none waits for ever for a server that is gone."""

from functools import partial

from gevent.socket import wait_read, wait_write
from psycopg2.extensions import POLL_OK, POLL_READ, POLL_WRITE, set_wait_callback
from psycopg2.extensions import connection as Connection

SILENCE_SECONDS = 30.0
"""Default of the longest silence of Postgres inside one statement, or while connecting; then TimeoutError.

libpq's own limits do not hold here: with a wait callback it is the callback that waits.
"""

WAITS = {POLL_READ: wait_read, POLL_WRITE: wait_write}


def make_psycopg_cooperative(silence_seconds: float = SILENCE_SECONDS) -> None:
    """For a process that gevent has patched; before its first connection."""
    set_wait_callback(partial(_wait, silence_seconds=silence_seconds))


def _wait(connection: Connection, *, silence_seconds: float) -> None:
    """Until libpq has what it waits for. What goes wrong there, `poll` raises.

    :raises TimeoutError: the server was silent for too long.
    """
    while (state := connection.poll()) != POLL_OK:
        WAITS[state](connection.fileno(), timeout=silence_seconds)
