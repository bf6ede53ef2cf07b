"""Processes that freeze, die, or are asked to go, with real ones: the run goes on, and nothing of it is lost.

Most of the time here is spent waiting for leases, so the scenarios play side by side, each on databases of its own.
"""

import os
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from app.dev.services import EmbeddedServices
from app.errors import StoreUnavailable
from app.protocol.digest import digest
from app.protocol.ending import Ending
from app.protocol.events import TERMINAL, Event
from app.protocol.reducer import fold, initial
from app.storage.event_log import Append
from app.storage.run_queue import QUEUE
from app.storage.run_store import RunRecord, migrate
from tests.conftest import StackMaker
from tests.harness import Process, Stack, eventually, pending_run
from tests.stored import begin
from tests.stored import events as _archived
from tests.stored import payloads as _payloads
from tests.stored import row as _row
from workers.execution.executor import STRAY_SECONDS

LEASE_AND_MORE = 30
"""Seconds in which a lost run is taken over and finished, on a busy machine."""
TICKS = 10
FROZEN_SECONDS = 8
"""Longer than the lease."""

Scenario = Callable[[StackMaker], None]
Leftover = Callable[[Stack], None]
Disaster = Callable[[EmbeddedServices, Stack], None]


# What the scenarios say.


def _start(stack: Stack, agent: str, input: dict[str, Any]) -> str:
    return begin(stack, agent, **input)


def _steady(stack: Stack, ticks: int, seconds: float) -> str:
    """A run of that length, once it has archived its first ticks."""
    run_id = _start(stack, "steady", {"count": ticks, "interval": seconds / ticks})
    eventually(lambda: _count(stack, run_id, "custom.tick") >= 3, LEASE_AND_MORE, f"the first ticks of {run_id}")
    return run_id


def _held(stack: Stack) -> tuple[str, Path]:
    """As `_steady`, for a run that goes on until the file is touched; an attempt after that has TICKS."""
    gate = stack.folder / secrets.token_hex(4)
    run_id = _start(stack, "steady", {"count": TICKS, "interval": 0.05, "gate": str(gate)})
    eventually(lambda: _count(stack, run_id, "custom.tick") > TICKS, LEASE_AND_MORE, f"the first ticks of {run_id}")
    return run_id, gate


def _count(stack: Stack, run_id: str, type: str) -> int:
    return len(_payloads(stack, run_id, type))


def _ended(stack: Stack, run_id: str, status: str = "completed") -> RunRecord:
    """The run's row once it has ended in that status, its log checked: no gap, one end, the digest, Redis the same."""

    def ended() -> RunRecord | None:
        try:
            run = _row(stack, run_id)
        except StoreUnavailable:  # the scenario restarts Postgres
            return None
        return run if run.terminal else None

    run = eventually(ended, LEASE_AND_MORE, f"the end of {run_id}")
    assert run.status == status, run.error
    events = _archived(stack, run_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events if event.type in TERMINAL] == [events[-1].type]
    before = fold((event.envelope() for event in events[:-1]), initial(run_id))
    assert digest(before, run.output) == run.digest == events[-1].envelope()["payload"]["digest"]
    eventually(lambda: stack.services.log.read(run_id, 0, 100_000) == events, what=f"the log of {run_id} in Redis")
    return run


def _pids(stack: Stack, run_id: str) -> list[int]:
    return [payload["pid"] for payload in _payloads(stack, run_id, "custom.pid")]


def _invocations(gate: Path) -> list[int]:
    """Who has executed each invocation of a run that `_held` started."""
    return [int(pid) for pid in Path(f"{gate}.pids").read_text().split()]


def _raw(stack: Stack, run_id: str) -> tuple[RunRecord, list[Event], list[bytes | None]]:
    """Everything that is stored of a run, bytes as they are."""
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        keys = f"rt:{{{run_id}}}:events", f"rt:{{{run_id}}}:meta"
        return _row(stack, run_id), _archived(stack, run_id), [redis.dump(key) for key in keys]


def _logged(worker: Process, text: str) -> None:
    eventually(lambda: text in worker.log.read_text(), what=f"{text!r} in the worker's log")


# The scenarios.


def a_frozen_worker(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="2")
    frozen = stack.start_worker()
    run_id, gate = _held(stack)
    successor = stack.start_worker()
    frozen.send(signal.SIGSTOP)
    gate.touch()
    run = _ended(stack, run_id)
    assert (run.attempt, run.losses) == (1, 1), "nobody is charged"
    assert _payloads(stack, run_id, "run.step") == [{"attempt": 1, "reason": "worker_lost", "restart": False}]
    assert _invocations(gate) == [frozen.pid, successor.pid]
    eventually(lambda: _row(stack, run_id).published)
    before = _raw(stack, run_id)
    frozen.send(signal.SIGCONT)
    _logged(frozen, f"{run_id} goes on elsewhere")
    # A janitor that looks once more whether Redis has the end doubts for a moment that it is published.
    eventually(lambda: _raw(stack, run_id) == before, what="the log and the row as the successor left them")
    successor.stop()
    assert _pids(stack, _run_to_its_end(stack)) == [frozen.pid], "it takes runs again"


def _run_to_its_end(stack: Stack) -> str:
    run_id = _start(stack, "steady", {"count": 1})
    _ended(stack, run_id)
    return run_id


def a_frozen_world(make: StackMaker) -> None:
    """The only worker stands still for longer than the lease: when it wakes up it must not call itself lost."""
    stack = make(DB_POOL_SIZE="2")
    worker = stack.start_worker()
    run_id = _steady(stack, ticks=100, seconds=10)
    time.sleep(1.5)  # its janitor has seen its heartbeat
    worker.send(signal.SIGSTOP)
    time.sleep(FROZEN_SECONDS)
    worker.send(signal.SIGCONT)
    run = _ended(stack, run_id)
    assert run.attempt == 1
    assert _count(stack, run_id, "run.step") == 0


def a_worker_is_called_lost_by_mistake(make: StackMaker) -> None:
    """It claims the run again that it still executes: one attempt at a time, and the later one counts."""
    stack = make(DB_POOL_SIZE="2")
    stack.start_worker()
    run_id, gate = _held(stack)
    row = _row(stack, run_id)
    assert stack.services.store.release(run_id, row.epoch, "worker_lost")
    stack.services.queue.enqueue(run_id, row.epoch, row.queue)
    eventually(lambda: _row(stack, run_id).epoch == row.epoch + 1 and len(_invocations(gate)) == 2)
    ticks = _count(stack, run_id, "custom.tick")
    eventually(lambda: _count(stack, run_id, "custom.tick") > ticks, LEASE_AND_MORE, "more of the later invocation")
    time.sleep(STRAY_SECONDS + 3)  # it is not taken for a stray
    gate.touch()
    run = _ended(stack, run_id)
    assert (run.epoch, run.owner) == (row.epoch + 1, None)
    assert [m["status"] for m in run.state["messages"]] == ["abandoned", "completed"]


def a_killed_worker(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="2")
    killed = stack.start_worker()
    run_id, gate = _held(stack)
    successor = stack.start_worker()
    killed.kill()
    gate.touch()
    run = _ended(stack, run_id)
    assert run.attempt == 1, "a plain kill costs nobody anything"
    assert _invocations(gate) == [killed.pid, successor.pid]
    first, second = run.state["messages"]
    assert (first["status"], second["status"]) == ("abandoned", "completed")
    assert run.output["text"] == second["text"] == "".join(f"word{n} " for n in range(TICKS))


def an_agent_that_kills_its_worker(make: StackMaker) -> None:
    """Nobody knows that it was this agent, until the run has lost two workers and dies in a process of its own."""
    stack = make(DB_POOL_SIZE="2", RUN_MAX_ATTEMPTS="1")
    victim = stack.start_worker()
    beside, gate = _held(stack)
    run_id = _start(stack, "kill_worker", {"after": 1.5})
    assert victim.popen.wait(LEASE_AND_MORE) == -signal.SIGKILL
    victim = stack.start_worker()
    assert victim.popen.wait(LEASE_AND_MORE) == -signal.SIGKILL
    gate.touch()
    survivor, isolated = stack.start_worker(), stack.start_worker("--isolated")
    run = _ended(stack, run_id, "failed")
    assert run.error == {"code": "worker_lost", "message": "The run ended its worker 1 times in a row."}
    assert [step["attempt"] for step in _payloads(stack, run_id, "run.step")] == [1, 1]
    assert _ended(stack, beside).attempt == 1
    assert survivor.popen.poll() is isolated.popen.poll() is None
    assert run.state["answer"] == {"text": "last words", "status": "final"}


def a_worker_that_is_asked_to_go(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="2", DRAIN_SECONDS="0", RUN_MAX_ATTEMPTS="1")
    leaving = stack.start_worker()
    run_id, gate = _held(stack)
    fresh_ids = [_start(stack, "steady", {"count": 1}) for _ in range(40)]  # it is claiming some of these as it goes
    assert leaving.stop() == 0  # in less than 10 s, although the gate of the first one is closed
    gate.touch()
    successor = stack.start_worker()
    run = _ended(stack, run_id)
    assert run.attempt == 1, "a deploy costs no attempt"
    assert _payloads(stack, run_id, "run.step") == [{"attempt": 1, "reason": "deploy", "restart": False}]
    assert _invocations(gate) == [leaving.pid, successor.pid]
    for fresh_id in fresh_ids:
        assert _ended(stack, fresh_id).attempt == 1


def a_worker_that_is_given_time(make: StackMaker) -> None:
    stack = make(DB_POOL_SIZE="2", DRAIN_SECONDS="5")
    leaving = stack.start_worker()
    (short_id, short_gate), (long_id, long_gate) = _held(stack), _held(stack)
    stack.start_worker()
    leaving.send(signal.SIGTERM)
    short_gate.touch()
    assert leaving.popen.wait(20) == 0
    long_gate.touch()
    assert _pids(stack, short_id) == [leaving.pid]
    assert _ended(stack, short_id).attempt == 1
    assert _count(stack, short_id, "run.step") == 0, "it was finished where it was"
    assert _ended(stack, long_id).attempt == 1
    assert [p["reason"] for p in _payloads(stack, long_id, "run.step")] == ["deploy"]


# What vanished processes left behind, under two workers that are well.


def a_killed_worker_whose_agent_returns_a_text(stack: Stack) -> None:
    """The first attempt dies while the executor streams the returned text: the second's text is the answer."""
    services = stack.services
    run = pending_run(services, "misbehave", {"way": "text_only"})
    claimed = services.ownership.claim(run.id, "a-worker-that-died")
    assert claimed is not None
    writer = claimed[1]
    writer.add("run.started", {"attempt": 1, "worker": "a-worker-that-died"})
    writer.add("message.started", {"message_id": "msg_1.1", "role": "assistant"})
    writer.add("message.delta", {"message_id": "msg_1.1", "text": "an ans"})
    services.log.append(Append(run.id, writer.epoch, writer.appendable()))
    ended = _ended(stack, run.id)
    assert ended.output == ended.state["answer"]["text"] == "an answer"
    assert [m["status"] for m in ended.state["messages"]] == ["abandoned", "completed"]


def jobs_that_are_repeated_or_missing(stack: Stack) -> None:
    forgotten = pending_run(stack.services, "steady", {"count": 1}, announce=False)
    run_id, gate = _held(stack)
    row = _row(stack, run_id)
    for epoch in (row.epoch, row.epoch - 1, 77):
        stack.services.queue.enqueue(run_id, epoch, QUEUE)
    eventually(lambda: not stack.services.queue.waiting())
    assert (_row(stack, run_id).epoch, _row(stack, run_id).owner) == (row.epoch, row.owner)
    gate.touch()
    run = _ended(stack, run_id)
    assert (run.epoch, run.attempt) == (row.epoch, 1)
    assert len(_pids(stack, run_id)) == 1
    stack.services.queue.enqueue(run_id, 78, QUEUE)  # and once it is finished
    eventually(lambda: not stack.services.queue.waiting())
    assert _ended(stack, forgotten.id).attempt == 1, "the janitor enqueued it"
    assert replace(_row(stack, run_id), published=True) == replace(run, published=True)


def an_end_that_was_not_published(stack: Stack) -> None:
    services = stack.services
    run = pending_run(services, "steady")
    claimed = services.ownership.claim(run.id, "died-after-its-commit")
    assert claimed is not None
    services.ownership.end(claimed[1], Ending.completed("done"))
    services.ownership.commit_end(claimed[1])
    assert services.log.head(run.id) == 1
    _ended(stack, run.id)
    eventually(lambda: _row(stack, run.id).published)
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        assert redis.ttl(f"rt:{{{run.id}}}:events") > 3_000


def a_canceller_that_died(stack: Stack) -> None:
    """An API process claimed a pending run to cancel it, and was killed before it had."""
    run = pending_run(stack.services, "steady")
    stack.services.store.request_cancel(run.id)
    assert stack.services.store.claim(run.id, "cancel-1234", start=False)
    _ended(stack, run.id, "cancelled")
    assert [event.type for event in _archived(stack, run.id)] == ["run.created", "run.cancelled"]


# Servers that die, one after the other, under one worker.


def redis_is_killed(servers: EmbeddedServices, stack: Stack) -> None:
    run_id = _steady(stack, ticks=40, seconds=3)
    servers.kill("redis")
    servers.start("redis")
    _undisturbed(stack, run_id)


def redis_loses_everything(servers: EmbeddedServices, stack: Stack) -> None:
    run_id = _steady(stack, ticks=40, seconds=3)
    with Redis.from_url(servers.redis_url) as redis:
        redis.flushall()
    _undisturbed(stack, run_id)


def postgres_is_killed(servers: EmbeddedServices, stack: Stack) -> None:
    run_id = _steady(stack, ticks=40, seconds=3)
    servers.kill("postgres")
    servers.start("postgres")
    _undisturbed(stack, run_id)


def redis_is_away_when_a_run_is_started(servers: EmbeddedServices, stack: Stack) -> None:
    servers.kill("redis")
    run = pending_run(stack.services, "steady", {"count": 40, "interval": 0.01}, announce=False)
    servers.start("redis")
    _undisturbed(stack, run.id)


def redis_stands_still(servers: EmbeddedServices, stack: Stack) -> None:
    run_id = _start(stack, "flood", {"chunks": 400})
    eventually(lambda: _row(stack, run_id).status == "running")
    os.kill(servers.pid("redis"), signal.SIGSTOP)
    time.sleep(1)
    os.kill(servers.pid("redis"), signal.SIGCONT)
    run = _ended(stack, run_id)
    assert run.attempt == 1
    assert run.output["text"] == "".join(f"{n:04}" + "x" * 4_092 for n in range(400))


def _undisturbed(stack: Stack, run_id: str) -> None:
    run = _ended(stack, run_id)
    assert run.attempt == 1
    assert _count(stack, run_id, "run.step") == 0, "the same attempt went on"
    assert run.output["text"] == "".join(f"word{n} " for n in range(40))


OUTAGES = 3
"""A connection lost at each would leave RQ's pool with none to take a job by."""
TROUBLE = re.compile("found an unhandled exception, quitting|could not connect to Redis instance")
"""RQ's work loop gives up, and is started anew, or it waits: by which of its commands is the first that fails."""


def redis_is_killed_again_and_again(make: StackMaker, folder: Path) -> None:
    """Each time a slot comes free while Redis is away."""
    with EmbeddedServices(folder) as servers:
        stack = make(REDIS_URL=servers.redis_url, RUNTAIL_WORKER_CONCURRENCY="1")
        worker = stack.start_worker()
        for _ in range(OUTAGES):
            _outage(servers, stack, worker)
        _run_to_its_end(stack)
        with Redis.from_url(servers.redis_url) as redis:
            assert redis.pubsub_channels("rq:pubsub:*") == []


def _outage(servers: EmbeddedServices, stack: Stack, worker: Process) -> None:
    run_id, gate = _held(stack)
    before = len(TROUBLE.findall(worker.log.read_text()))
    servers.kill("redis")
    gate.touch()
    eventually(lambda: len(TROUBLE.findall(worker.log.read_text())) > before, what="RQ's trouble")
    servers.start("redis")
    assert _ended(stack, run_id).attempt == 1


SCENARIOS: list[Scenario] = [
    a_frozen_worker,
    a_killed_worker,
    a_frozen_world,
    a_worker_is_called_lost_by_mistake,
    an_agent_that_kills_its_worker,
    a_worker_that_is_given_time,
    a_worker_that_is_asked_to_go,
]
LEFTOVERS: list[Leftover] = [
    jobs_that_are_repeated_or_missing,
    a_canceller_that_died,
    a_killed_worker_whose_agent_returns_a_text,
    an_end_that_was_not_published,
]
DISASTERS: list[Disaster] = [
    redis_is_killed,
    redis_loses_everything,
    postgres_is_killed,
    redis_is_away_when_a_run_is_started,
    redis_stands_still,
]
Played = dict[Callable[..., None], "Future[None]"]


@pytest.fixture(scope="module")
def played(module_stack: StackMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with (
        EmbeddedServices(tmp_path_factory.mktemp("servers")) as servers,
        Stack(_urls(servers), tmp_path_factory.mktemp("stack")) as stack,
        ThreadPoolExecutor(len(SCENARIOS) + len(LEFTOVERS) + 1) as side_by_side,
        ThreadPoolExecutor(1) as one_by_one,
    ):
        migrate(servers.database_url)
        stack.start_worker()
        calm = module_stack()
        calm.start_worker()
        calm.start_worker()
        folder = tmp_path_factory.mktemp("again")
        again = side_by_side.submit(redis_is_killed_again_and_again, module_stack, folder)
        yield {
            redis_is_killed_again_and_again: again,
            **{leftover: side_by_side.submit(leftover, calm) for leftover in LEFTOVERS},
            **{scenario: side_by_side.submit(scenario, module_stack) for scenario in SCENARIOS},
            **{disaster: one_by_one.submit(disaster, servers, stack) for disaster in DISASTERS},
        }


def _urls(servers: EmbeddedServices) -> dict[str, str]:
    return {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}


def test_a_frozen_worker_that_wakes_up_changes_neither_log_nor_row(played: Played) -> None:
    played[a_frozen_worker].result()


def test_a_worker_that_stood_still_does_not_call_itself_lost(played: Played) -> None:
    played[a_frozen_world].result()


def test_the_run_of_a_killed_worker_goes_on_elsewhere(played: Played) -> None:
    played[a_killed_worker].result()


def test_the_abandoned_message_of_an_earlier_attempt_is_not_the_answer(played: Played) -> None:
    played[a_killed_worker_whose_agent_returns_a_text].result()


def test_a_run_that_loses_too_many_workers_fails(played: Played) -> None:
    played[an_agent_that_kills_its_worker].result()


def test_a_worker_that_is_asked_to_go_hands_its_runs_back_at_no_cost(played: Played) -> None:
    played[a_worker_that_is_asked_to_go].result()


def test_a_worker_that_is_given_time_finishes_what_it_can(played: Played) -> None:
    played[a_worker_that_is_given_time].result()


def test_a_repeated_job_changes_nothing_and_a_missing_one_is_made_up_for(played: Played) -> None:
    played[jobs_that_are_repeated_or_missing].result()


def test_an_end_that_was_committed_but_not_published_is_published(played: Played) -> None:
    played[an_end_that_was_not_published].result()


def test_a_run_whose_canceller_died_is_cancelled(played: Played) -> None:
    played[a_canceller_that_died].result()


def test_a_run_outlives_a_redis_that_is_killed(played: Played) -> None:
    played[redis_is_killed].result()


def test_a_worker_keeps_its_connections_however_often_redis_is_killed(played: Played) -> None:
    played[redis_is_killed_again_and_again].result()


def test_a_log_that_redis_has_lost_is_filled_again(played: Played) -> None:
    played[redis_loses_everything].result()


def test_a_run_outlives_a_postgres_that_is_killed(played: Played) -> None:
    played[postgres_is_killed].result()


def test_a_run_that_was_started_while_redis_was_away_is_executed(played: Played) -> None:
    played[redis_is_away_when_a_run_is_started].result()


def test_a_run_outlives_a_redis_that_stands_still(played: Played) -> None:
    played[redis_stands_still].result()


def test_a_worker_that_was_called_lost_by_mistake_gives_up_its_earlier_attempt(played: Played) -> None:
    played[a_worker_is_called_lost_by_mistake].result()
