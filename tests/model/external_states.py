"""The state of one external run in the model: its rows in Postgres, its keys in Redis, its writers, who is at it."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from tests.model.states import Log

UNCLAIMED = -1
"""In place of the signs of life of a writer that is yet to come."""


class Row(NamedTuple):
    """What a batch reads of the run and its latest writer."""

    over: bool
    epoch: int
    number: int
    head: int
    told_inputs: int
    told: bool
    approval: str


class Call(NamedTuple):
    """A request that a web process is at, or a janitor at one run; `at` is its next step."""

    kind: str
    at: str
    who: int = -1
    """The writer that has sent it."""
    heard: bool = True
    """That one still waits for the answer."""
    epoch: int = 0
    """The writer's, or the run's as it was read or taken over."""
    seq: int = 0
    wanted: str = ""
    beats: int = 0
    ignore_heartbeat: bool = False
    read: Row | tuple[()] = ()
    """What it has read without a lock; only where a rule is off."""
    after: int = 0
    upto: int = 0
    """What it has added to the log: the events after the one, up to the other."""
    local: Log = ()
    """The log with its end, as it is about to be committed."""
    facts: tuple[int, bool] | tuple[()] = ()
    """What is to be told to the log once it has passed the hooks: inputs up to the one, and whether a decision."""
    answer: str = ""
    excused: bool = False
    """Redis has failed since it was committed, or somebody else has the run."""


class Writer(NamedTuple):
    """Somebody's process. `at`: start, write, over, dead."""

    at: str = "start"
    later: bool = False
    """It starts the run for a writer that comes later."""
    waits: bool = False
    epoch: int = 0
    seq: int = 0
    """The last batch that it takes for sent."""
    told: int = 0
    """The last batch that was answered with 200 or 204."""
    wish: str = ""
    """How it wants the run to end; empty: not yet."""
    outcome: str = ""
    """What it was told of that wish: done or refused."""


class State(NamedTuple):
    """Everything. Budgets count down what may still happen."""

    # Postgres: the run, and its latest writer's row
    status: str = "none"
    epoch: int = 0
    number: int = 0
    head: int = 0
    beats: int = 0
    told_inputs: int = 0
    ending: str = ""
    last_writer: int = 0
    archive: Log = ()
    cancel: bool = False
    inputs: int = 0
    approval: str = ""
    told: bool = False
    """The log has the decision."""
    published: bool = False
    # Redis
    redis_epoch: int = 0
    log: Log = ()
    past: tuple[tuple[int, Log], ...] = ()
    # Processes
    calls: tuple[Call, ...] = ()
    writers: tuple[Writer, ...] = ()
    doubt: bool = False
    # What was seen, to be held against what comes
    seen: Log = ()
    accepted: str = ""
    """How the run was to end when it was first taken over for that."""
    accepted_from: int = 0
    """Epoch of the writer that has asked for it; 0: none did."""
    # Budgets
    crashes: int = 0
    impatience: int = 0
    suspicions: int = 0
    rollbacks: int = 0
    outages: int = 0
    cancels: int = 0
    heartbeats: int = 0
    retakes: int = 0
    """How often an ending may be taken from somebody who is at it: without a bound two could do so for ever."""


def batches(log: Log, who: int, epoch: int) -> int:
    """How many batches of this writer the log has."""
    return sum(entry.startswith("tick:") and entry.endswith(f".{who}@{epoch}") for entry in log)


def is_open(log: Log) -> bool:
    """The log has a question without its answer."""
    return next((e.startswith("asked") for e in reversed(log) if e.startswith(("asked", "decided"))), False)


@cache
def disorder(log: Log) -> str:
    """What is wrong with a log; empty: nothing. Numbers follow each other, and no writer comes after its next."""
    fence, number, inputs, asked = 1, 0, 0, False
    for entry in log:
        event, _, epoch = entry.partition("@")
        type, _, n = event.partition(":")
        if type == "step":
            fence, number = int(epoch), 0
        elif type in ("tick", "asked") and int(epoch) != fence:
            return f"a writer goes on after its fence: {entry}"
        number, inputs = number + (type == "tick"), inputs + (type == "input")
        if type in ("tick", "input") and int(n.partition(".")[0]) != (number if type == "tick" else inputs):
            return f"missing or doubled: {entry}"
        if type == "decided" and not asked:
            return "a decision is told twice, or of nothing"
        asked = type == "asked" or (asked and type != "decided")
    return ""


def put(items: Sequence[Call], call: Call | None) -> tuple[Call, ...]:
    """In one order, because it does not matter which process is at it."""
    return tuple(sorted((*items, call) if call else items))
