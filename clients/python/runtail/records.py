"""The records of a journal: what a call came to, what was asked, and what is known when a run goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class OpRecord:
    """The recorded outcome of one call of an agent: one row of `run_ops`."""

    op: str
    """The call's number in its run, such as `3` or `3.1.2`."""
    kind: str
    """tool, message, sleep, inputs, now or random; an approval has a row of its own."""
    name: str
    arguments: Any
    """As JSON, for whoever looks into the journal; what has no JSON form stands as its type."""
    fingerprint: str
    """Of kind, name and arguments: the same call again has the same one."""
    failed: bool
    result: Any


@dataclass(frozen=True, slots=True)
class NewApproval:
    """A question that a run puts to somebody; `requires` is `owner` or `operator`."""

    id: str
    label: str
    requires: str
    tool_call_id: str | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class ApprovalRecord:
    """One row of `approvals`. `decision` is None while it is open, else approved, denied or expired."""

    run_id: str
    id: str
    tenant_id: str
    user_id: str
    """Of the run's owner."""
    agent: str
    tool_call_id: str | None
    label: str
    requires: str
    created_at: datetime
    expires_at: datetime | None
    decision: str | None
    decided_by: str | None
    comment: str | None
    decided_at: datetime | None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What earlier invocations of a run have left behind."""

    ops: Sequence[OpRecord]
    approvals: Sequence[ApprovalRecord]
    events: Mapping[tuple[str, str], int]
    """How many events of each (op, type) the log holds."""
    read_at: datetime
    """By the clock that decides when a sleep is over."""
    head: int = 0
    """Of the log that this was read from."""
