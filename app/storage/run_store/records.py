"""The plain values that go into and come out of the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.protocol.events import Event
from app.protocol.reducer import State


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. Every read and write of a run is scoped by both ids."""

    tenant_id: str
    user_id: str
    admin: bool = False


@dataclass(frozen=True, slots=True)
class NewRun:
    """What `RunStore.create` needs; everything is valid and cleaned."""

    id: str
    principal: Principal
    session_id: str
    agent: str
    input: dict[str, Any]
    metadata: dict[str, Any]
    on_disconnect: str
    timeout_s: int | None
    idempotency_key: str | None
    request_hash: str
    state: State


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One row of `runs`."""

    id: str
    tenant_id: str
    user_id: str
    session_id: str
    parent_run_id: str | None
    agent: str
    input: dict[str, Any]
    metadata: dict[str, Any]
    on_disconnect: str
    timeout_s: int | None
    idempotency_key: str | None
    request_hash: str | None
    status: str
    epoch: int
    attempt: int
    requeue_reason: str | None
    """Why a pending run was put back (worker_lost, deploy); None before its first start."""
    owner: str | None
    cancel_requested: bool
    cancel_reason: str | None
    """The first reason it was given: `requested` or `disconnected`."""
    output: Any
    error: dict[str, Any] | None
    usage: dict[str, Any] | None
    state: State
    """The fold of the events up to `state_seq`."""
    state_seq: int
    digest: str | None
    published: bool
    """The terminal event is known to have reached Redis, or its stream's time is over."""
    created_at: datetime
    enqueued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def terminal(self) -> bool:
        """Nothing changes this run any more."""
        return self.finished_at is not None


@dataclass(frozen=True, slots=True)
class RunPosition:
    """Where a run's log is, as its row tells. A RunRecord has the same members."""

    id: str
    terminal: bool
    state_seq: int
    """Of a run that has ended, the seq of its terminal event."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Events of one run to archive under its owner's epoch, and its state where that is due."""

    run_id: str
    epoch: int
    events: Sequence[Event]
    state: str | None = None
    """JSON text of the fold up to `state_seq`."""
    state_seq: int = 0


@dataclass(frozen=True, slots=True)
class OwnedRun:
    """What an owner needs to know of a running run: little, because it asks often."""

    id: str
    epoch: int
    cancel_requested: bool


@dataclass(frozen=True, slots=True)
class OwnerBeat:
    """An owner of running runs, and its heartbeat counter (None: it has no heartbeat row)."""

    owner: str
    beats: int | None
