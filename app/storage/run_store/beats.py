"""A worker's row, written over a connection of its own that is never waited for without limit.

A connection can hang although nothing is closed: its server process is stopped, a proxy swallows what is sent, somebody
holds the row's lock. A limit of the server's fires only while the server runs, so it is the client that stops waiting.
It works without an event loop, for a native thread beside one.
"""

import time
from select import POLLIN, POLLOUT
from typing import Any

import psycopg2
from gevent import monkey
from psycopg2.extensions import POLL_OK, POLL_READ

from app.errors import StoreUnavailable
from app.storage.run_store.database import KEEPALIVE, driver_url

PATIENCE_SECONDS = 1.75
"""For one statement, together with the connection where a new one is needed. Then the connection is given up."""
STATEMENT_MILLISECONDS = 1_500
"""Less than that: a server that does run must not keep the statement of a client that has gone."""
NAME = "runtail heartbeat"
"""Of the connection, in `pg_stat_activity`."""

_IN_TIME = f"BEGIN; SET LOCAL statement_timeout = {STATEMENT_MILLISECONDS}; {{}}; COMMIT"
_BEAT = _IN_TIME.format(
    """INSERT INTO workers (id, isolated) VALUES (%s, %s)
       ON CONFLICT (id) DO UPDATE SET beats = workers.beats + 1, seen_at = now(), isolated = excluded.isolated"""
)
_BLAME = _IN_TIME.format("UPDATE workers SET culprit = %s WHERE id = %s")

_native_poll = monkey.get_original("select", "poll")


class Beats:
    """The heartbeat of one worker. For one thread. Every method may raise StoreUnavailable, after PATIENCE_SECONDS."""

    def __init__(self, url: str, worker_id: str, *, isolated: bool = False) -> None:
        """:param isolated: the worker executes runs in processes of their own."""
        self._url = driver_url(url)
        self._worker_id = worker_id
        self._isolated = isolated
        self._connection: Any = None

    def beat(self) -> None:
        """Count one heartbeat; the first one registers the worker."""
        self._execute(_BEAT, self._worker_id, self._isolated)

    def blame(self, run_id: str) -> None:
        """Say that this worker is about to end because of that run, or has ended because of it."""
        self._execute(_BLAME, run_id, self._worker_id)

    def close(self) -> None:
        """Close the connection. The next call makes a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _execute(self, sql: str, *values: Any) -> None:
        until = time.monotonic() + PATIENCE_SECONDS
        try:
            if self._connection is None:
                about: dict[str, Any] = {"async_": True, "application_name": NAME, **KEEPALIVE}
                self._connection = psycopg2.connect(self._url, **about)
                self._wait(until)
            cursor = self._connection.cursor()  # kept until the answer is there: the connection only knows it weakly
            cursor.execute(sql, values)
            self._wait(until)
        except psycopg2.Error as error:
            self.close()
            raise StoreUnavailable(f"Postgres: {str(error).strip()}") from error
        except BaseException:
            self.close()
            raise

    def _wait(self, until: float) -> None:
        """:raises StoreUnavailable: it took longer."""
        while (state := self._connection.poll()) != POLL_OK:
            milliseconds = max(0.0, until - time.monotonic()) * 1_000
            poll = _native_poll()
            poll.register(self._connection.fileno(), POLLIN if state == POLL_READ else POLLOUT)
            if not poll.poll(milliseconds):
                raise StoreUnavailable(f"Postgres did not answer within {PATIENCE_SECONDS} s on this connection.")
