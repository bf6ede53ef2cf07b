"""Leases on open windows in Redis: how many each web process has, per user, per address, and per run.

One key per subject, in the cluster slot of the subject; that of a run is in the slot of the run's other keys:

    rt:{<subject>}:windows   hash   holder → `count:expires`, and `opens`: windows ever opened

A holder is one web process. It writes the count it has, never a difference, so that whatever was lost or written twice
is right again at its next renewal; a process that was killed frees its windows when its leases run out. Expiry is by
Redis' own clock.

Not responsible for what is limited, or for when to renew (`app.streaming.admission`).
"""

import hashlib
import secrets
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import redis

from app.errors import StoreUnavailable
from app.storage.breaker import Breaker
from app.storage.coalescing import Coalescer
from app.storage.redis_connections import Command, exchange, one_connection

LEASE_SECONDS = 30
KEPT_SECONDS = 3_600
"""How long a subject is remembered after its last lease, with the number of windows it has had."""
TIMEOUT_SECONDS = 2
"""A client waits for its window meanwhile: rather too many windows than none."""
CALLS_PER_TURN = 32
"""Most callers that share a round trip; it is made in one go, in which events wait."""

_SCRIPT = (Path(__file__).parent / "lease.lua").read_text()
_SHA = hashlib.sha1(_SCRIPT.encode()).hexdigest()


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
    """The leases of one holder, over one connection. Who calls while it is in use goes along with the next turn."""

    def __init__(self, url: str, breaker: Breaker) -> None:
        """:param breaker: of the server at that URL."""
        self._breaker = breaker
        self.holder = secrets.token_hex(6)
        self.connects = 0
        """Counts connections made. Whoever meets a new one may meet a Redis that has lost its last second."""
        self._connection = one_connection(url, TIMEOUT_SECONDS, self._connected)
        self._together = Coalescer(self._answer, CALLS_PER_TURN)

    def write(self, claims: Sequence[Claim]) -> list[Lease]:
        """Claim or renew, all in one round trip; the outcomes in order.

        :raises StoreUnavailable: Redis cannot be reached; whether anything was written is unknown.
        """
        return self._evaluate([(claim.subject, (self.holder, *claim[1:])) for claim in claims])

    def look(self, subjects: Sequence[str]) -> dict[str, Lease]:
        """Each subject as it is now, in one round trip. A run is its own subject.

        :raises StoreUnavailable: Redis cannot be reached.
        """
        found = self._evaluate([(subject, ("", 0, 0, 0)) for subject in subjects])
        return dict(zip(subjects, found, strict=True))

    def ping(self) -> None:
        """:raises StoreUnavailable: Redis cannot be reached."""
        self._ask([("PING",)])

    def close(self) -> None:
        """Close the connection; the next call makes a new one."""
        self._connection.disconnect()

    def _evaluate(self, calls: Sequence[tuple[str, tuple[str | int, ...]]]) -> list[Lease]:
        replies = self._ask(
            [
                ("EVALSHA", _SHA, 1, f"rt:{{{subject}}}:windows", *arguments, LEASE_SECONDS, KEPT_SECONDS)
                for subject, arguments in calls
            ]
        )
        return [Lease(bool(granted), windows, opens) for granted, windows, opens in replies]

    def _ask(self, commands: Sequence[Command]) -> list[Any]:
        replies = self._together.ask(commands)
        for reply in replies:
            if isinstance(reply, redis.RedisError):  # out of memory, read only, not our key
                raise StoreUnavailable("Redis refuses to keep leases.") from reply
        return replies

    def _answer(self, calls: Sequence[Sequence[Command]]) -> list[list[Any]]:
        with self._breaker.asking():
            replies = iter(self._send([command for commands in calls for command in commands]))
        return [list(islice(replies, len(commands))) for commands in calls]

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        replies = exchange(self._connection, commands)
        if any(isinstance(reply, redis.exceptions.NoScriptError) for reply in replies):  # a Redis that just started
            replies = exchange(self._connection, [("SCRIPT", "LOAD", _SCRIPT), *commands])[1:]
        return replies

    def _connected(self, connection: Any) -> None:
        connection.on_connect()
        self.connects += 1
