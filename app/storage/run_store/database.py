"""The connection pool, and sessions on it. Knows no table."""

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gevent import monkey
from playhouse.pool import MaxConnectionsExceeded, PooledPostgresqlDatabase

from app.errors import Refused, StoreFailed, StoreUnavailable
from app.storage.peek import peek
from app.storage.run_store import failures
from app.turns import give_way, turn

POOL_WAIT_SECONDS = 5
CONNECT_TIMEOUT_SECONDS = 5
BEGIN = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = '10s'"
"""A process that is stopped in the middle of a transaction must not keep its rows from those who take over."""

KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
"""Of each connection, seconds but for the last, milliseconds: a peer that vanished is noticed in about 10 s."""

TLS_ALERT = b"\x15"
"""The first byte of what ends a connection under TLS."""

log = logging.getLogger(__name__)


class _Pool(PooledPostgresqlDatabase):  # type: ignore[misc]  # peewee carries no types
    """peewee's pool, but for how it sees that a connection was lost: it asks a query, while everybody else waits."""

    losses = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._sessions = threading.local()

    @property
    def is_beginning(self) -> bool:
        """This session's transaction begins with its first statement, in the same round trip."""
        return getattr(self._sessions, "is_beginning", False)

    @is_beginning.setter
    def is_beginning(self, value: bool) -> None:
        self._sessions.is_beginning = value

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        """Make the statement, and send it: either may take long. Errors are psycopg2's.

        :param params: without any, a `%` stands for itself.
        :raises Refused: one of the texts holds NUL or a lone surrogate, which psycopg2 does not even send.
        """
        give_way()
        beginning = self.is_beginning
        statement = f"{BEGIN}; {sql}" if beginning else sql
        cursor = self.cursor()
        if params:
            try:
                statement = cursor.mogrify(statement, params)
            except ValueError as error:
                raise Refused("A text holds a character that Postgres cannot store.") from error
            give_way()
        if beginning:
            self.is_beginning = False
        cursor.execute(statement)
        return cursor

    def _is_closed(self, connection: Any) -> bool:
        closed = bool(connection.closed) or _has_ended(connection.fileno())
        self.losses += closed
        return closed


class Database:
    """A pool of Postgres connections. Sessions do not nest: one greenlet holds at most one."""

    def __init__(self, url: str, pool_size: int) -> None:
        self.peewee = _Pool(
            driver_url(url),
            max_connections=pool_size,
            timeout=POOL_WAIT_SECONDS,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            **KEEPALIVE,
        )

    @property
    def losses(self) -> int:
        """Counts connections that were lost. Whoever meets a new one may meet a Postgres that has lost transactions."""
        return self.peewee.losses

    @contextmanager
    def session(self, *, atomic: bool = False) -> Iterator[Any]:
        """A connection for the block, by way of peewee; with `atomic` one transaction, else each statement its own.

        :raises StoreUnavailable: Postgres cannot be reached, or not write at the moment; or no connection came free
            within POOL_WAIT_SECONDS. StoreFailed: it failed, and nobody knows why.
        :raises Refused: it will never take what was to be stored.
        """
        try:
            self.peewee.connect()
            try:
                # Where threads are not patched, the connection is that of all greenlets of the thread.
                turn.kept = not monkey.is_module_patched("threading")
                self.peewee.is_beginning = atomic
                yield self.peewee
                if atomic and not self.peewee.is_beginning:
                    self.peewee.commit()
            except BaseException:
                # A connection that saw an exception, a greenlet kill among them, may be in the middle of its
                # protocol: it is closed, not returned to the pool, and not asked to roll back, which closing does.
                self.peewee.manual_close()
                raise
            finally:
                turn.kept = False
            self.peewee.close()
        except MaxConnectionsExceeded as error:
            raise StoreUnavailable(f"No connection to Postgres came free within {POOL_WAIT_SECONDS} s.") from error
        except failures.ERRORS as error:
            if failures.is_lost(error):
                self.peewee.losses += 1
                self.peewee.close_idle()
            failure = failures.translated(error)
            if isinstance(failure, Refused | StoreFailed):
                log.error("%s %s", failure.detail, error)
            raise failure from error

    def ping(self) -> None:
        """:raises StoreUnavailable: Postgres cannot be reached."""
        with self.session() as db:
            db.execute_sql("SELECT 1")

    def close(self) -> None:
        """Close every connection."""
        self.peewee.close_all()


def driver_url(url: str) -> str:
    """The URL as the driver wants it: Heroku spells its scheme `postgres`."""
    return url.replace("postgres://", "postgresql://", 1)


def _has_ended(descriptor: int) -> bool:
    """Whether the server has closed an idle connection, or said why it is about to; asks nobody."""
    return peek(descriptor) in (b"", b"E", TLS_ALERT)


def rows(cursor: Any) -> list[dict[str, Any]]:
    """The rows of a cursor as dictionaries by column name."""
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """The columns of some rows, one list each: what `unnest` takes."""
    return [list(column) for column in zip(*rows, strict=True)]
