"""Cancels of runs that are not there yet, by a name that their client has chosen for them.

A run's names are its `client_run_id` and its `idempotency_key`. Whoever creates a run with a name, and whoever cancels
by it, holds an advisory lock on the name until its commit: one of the two sees what the other has done.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from app.errors import TooManyCancels
from app.storage.run_store.database import Database
from app.storage.run_store.records import NewRun, Principal

REMEMBERED_HOURS = 24
"""How long a cancel waits for its run."""
NOTED_MAX = 1_000
"""Of one user."""

_REMEMBERED = f"created_at > now() - interval '{REMEMBERED_HOURS} hours'"
_NAMED = """c.tenant_id = {run}.tenant_id AND c.user_id = {run}.user_id
AND (kind, key) IN (('client_run_id', {run}.client_run_id), ('idempotency_key', {run}.idempotency_key))"""
CANCELLED = f"EXISTS (SELECT FROM early_cancels c WHERE {_NAMED} AND {_REMEMBERED})"
"""Whether a run was cancelled before it came; to be formatted with the name of its table."""
FORGET = f"DELETE FROM early_cancels c USING {{run}} WHERE {_NAMED}"
_LOCK = "SELECT pg_advisory_xact_lock(%s)"
"""A statement of its own: only those after it see what was waited for."""
_FIND = {
    "client_run_id": "SELECT id FROM runs WHERE tenant_id = %s AND user_id = %s AND client_run_id = %s",
    "idempotency_key": "SELECT id FROM runs WHERE tenant_id = %s AND user_id = %s AND idempotency_key = %s",
}
_NOTE = """
INSERT INTO early_cancels (tenant_id, user_id, kind, key) VALUES (%s, %s, %s, %s)
ON CONFLICT (tenant_id, user_id, kind, key) DO UPDATE SET created_at = now()
"""


class EarlyCancels:
    """Remembers cancels; `RunStore.create` heeds them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find_or_note(self, principal: Principal, kind: str, key: str) -> str | None:
        """Id of the principal's run of that name. None: there is none, and it is to be cancelled when it comes.

        :param kind: `client_run_id` or `idempotency_key`.
        :raises TooManyCancels: the principal has NOTED_MAX others.
        :raises StoreUnavailable: Postgres cannot be reached.
        """
        named = (principal.tenant_id, principal.user_id, key)
        with self._database.session(atomic=True) as db:
            _lock(db, principal, {kind: key})
            found = db.execute_sql(_FIND[kind], named).fetchone()
            if found is None:
                _check_room(db, principal, kind, key)
                db.execute_sql(_NOTE, (principal.tenant_id, principal.user_id, kind, key))
            return str(found[0]) if found else None


def _check_room(db: Any, principal: Principal, kind: str, key: str) -> None:
    """One after the other for each user, or several at once would find the same room."""
    db.execute_sql(_LOCK, (_lock_number(principal, "room", ""),))
    sql = f"""SELECT count(*) FROM early_cancels
              WHERE tenant_id = %s AND user_id = %s AND (kind, key) <> (%s, %s) AND {_REMEMBERED}"""
    (others,) = db.execute_sql(sql, (principal.tenant_id, principal.user_id, kind, key)).fetchone()
    if others >= NOTED_MAX:
        raise TooManyCancels(f"{NOTED_MAX:,} cancels of yours wait for runs that have not come.")


def locking(new: Iterable[NewRun]) -> tuple[str, list[int]]:
    """Statements that lock the names of runs, for one that is appended to them, and their values."""
    numbers = sorted(number for run in new for number in _numbers(run.principal, names_of(run)))
    return f"{_LOCK}; " * len(numbers), numbers


def names_of(new: NewRun) -> dict[str, str]:
    """Kind → key."""
    names = {"client_run_id": new.client_run_id, "idempotency_key": new.idempotency_key}
    return {kind: key for kind, key in names.items() if key is not None}


def _lock(db: Any, principal: Principal, names: Mapping[str, str]) -> None:
    """Until the end of the transaction."""
    for number in _numbers(principal, names):
        db.execute_sql(_LOCK, (number,))


def _numbers(principal: Principal, names: Mapping[str, str]) -> list[int]:
    """Of the locks, in one order for everybody."""
    return sorted(_lock_number(principal, kind, key) for kind, key in names.items())


def _lock_number(principal: Principal, kind: str, key: str) -> int:
    text = json.dumps([principal.tenant_id, principal.user_id, kind, key])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], signed=True)
