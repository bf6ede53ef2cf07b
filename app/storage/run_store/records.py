"""The plain values that go into and come out of the store."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from app.pace import loads_paced
from app.protocol.events import Event
from app.protocol.reducer import State
from runtail.records import NewApproval, OpRecord

ALONE_AFTER = 2
"""A run that has lost its worker so often in a row, nobody knows by whose fault, has a process of its own."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls. Every read and write of a run is scoped by both ids."""

    tenant_id: str
    user_id: str
    admin: bool = False
    writer: bool = False
    """Its key has the scope `write`: it may start external runs, and act for every user of the tenant."""
    key_id: str | None = field(default=None, compare=False)
    """Of the key that it calls with. None: it needs none, or calls with a run's token."""


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
    client_run_id: str | None = None
    queue: str = "runs"
    agent_version: str | None = None
    registered_at: datetime | None = None
    """Of the agent: the run is only created while this is its latest registration. None: it is no worker's."""


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
    """Why a pending run was put back (worker_lost, deploy, retry, resumed); None before its first start."""
    owner: str | None
    cancel_requested: bool
    cancel_reason: str | None
    """The first reason it was given: `requested` or `disconnected`."""
    output_text: str | None
    """JSON text, which may be megabytes; None: there is no output."""
    error: dict[str, Any] | None
    usage: dict[str, Any] | None
    state_text: str
    """JSON text of the fold of the events up to `state_seq`."""
    state_seq: int
    digest: str | None
    published: bool
    """The terminal event is known to have reached Redis, or its stream's time is over."""
    created_at: datetime
    enqueued_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    queue: str
    """The RQ queue that its jobs go to: by its agent's isolation."""
    client_run_id: str | None
    """An id that the client chose, unique among its runs."""
    agent_version: str | None
    """Of the agent that last executed it; before that, of the agent as it was registered."""
    generation: int
    """Goes up when the journal is given up and the run starts over with a new version of its agent."""
    crashed_epoch: int
    """The epoch whose owner was last lost; 0: none was."""
    wake_at: datetime | None
    """When a waiting run goes on whatever else happens; None: not by time."""
    losses: int
    """Workers that it has lost in a row, and was not charged with, since it last recorded anything."""

    @property
    def alone(self) -> bool:
        """It is to be executed in a process of its own, whatever its agent asks for."""
        return self.losses >= ALONE_AFTER

    @property
    def terminal(self) -> bool:
        """Nothing changes this run any more."""
        return self.finished_at is not None

    @property
    def output(self) -> Any:
        """Parsed anew each time."""
        return None if self.output_text is None else loads_paced(self.output_text)

    @property
    def state(self) -> State:
        """Parsed anew each time, so that it is the caller's own."""
        state: State = loads_paced(self.state_text)
        return state


_TEXTS = {"output_text": "output::text", "state_text": "state::text"}
"""Columns that are read as they are stored: to parse them may take long, and often nobody has to."""
RUN_COLUMNS = ", ".join(f"runs.{_TEXTS.get(field.name, field.name)}" for field in fields(RunRecord))
"""Named, so that a process survives the migrations of a newer version beside it."""


@dataclass(frozen=True, slots=True)
class ListedRun:
    """What a list shows of a run. JSON is text here: as it was stored, None where there is none."""

    id: str
    status: str
    agent: str
    attempt: int
    session_id: str
    client_run_id: str | None
    cancel_requested: bool
    state_seq: int
    digest: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    input: str
    output: str | None
    error: str | None
    usage: str | None
    metadata: str
    found: int
    """Runs that were found, with those that did not fit into the list."""


@dataclass(frozen=True, slots=True)
class RunPosition:
    """Where a run's log is, as its row tells. A RunRecord has the same members."""

    id: str
    terminal: bool
    state_seq: int
    """Of a run that has ended, the seq of its terminal event."""


@dataclass(frozen=True, slots=True)
class InputRecord:
    """A message of the user in the middle of a run: the n-th, from 1."""

    run_id: str
    n: int
    text: str


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one run's owner has to commit under its epoch."""

    run_id: str
    epoch: int
    events: Sequence[Event]
    """To archive."""
    state: str | None = None
    """JSON text of the fold up to `state_seq`, where it is due."""
    state_seq: int = 0
    ops: Sequence[OpRecord] = ()
    approvals: Sequence[NewApproval] = ()
    owner: str | None = None
    """Whose epoch it is; None: whoever has it."""


@dataclass(frozen=True, slots=True)
class OwnedRun:
    """What an owner needs to know of a running run: little, because it asks often."""

    id: str
    epoch: int
    owner: str
    queue: str
    cancel_requested: bool
    inputs: int
    """How many inputs it has been sent."""


@dataclass(frozen=True, slots=True)
class EndedRun:
    """What a janitor needs to know of a run that has ended."""

    id: str
    epoch: int
    last_seq: int
    """Of its terminal event."""
    overdue: bool
    """It ended so long ago that its stream would have expired."""


@dataclass(frozen=True, slots=True)
class OwnerBeat:
    """An owner of running runs, as its row tells (None: it has no row)."""

    owner: str
    beats: int | None
    losses: int | None
    """How often it was called lost."""
