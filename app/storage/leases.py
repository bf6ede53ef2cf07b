"""Leases on open windows in Redis: how many each web process has, per user, per address, and per run.

One key per subject, in the cluster slot of the subject; that of a run is in the slot of the run's other keys:

    rt:{<subject>}:windows   hash   holder → `count:expires`, and `opens`: windows ever opened

A holder is one web process. It writes the count it has, never a difference, so that whatever was lost or written twice
is right again at its next renewal; a process that was killed frees its windows when its leases run out. Expiry is by
Redis' own clock.

Not responsible for what is limited, or for when to renew (`app.streaming.admission`).
"""

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import redis

from app.errors import StoreUnavailable
from app.storage.event_log import connect

LEASE_SECONDS = 30
KEPT_SECONDS = 3_600
"""How long a subject is remembered after its last lease, with the number of windows it has had."""

_SCRIPT = (Path(__file__).parent / "lease.lua").read_text()


class Claim(NamedTuple):
    """A holder's windows on a subject, all of them. With a limit it is refused if all holders together exceed it."""

    subject: str
    held: int
    limit: int = 0
    """0 = none: a renewal, or a count that went down."""
    opened: int = 0
    """Windows opened since the last claim."""


class Lease(NamedTuple):
    """A subject in Redis, after a claim or as it was found."""

    granted: bool
    windows: int
    """Open now, over all holders."""
    opens: int
    """Opened ever, as far as Redis knows; 0: it never had one."""


class Leases:
    """The leases of one holder, over a pool of connections of its own, which are made on first use."""

    def __init__(self, url: str, *, max_connections: int) -> None:
        self.holder = secrets.token_hex(6)
        self.connects = 0
        """Counts connections made. Whoever meets a new one may meet a Redis that has lost its last second."""
        self._redis = connect(url, max_connections, on_connect=self._connected)
        self._sha = self._redis.register_script(_SCRIPT).sha

    def write(self, claims: Sequence[Claim]) -> list[Lease]:
        """Claim or renew, all in one round trip; the outcomes in order.

        :raises StoreUnavailable: Redis cannot be reached; what was written until then is unknown.
        """
        return self._evaluate([(claim.subject, (self.holder, *claim[1:])) for claim in claims])

    def look(self, subjects: Sequence[str]) -> dict[str, Lease]:
        """Each subject as it is now, with one round trip. A run is its own subject.

        :raises StoreUnavailable: Redis cannot be reached.
        """
        found = self._evaluate([(subject, ("", 0, 0, 0)) for subject in subjects])
        return dict(zip(subjects, found, strict=True))

    def ping(self) -> None:
        """:raises StoreUnavailable: Redis cannot be reached."""
        try:
            self._redis.ping()
        except redis.RedisError as error:
            raise StoreUnavailable("Redis cannot be reached.") from error

    def _evaluate(self, calls: Sequence[tuple[str, tuple[str | int, ...]]]) -> list[Lease]:
        try:
            try:
                replies = self._pipeline(calls)
            except redis.exceptions.NoScriptError:  # a Redis that was just restarted
                self._redis.script_load(_SCRIPT)
                replies = self._pipeline(calls)
        except redis.RedisError as error:
            raise StoreUnavailable("Redis cannot be reached.") from error
        return [Lease(bool(granted), windows, opens) for granted, windows, opens in replies]

    def _pipeline(self, calls: Sequence[tuple[str, tuple[str | int, ...]]]) -> list[Any]:
        with self._redis.pipeline(transaction=False) as pipeline:
            for subject, arguments in calls:
                pipeline.evalsha(self._sha, 1, f"rt:{{{subject}}}:windows", *arguments, LEASE_SECONDS, KEPT_SECONDS)
            return pipeline.execute()

    def _connected(self, connection: Any) -> None:
        connection.on_connect()
        self.connects += 1

    def close(self) -> None:
        """Close every connection; the next call makes new ones."""
        self._redis.close()
        self._redis.connection_pool.disconnect()
