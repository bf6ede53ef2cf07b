"""What is stored of a run, read past the API: it is there also while the web process or a server is not."""

from typing import Any

from app.errors import StoreUnavailable
from app.protocol.digest import digest
from app.protocol.events import TERMINAL, Event
from app.protocol.reducer import fold, initial
from app.storage.run_store import RunRecord
from tests.harness import Stack, eventually, pending_run

PATIENCE_SECONDS = 45
"""In which a lost run is taken over and finished, on a busy machine."""


def begin(stack: Stack, agent: str, **input: Any) -> str:
    """A run that a worker is told of; its id."""
    run = pending_run(stack.services, agent, input)
    stack.services.queue.enqueue(run.id, run.epoch, run.queue)
    return run.id


def row(stack: Stack, run_id: str) -> RunRecord:
    """The run's row as it is now."""
    run = stack.services.store.get(run_id)
    assert run is not None
    return run


def events(stack: Stack, run_id: str) -> list[Event]:
    """The archived events."""
    return stack.services.store.events(run_id, 0, 100_000)


def payloads(stack: Stack, run_id: str, type: str) -> list[dict[str, Any]]:
    """Of the archived events of a type."""
    return [event.envelope()["payload"] for event in events(stack, run_id) if event.type == type]


def reach(stack: Stack, run_id: str, type: str, times: int = 1) -> None:
    """Wait until the archive has so many events of a type."""
    what = f"{times} x {type} of {run_id}"
    eventually(lambda: len(payloads(stack, run_id, type)) >= times, PATIENCE_SECONDS, what)


def has_status(stack: Stack, run_id: str, status: str) -> RunRecord:
    """The run's row once it has that status."""
    run = eventually(lambda: _if_reachable(stack, run_id, status), PATIENCE_SECONDS, f"{run_id} {status}")
    assert run is not None
    return run


def ended(stack: Stack, run_id: str, status: str = "completed") -> RunRecord:
    """The run's row once it has ended in that status, its log checked: no gap, one end, the digest, Redis the same."""
    run = eventually(lambda: _if_reachable(stack, run_id), PATIENCE_SECONDS, f"the end of {run_id}")
    assert run is not None
    assert run.status == status, run.error
    archived = events(stack, run_id)
    assert [event.seq for event in archived] == list(range(1, len(archived) + 1))
    assert [event.type for event in archived if event.type in TERMINAL] == [archived[-1].type]
    before = fold((event.envelope() for event in archived[:-1]), initial(run_id))
    assert digest(before, run.output) == run.digest == archived[-1].envelope()["payload"]["digest"]
    eventually(lambda: _level(stack, archived), PATIENCE_SECONDS, f"the log of {run_id} in Redis")
    return run


def _level(stack: Stack, archived: list[Event]) -> bool:
    run_id = archived[-1].envelope()["run_id"]
    return stack.services.log.read(run_id, 0, 100_000) == archived


def _if_reachable(stack: Stack, run_id: str, status: str | None = None) -> RunRecord | None:
    try:
        run = row(stack, run_id)
    except StoreUnavailable:
        return None
    return run if (run.terminal if status is None else run.status == status) else None
