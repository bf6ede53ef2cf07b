"""Runs that wait, written past the executor: what a worker leaves behind when an agent waits."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from app.protocol.events import Event, dumps, encode
from app.protocol.reducer import State, fold
from app.storage.event_log import Append
from app.storage.ownership import Ownership
from app.storage.run_store import Checkpoint, NewApproval, Principal, RunRecord
from app.wiring import Services
from tests.harness import DEV, pending_run

T = TypeVar("T")

ANN, BOB, ROOT = Principal("acme", "ann"), Principal("acme", "bob"), Principal("acme", "root", admin=True)
ABROAD = Principal("elsewhere", "root", admin=True)


def asked(
    services: Services,
    principal: Principal = DEV,
    *,
    requires: str = "owner",
    expires_in: float | None = None,
    ids: Sequence[str] = ("apr_1",),
    **more: Any,
) -> RunRecord:
    """A running run of the owner `w` whose agent has asked for approvals, and does not wait for them yet.

    :param expires_in: seconds from now; may be negative.
    """
    run = pending_run(services, principal=principal, **more)
    claimed = services.store.claim(run.id, "w", start=True)
    assert claimed is not None
    expires_at = None if expires_in is None else datetime.now(UTC) + timedelta(seconds=expires_in)
    new = [NewApproval(id, f"Refund by {id}?", requires, "call_1", expires_at) for id in ids]
    events = [
        encode(run.id, seq, "approval.required", {"approval_id": a.id, "label": a.label, "requires": requires})
        for seq, a in enumerate(new, 2)
    ]
    services.log.raise_epoch(run.id, claimed.epoch, "w")
    services.store.archive([Checkpoint(run.id, claimed.epoch, events, *_state(claimed, events), approvals=new)])
    services.log.append(Append(run.id, claimed.epoch, events, archived=events[-1].seq))
    return got(services, run.id)


def waiting(services: Services, principal: Principal = DEV, *, wake_in: float | None = None, **more: Any) -> RunRecord:
    """The same, but it waits: for a decision, an input, or at most `wake_in` seconds (which may be negative)."""
    run = asked(services, principal, **more)
    payload = {"on": "approval", "ids": [a["id"] for a in run.state["approvals"]]}
    events = [encode(run.id, run.state_seq + 1, "run.waiting", payload)]
    wake_at = None if wake_in is None else datetime.now(UTC) + timedelta(seconds=wake_in)
    checkpoint = Checkpoint(run.id, run.epoch, events, *_state(run, events))
    assert services.store.suspend(checkpoint, payload["ids"], 0, wake_at)
    services.log.append(Append(run.id, run.epoch, events, archived=events[-1].seq))
    return got(services, run.id)


def ended(services: Services, run: RunRecord) -> RunRecord:
    """The waiting run after it was cancelled."""
    services.store.request_cancel(run.id)
    Ownership(services.store, services.log, services.hooks).end_unowned(run)
    return got(services, run.id)


def got(services: Services, run_id: str) -> RunRecord:
    """The run's row as it is now."""
    run = services.store.get(run_id)
    assert run is not None
    return run


def at_once(*calls: Callable[[], T]) -> list[T]:
    """The results of calls that all begin at the same moment."""
    barrier = threading.Barrier(len(calls))

    def begin(call: Callable[[], T]) -> T:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(begin, calls))


def _state(run: RunRecord, events: Sequence[Event]) -> tuple[str, int]:
    state: State = fold((event.envelope() for event in events), run.state)
    return dumps(state), state["last_seq"]
