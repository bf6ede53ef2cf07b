"""The two logs of a run, in Postgres and in Redis, and what must hold whenever one of them is written.

Shared by the models of a run that workers execute (`runs`) and of one that is written from outside
(`external_store`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from tests.model.explorer import Violation
from tests.model.states import TERMINAL, Log

S = TypeVar("S", bound=Any)
"""A state that has `status`, `archive`, `redis_epoch`, `log`, `past`, `seen` and `rollbacks`: see `states.State`."""


@dataclass(frozen=True)
class Logs(Generic[S]):
    """Writes to them, each one atomic step. `off` leaves out rules."""

    off: frozenset[str] = field(default_factory=frozenset)
    rules: ClassVar[Mapping[str, str]] = {}

    def on(self, rule: str) -> bool:
        """The rule holds."""
        assert rule in self.rules
        return rule not in self.off

    # What is checked whenever something is written.

    def seen(self, s: S, log: Log) -> S:
        """Clients may have read this log.

        :raises Violation: it contradicts what they have read before, or has something behind its end.
        """
        for n, (before, now) in enumerate(zip(s.seen, log, strict=False), 1):
            if before != now:
                raise Violation(f"rewritten: event {n} was {before}, and is {now} now")
        ends = [n for n, entry in enumerate(log, 1) if entry.partition("@")[0] in TERMINAL]
        if ends and ends != [len(log)]:
            raise Violation(f"not one end: {log}")
        return s._replace(seen=log) if len(log) > len(s.seen) else s

    def archived(self, s: S, log: Log, **row: object) -> S:
        """The archive becomes `log`, in the transaction that writes the row."""
        if s.status in TERMINAL and (log != s.archive or row.get("status", s.status) != s.status):
            raise Violation(f"the end was overwritten: {s.status} {s.archive} with {row} {log}")
        if log[: len(s.archive)] != s.archive:
            raise Violation(f"rewritten: the archive was {s.archive}, and is {log} now")
        return self.seen(s._replace(archive=log, **row), log)  # type: ignore[arg-type]

    def set_log(self, s: S, epoch: int, log: Log) -> S:
        """Redis' keys become these."""
        if (epoch, log) == (s.redis_epoch, s.log):
            return s
        past = (*s.past, (s.redis_epoch, s.log))[-2:] if s.rollbacks else ()
        return self.seen(s._replace(redis_epoch=epoch, log=log, past=past), log)

    # Redis.

    def append(self, s: S, epoch: int, after: int, events: Log) -> tuple[S, str]:
        """append.lua: the state, and OK, FENCED or BEHIND."""
        if epoch < s.redis_epoch and self.on("redis_fence"):
            return s, "FENCED"
        if after != len(s.log) and self.on("predecessor"):
            return s, "BEHIND"
        return self.set_log(s, max(epoch, s.redis_epoch), s.log + events), "OK"

    def sync(self, s: S, epoch: int) -> tuple[S, bool]:
        """Ownership.sync; False: fenced. Reading first and repeating on BEHIND comes to one step at the append."""
        if len(s.archive) <= len(s.log) or not self.on("refill"):
            return s, True
        s, outcome = self.append(s, epoch, len(s.log), s.archive[len(s.log) :])
        return s, outcome == "OK"
