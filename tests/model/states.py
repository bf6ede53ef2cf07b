"""The state of one run in the model, as tuples: its rows in Postgres, its keys in Redis, and who is about."""

from functools import cache
from typing import NamedTuple

TERMINAL = ("completed", "failed", "cancelled")

Log = tuple[str, ...]
"""Events as `type:call@epoch`, where epoch says who has written it; `call` only where there is one."""


class Actor(NamedTuple):
    """A worker that executes the run, or an API process that ends it (`api`); `at` is its next step."""

    at: str
    epoch: int = 0
    name: int = 0
    """Its claim, which tells owners with one epoch apart; 0 where Postgres loses nothing."""
    api: bool = False
    local: Log = ()
    """All that its LogWriter has written or adopted."""
    appended: int = 0
    """Where it takes Redis' head to be."""
    archived: int = 0
    held: int = 0
    """Seq of the event that must be committed before it is appended; 0: none."""
    confirmed: bool = True
    """No connection to Redis was made since Postgres last confirmed the epoch."""
    looked: bool = True
    """No connection to Postgres was lost since Redis last had the epoch as its own."""
    behind: int = -1
    """Redis' head, where an append found it elsewhere; -1: it was not."""
    call: int = 0
    """The agent's next call."""
    known_ops: tuple[bool, ...] = ()
    """What the journal told when the invocation began."""
    known_approval: str = ""
    reason: str = ""
    end: str = ""
    alone: bool = False
    """It executes the run in a process of its own."""
    late: bool = False
    """Of the worker whose heartbeat is late."""


class State(NamedTuple):
    """Everything. Budgets count down what may still happen."""

    # Postgres
    status: str = "none"
    epoch: int = 0
    attempt: int = 1
    uncharged: int = 0
    """`losses` of the run's row."""
    crashed_epoch: int = 0
    culprit: bool = False
    """The row of its owner names it."""
    version: int = 0
    """Of the row of the worker whose heartbeat is late: its beats, and how often it was called lost."""
    reason: str = ""
    cancel: bool = False
    early: bool = False
    archive: Log = ()
    ops: tuple[int, ...] = ()
    """Of each call of the script the epoch that recorded it; 0: not recorded."""
    approval: str = ""
    """Empty before it is asked for, then open, approved, denied or expired."""
    inputs: int = 0
    wakes: bool = False
    """A time is set at which it goes on."""
    published: bool = False
    owner: int = 0
    """The name of the actor that has claimed it last."""
    before: tuple["Row", ...] = ()
    """What Postgres may come back with."""
    # Redis
    redis_epoch: int = 0
    redis_owner: int = 0
    log: Log = ()
    job: bool = False
    past: tuple[tuple[int, Log], ...] = ()
    """What Redis may roll back to."""
    # Processes
    actors: tuple[Actor, ...] = ()
    post: str = "to do"
    """How far POST /runs is."""
    doubt: bool = False
    """A janitor has not yet looked again at what was published before Redis was lost."""
    half_read: str = ""
    """What somebody has read without a lock; only where a rule is off."""
    heart_late: bool = False
    """The heartbeat of a worker that lives does not get through."""
    watched: tuple[int, int] = (-1, -1)
    """The version that a janitor has watched for a full lease: that worker's own, and another one."""
    late: bool = False
    """The approval's expiry and the sleep's end have come."""
    # What was seen, to be held against what comes
    seen: Log = ()
    """The longest log that a client may have seen; windows read Redis and the archive."""
    cancelled_from: int = 0
    """The first epoch whose owner knows from the start that it is cancelled; 0: it is not."""
    losses: int = 0
    replaced: bool = False
    """An owner that was alive was called lost, or Postgres has lost its claim."""
    claims: int = 0
    """How many there were, also such as Postgres has lost; counted where it may lose some."""
    failed_over: bool = False
    """Postgres has lost transactions: records of calls among them, which are then made again."""
    leased: bool = False
    """A full lease has passed since the late worker was last called lost."""
    late_losses: int = 0
    """How often it was, since its heartbeat is late."""
    most_late_losses: int = 1
    killed: int = 0
    """How many workers the agent has ended."""
    killed_in_row: int = 0
    """Since the run has last recorded anything; so the next two."""
    taken_in_row: int = 0
    """Of these the ones that had other runs as well."""
    lost_in_row: int = 0
    """The same of those that it has lost; a record that Postgres has lost is none."""
    # Budgets
    crashes: int = 0
    suspicions: int = 0
    late_hearts: int = 0
    claims_under_way: int = 0
    kills: int = 0
    rollbacks: int = 0
    failovers: int = 0
    duplicates: int = 0
    deploys: int = 0
    timeouts: int = 0
    lost_answers: int = 0
    cancels: int = 0


Row = tuple[object, ...]
"""What Postgres holds: the members of a State that ROW names."""
ROW = (
    *("status", "epoch", "owner", "attempt", "crashed_epoch", "reason", "cancel", "archive"),
    *("ops", "approval", "inputs", "wakes", "published", "uncharged", "lost_in_row"),
)


def row_of(s: State) -> Row:
    """What Postgres holds."""
    return tuple(getattr(s, name) for name in ROW)


@cache
def has(log: Log, event: str) -> bool:
    """Whether the log has this event, whoever wrote it."""
    return any(entry.partition("@")[0] == event for entry in log)


@cache
def count(log: Log, type: str) -> int:
    """How many events of this type the log has."""
    return sum(entry.partition("@")[0].partition(":")[0] == type for entry in log)
