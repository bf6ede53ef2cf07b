"""What processes tell about themselves and who may call: agents, workers, API keys."""

import hashlib
import json
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from app.storage.run_store.database import Database, rows
from app.storage.run_store.records import Principal

KEY_PREFIX = "rt_"
_AGENTS = "SELECT name, input_schema, isolation, version, updated_at AS registered_at FROM agents"
_GOOD = "(expires_at IS NULL OR expires_at > now())"
WORKER_GONE_SECONDS = 20
"""A worker without a heartbeat for so long is gone."""
JANITOR_SHOWN_SECONDS = 5
"""How often a janitor shows that it is at work."""
JANITOR_GONE_SECONDS = 20
"""A janitor that has not shown itself for so long is gone."""


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """An agent as its worker registered it; `input_schema` is JSON Schema."""

    name: str
    input_schema: dict[str, Any]
    isolation: str
    version: str
    registered_at: datetime | None = field(default=None, compare=False)
    """Of its latest registration; None: it is to be registered."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key, as far as it can be shown."""

    id: str
    tenant_id: str
    user_id: str
    admin: bool
    writer: bool
    created_at: datetime
    expires_at: datetime | None


class Registry:
    """Agents, workers and API keys. Every method may raise StoreUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put_agent(self, agent: AgentRecord) -> None:
        """Register an agent, or what changed about it."""
        sql = """INSERT INTO agents (name, input_schema, isolation, version) VALUES (%s, %s, %s, %s)
                 ON CONFLICT (name) DO UPDATE SET input_schema = excluded.input_schema,
                 isolation = excluded.isolation, version = excluded.version, updated_at = now()"""
        values = (agent.name, json.dumps(agent.input_schema), agent.isolation, agent.version)
        self._execute(sql, *values)

    def agents(self) -> list[AgentRecord]:
        """Every registered agent, by name."""
        return [AgentRecord(**row) for row in self._select(f"{_AGENTS} ORDER BY name")]

    def agent(self, name: str) -> AgentRecord | None:
        """One agent, or None."""
        found = self._select(f"{_AGENTS} WHERE name = %s", name)
        return AgentRecord(**found[0]) if found else None

    def put_broken(self, worker_id: str, broken: dict[str, str]) -> None:
        """Note why a worker could not load agents: a sentence by the name of the entry point."""
        sql = """INSERT INTO workers (id, broken) VALUES (%s, %s)
                 ON CONFLICT (id) DO UPDATE SET broken = excluded.broken"""
        self._execute(sql, worker_id, json.dumps(broken) if broken else None)

    def broken(self) -> dict[str, str]:
        """What the workers that are alive could not load: a sentence by the name of the entry point."""
        sql = f"""SELECT broken FROM workers WHERE broken IS NOT NULL
                  AND seen_at > now() - interval '{WORKER_GONE_SECONDS} seconds' ORDER BY seen_at"""
        found: dict[str, str] = {}
        for row in self._select(sql):
            found |= row["broken"]
        return dict(sorted(found.items()))

    def show_janitor(self, worker_id: str) -> None:
        """Note that the worker's janitor is at work; called often, it writes now and then."""
        sql = f"""UPDATE workers SET janitor_at = now() WHERE id = %s
                  AND (janitor_at IS NULL OR janitor_at < now() - interval '{JANITOR_SHOWN_SECONDS} seconds')"""
        self._execute(sql, worker_id)

    def has_janitor(self) -> bool:
        """Whether the janitor of some worker has been at work lately."""
        sql = f"SELECT FROM workers WHERE janitor_at > now() - interval '{JANITOR_GONE_SECONDS} seconds' LIMIT 1"
        with self._database.session() as db:
            return db.execute_sql(sql).fetchone() is not None

    def remove_worker(self, worker_id: str) -> None:
        """A worker ends in order."""
        self._execute("DELETE FROM workers WHERE id = %s", worker_id)

    def create_key(self, principal: Principal, days: int | None = None) -> str:
        """Make an API key for a principal. Only its hash is kept: this is the one time that it can be read.

        :param days: after so many it expires; None: never.
        """
        key_id = secrets.token_hex(4)
        key = f"{KEY_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
        sql = """INSERT INTO api_keys (id, key_hash, tenant_id, user_id, admin, writer, expires_at)
                 VALUES (%s, %s, %s, %s, %s, %s, now() + make_interval(days => %s))"""
        who = (principal.tenant_id, principal.user_id, principal.admin, principal.writer)
        self._execute(sql, key_id, hash_key(key), *who, days)
        return key

    def list_keys(self) -> list[KeyRecord]:
        """Every key, those that have expired too, by tenant, user and age."""
        sql = """SELECT id, tenant_id, user_id, admin, writer, created_at, expires_at FROM api_keys
                 ORDER BY tenant_id, user_id, created_at, id"""
        return [KeyRecord(**row) for row in self._select(sql)]

    def revoke_key(self, key_id: str) -> bool:
        """Remove a key. False: there is none of that id."""
        return bool(self._select("DELETE FROM api_keys WHERE id = %s RETURNING id", key_id))

    def good_keys(self, key_ids: Collection[str]) -> set[str]:
        """Which of these keys still open doors."""
        sql = f"SELECT id FROM api_keys WHERE id = ANY (%s) AND {_GOOD}"
        return {row["id"] for row in self._select(sql, list(key_ids))}

    def principal(self, key: str) -> Principal | None:
        """Whose key this is; None: nobody's, or it has expired."""
        sql = f"SELECT id AS key_id, tenant_id, user_id, admin, writer FROM api_keys WHERE key_hash = %s AND {_GOOD}"
        found = self._select(sql, hash_key(key))
        return Principal(**found[0]) if found else None

    def _select(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        with self._database.session() as db:
            return rows(db.execute_sql(sql, values))

    def _execute(self, sql: str, *values: Any) -> None:
        with self._database.session() as db:
            db.execute_sql(sql, values)


def hash_key(key: str) -> str:
    """SHA-256, hex. Enough for a key of 256 random bits, which no dictionary holds."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
