"""What an error of psycopg2 or peewee means to callers, by its SQLSTATE. Pure.

Three kinds: it may work in a moment (StoreUnavailable), it would be refused again (Refused), or nobody has foreseen it
(StoreFailed), which is treated like the first, because a run that could go on is not to be given up for it.
"""

import peewee
import psycopg2

from app.errors import Refused, RuntailError, StoreFailed, StoreUnavailable

UNAVAILABLE = ("08", "25006", "25P03", "25P04", "40", "53", "55P03", "57", "58")
"""Lost connections, a server that is read-only, a transaction that was cut or came in the way of another one, too
little of something, a lock that is not to be had, a statement or a server that was stopped, a disk that fails."""
REFUSED = ("22", "23", "54")
"""A value that is none of its type, a row that breaks a constraint, something too large: the caller's fault."""
UNDEFINED_TABLE = "42P01"
LOST = ("08", "25006", "25P03", "25P04", "57P")
"""The server of this connection is gone, or is not the one that takes writes: so it is for its pool mates."""

ERRORS = (peewee.PeeweeException, psycopg2.Error, OSError)
"""What is translated: psycopg2's of statements, peewee's of connecting and committing; a wait raises OSErrors."""


def sqlstate(error: BaseException) -> str:
    """The five characters of an error that Postgres sent; empty where it sent none, as when it cannot be reached."""
    original = getattr(error, "orig", error)  # peewee's errors hold psycopg2's
    return getattr(original, "pgcode", None) or ""


def translated(error: BaseException) -> RuntailError:
    """The error as callers get it. What Postgres says of it may hold what was to be stored: it is for the log only."""
    state = sqlstate(error)
    if state == UNDEFINED_TABLE:
        return StoreUnavailable("The database has no tables yet: run `runtail migrate`.")
    if state.startswith(REFUSED):
        return Refused(f"Postgres refuses a value for good (SQLSTATE {state}).")
    if state.startswith(UNAVAILABLE):
        answered = not state.startswith(LOST)
        return StoreUnavailable(f"Postgres cannot do it at the moment (SQLSTATE {state}).", answered=answered)
    if state:
        return StoreFailed(f"Postgres failed unexpectedly (SQLSTATE {state}).", answered=True)
    if _is_unsent(error):
        return Refused("A value has no form that Postgres can store.")
    return StoreUnavailable("Postgres cannot be reached.")


def _is_unsent(error: BaseException) -> bool:
    """Whether an error without SQLSTATE is psycopg2's own, of a value that it has not even sent."""
    return isinstance(error, peewee.ProgrammingError | psycopg2.ProgrammingError)


def is_lost(error: BaseException) -> bool:
    """Whether other connections of the pool are most likely of no more use either."""
    state = sqlstate(error)
    return state.startswith(LOST) if state else not _is_unsent(error)
