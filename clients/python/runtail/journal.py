"""What earlier invocations of a run have left: which calls were made, what they came to, and which events they emitted.

An agent's function runs again from the top after a crash or a wait. Each of its calls has a number that timing cannot
change, and by that number finds its recorded result, or its events in the log. Pure memory: reading and writing the
records is the store's.

Numbers: `1`, `2`, … in the function itself; `3.1.2` is the second call within the first branch of call 3. A tool's
body is the only branch of its call, `parallel` has one for each function. In a later generation of the journal they
begin with `g2.`.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, NoReturn

from runtail.errors import InvalidJson, NondeterministicAgent, TooDeep
from runtail.records import ApprovalRecord, OpRecord, Recorded
from runtail.redaction import redact_all
from runtail.texts import clean_text
from runtail.values import clean, dumps

ARGUMENTS_CHARS = 65_536
"""Of a call's arguments as JSON; longer ones are not kept, only their fingerprint is."""


class Journal:
    """One run's journal, for one invocation."""

    def __init__(self, recorded: Recorded, generation: int = 1) -> None:
        """:param generation: calls of other generations are none of this one's."""
        self._read_at, self._read = recorded.read_at, time.monotonic()
        self.generation = generation
        self.root = "" if generation == 1 else f"g{generation}."
        self._records = {record.op: record for record in recorded.ops if self._is_ours(record.op)}
        self._emitted = {key: count for key, count in recorded.events.items() if self._is_ours(key[0])}
        self._types: dict[str, list[str]] = {}
        for op, type in self._emitted:
            self._types.setdefault(op, []).append(type)
        self._approvals = {approval.id: approval for approval in recorded.approvals}
        self._furthest: dict[str, int] = {}
        for op in {*self._records, *self._types}:
            self._mark_passed(op)
        self._visited: set[str] = set()
        self._spoilt: Exception | None = None
        self.inputs_taken = max((r.result["upto"] for r in self._records.values() if r.kind == "inputs"), default=0)

    def __bool__(self) -> bool:
        """Something is known: this generation has been under way before."""
        return bool(self._furthest)

    def given_up(self) -> "Journal":
        """An empty journal of the next generation."""
        return Journal(Recorded((), (), {}, self.time()), self.generation + 1)

    def time(self) -> datetime:
        """The time by Postgres' clock, which ends sleeps and approvals; the worker's may be wrong."""
        return self._read_at + timedelta(seconds=time.monotonic() - self._read)

    def visit(self, op: str, kind: str | None, prefixes: tuple[str, ...]) -> None:
        """The agent makes call `op`.

        :param kind: of its record; None: it records nothing.
        :param prefixes: of the types of its events.
        :raises NondeterministicAgent: another call was made at that number before.
        """
        if not self._furthest:
            return
        self._visited.add(op)
        record = self._records.get(op)
        strange = [type for type in self._types.get(op, ()) if not type.startswith(prefixes or ("\0",))]
        if strange or (record is not None and record.kind != kind):
            before = record.kind if record is not None else strange[0]
            self.broken(f"Call {op} was {before} before, and is {kind or ' or '.join(prefixes)} now.")

    def record(self, op: str, kind: str, name: str, fingerprint: str) -> OpRecord | None:
        """What call `op` came to, if that was recorded.

        :raises NondeterministicAgent: it had another name or other arguments.
        """
        record = self._records.get(op)
        if record is not None and (record.name, record.fingerprint) != (name, fingerprint):
            what = "other arguments" if record.name == name else f"name {record.name!r}"
            self.broken(f"Call {op}, {kind} {name!r}, had {what} before.")
        return record

    def approval(self, approval_id: str) -> ApprovalRecord | None:
        """What was asked before under this id."""
        return self._approvals.get(approval_id)

    def emitted_before(self, op: str, type: str) -> bool:
        """Whether the log holds the next event of this type of call `op` already; counts it as emitted."""
        left = self._emitted.get((op, type), 0)
        if left:
            self._emitted[op, type] = left - 1
        return left > 0

    def count(self, op: str, type: str) -> int:
        """How many events of this type of call `op` the log holds that this invocation has not emitted yet."""
        return self._emitted.get((op, type), 0)

    def is_known(self, op: str) -> bool:
        """Whether an earlier invocation has recorded call `op`, or emitted an event of it."""
        return op in self._records or op in self._types

    def passed(self, op: str) -> bool:
        """Whether an earlier invocation went further than call `op` in its branch."""
        prefix, n = _split(op)
        return self._furthest.get(prefix, 0) > n

    def check_used_up(self) -> None:
        """The agent has returned.

        :raises NondeterministicAgent: a recorded call was not made this time.
        """
        for op in self._records:
            if op not in self._visited and not any(parent in self._visited for parent in _parents(op)):
                self.broken(f"Call {op}, {self._records[op].kind}, was made before, and not this time.")

    def check(self) -> None:
        """An agent may have caught what its run ends with.

        :raises Exception: that again.
        """
        if self._spoilt is not None:
            raise self._spoilt

    def broken(self, why: str) -> NoReturn:
        """The agent has not repeated what it did.

        :raises NondeterministicAgent: always.
        """
        broken = NondeterministicAgent(why)
        self.spoil(broken)
        raise broken

    def spoil(self, error: Exception) -> None:
        """The run ends with this error, whoever catches it: going on, a call would be made again, or another one."""
        self._spoilt = error

    def _is_ours(self, op: str) -> bool:
        return op.startswith(self.root) and (bool(self.root) or not op.startswith("g"))

    def _mark_passed(self, op: str) -> None:
        for call in (op, *_parents(op)):
            prefix, n = _split(call)
            self._furthest[prefix] = max(n, self._furthest.get(prefix, 0))


def as_json(value: object, depth: int = 20) -> Any:
    """Arguments as JSON; what has no JSON form, or is nested deeper, stands as its type."""
    if isinstance(value, Mapping) and depth:
        return {clean_text(str(key)): as_json(item, depth - 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and depth:
        return [as_json(item, depth - 1) for item in value]
    try:
        return clean(value)
    except (InvalidJson, TooDeep):
        return f"<{getattr(type(value), '__journal_name__', type(value).__name__)}>"


def fingerprint(kind: str, name: str, arguments: object) -> str:
    """Of a call: the same for the same arguments, as they were given."""
    return hashlib.sha256(dumps([kind, name, as_json(arguments)]).encode()).hexdigest()[:32]


def stored_arguments(arguments: object) -> Any:
    """Arguments fit to be stored: without secrets, and not longer than ARGUMENTS_CHARS."""
    kept = as_json(arguments)
    length = len(dumps(kept))
    return redact_all(kept) if length <= ARGUMENTS_CHARS else f"<{length} characters>"


def _split(op: str) -> tuple[str, int]:
    """The branch of a call, and its number there."""
    prefix, dot, n = op.rpartition(".")
    return prefix + dot, int(n)


def _parents(op: str) -> Iterable[str]:
    """The calls in whose branches the call was made, innermost first: 3 for 3.1.2."""
    parts = op.split(".")
    first = 2 if parts[0].startswith("g") else 1
    return [".".join(parts[:end]) for end in range(len(parts) - 2, first - 1, -2)]
