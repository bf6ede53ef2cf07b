"""Runs that begin or end at the same time share round trips; each is a run of its own all the same."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg2
import pytest

from app.errors import Refused
from app.protocol.ending import Ending
from app.storage.breaker import Breaker
from app.storage.run_queue import RunQueue, queue_of
from app.storage.run_store import AgentRecord, NewRun, RunRecord
from app.verbs.runs import Runs, StartRequest
from app.wiring import Services
from tests.harness import DEV, free_port, pending_run

CALLERS = 16
RUNS = 200
LARGE = "x" * 900_000


def at_once(call: Callable[[int], Any], count: int = RUNS) -> list[Any]:
    """What each of so many calls returned, or raised, in order."""

    def settled(n: int) -> Any:
        try:
            return call(n)
        except Exception as error:
            return error

    with ThreadPoolExecutor(CALLERS) as pool:
        return list(pool.map(settled, range(count)))


def test_they_share_statements(apart: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    execute, statements = apart.database.peewee.execute_sql, []

    def counted(sql: str, params: Any = None) -> Any:
        statements.append(sql)
        return execute(sql, params)

    monkeypatch.setattr(apart.database.peewee, "execute_sql", counted)
    made = at_once(lambda n: pending_run(apart, input={"n": n}, announce=False))
    assert all(isinstance(run, RunRecord) for run in made)
    assert len(statements) < RUNS / 2


def test_each_has_its_own_row_and_its_own_first_event(apart: Services) -> None:
    made = at_once(lambda n: pending_run(apart, input={"n": n}, metadata={"of": f"run {n}"}, announce=False))
    assert len({run.id for run in made}) == RUNS
    for n, run in enumerate(made):
        stored = apart.store.get(run.id)
        assert stored == run
        assert (stored.input, stored.metadata, stored.status) == ({"n": n}, {"of": f"run {n}"}, "pending")
        (created,) = apart.store.events(run.id, 0, 10)
        assert created.envelope()["run_id"] == run.id
        assert stored.state == {**stored.state, "run_id": run.id, "last_seq": 1}


@pytest.mark.parametrize("text", ["\0", "\ud800"], ids=["NUL", "lone surrogate"])
def test_what_postgres_refuses_of_one_takes_no_other_with_it(apart: Services, text: str) -> None:
    made = at_once(lambda n: pending_run(apart, session_id=text if n % 20 == 7 else "ses_1", announce=False))
    refused = [n for n, outcome in enumerate(made) if not isinstance(outcome, RunRecord)]
    assert refused == list(range(7, RUNS, 20))
    assert all(isinstance(made[n], Refused) for n in refused)


def test_large_ones_come_whole(apart: Services) -> None:
    made = at_once(lambda n: pending_run(apart, input={"n": n, "text": LARGE}, announce=False), 2 * CALLERS)
    for n, run in enumerate(made):
        stored = apart.store.get(run.id)
        assert stored is not None
        assert stored.input == {"n": n, "text": LARGE}


def test_of_a_name_there_is_one_run_however_many_create_it(apart: Services) -> None:
    new, created = _example(apart)

    def create(n: int) -> RunRecord | None:
        named = replace(new, id=f"{new.id[:-3]}{n:03}", idempotency_key=f"k{n % 5}")
        return apart.store.create(named, created)

    made = [run for run in at_once(create, 100) if run is not None]
    assert sorted(run.idempotency_key for run in made) == [f"k{n}" for n in range(5)]


@pytest.mark.parametrize("redis_of_the_log", ["same", "another"])
def test_each_is_announced_to_the_log_and_to_the_queue_of_its_agent(apart: Services, redis_of_the_log: str) -> None:
    for isolation in ("gevent", "process"):
        apart.registry.put_agent(AgentRecord(isolation, {}, isolation, "1"))
    runs = Runs(apart if redis_of_the_log == "same" else _with_two(apart))
    apart.queue.redis.delete("rq:queue:runs", "rq:queue:isolated")

    def start(n: int) -> RunRecord:
        agent = "process" if n % 3 else "gevent"
        key = f"{redis_of_the_log}{n}" if n % 2 else None
        return runs.start(DEV, StartRequest(agent, {}, None, "continue", None, {}, None, key))

    made = at_once(start)
    assert {run.id for run in made} == apart.queue.waiting()
    for run in made:
        assert run.queue == queue_of(run.agent)
        assert apart.queue.redis.lpos(f"rq:queue:{run.queue}", f"{run.id}-0") is not None
        assert apart.log.read(run.id, 0, 10) == apart.store.events(run.id, 0, 10)


def test_a_cancel_that_came_before_is_heeded_although_the_queue_of_the_others_is_away(apart: Services) -> None:
    apart.registry.put_agent(AgentRecord("gevent", {}, "gevent", "1"))
    queue = RunQueue(f"redis://127.0.0.1:{free_port()}", Breaker(), max_connections=8)
    runs = Runs(replace(_with_two(apart), queue=queue))
    for n in range(0, 20, 2):
        runs.cancel_named(DEV, "client_run_id", f"c{n}")
    made = at_once(lambda n: runs.start(DEV, StartRequest("gevent", {}, None, "continue", None, {}, f"c{n}", None)), 20)
    assert [run.status for run in made] == ["cancelled", "pending"] * 10


def _with_two(services: Services) -> Services:
    """The same, as if the log and the queue were not in the same Redis."""
    return replace(services, config=replace(services.config, events_redis_url=f"{services.config.redis_url}?log"))


# Runs that end at the same time.


def test_an_end_whose_row_somebody_has_locked_holds_up_no_other(apart: Services) -> None:
    locked, free = (_ended(apart) for _ in range(2))
    with closing(psycopg2.connect(apart.config.database_url)) as other:
        other.cursor().execute("SELECT FROM runs WHERE id = %s FOR UPDATE", (locked,))
        assert apart.store.mark_all_published([(locked, None), (free, None), ("run_none", None)]) == [True, True, False]
        other.rollback()  # a close alone is heard later
    assert [_published(apart, run_id) for run_id in (locked, free)] == [False, True]
    assert apart.store.mark_published(locked)
    assert _published(apart, locked)


def test_an_end_that_was_not_appended_to_its_last_event_is_not_published(apart: Services) -> None:
    run_id = _ended(apart)
    assert apart.store.mark_all_published([(run_id, None), (run_id, 1)]) == [True, True]
    assert not _published(apart, run_id)


def _published(services: Services, run_id: str) -> bool:
    run = services.store.get(run_id)
    assert run is not None
    return run.published


def _ended(services: Services) -> str:
    """A run that has ended, and whose end is not published."""
    claimed = services.ownership.claim(pending_run(services).id, "owner")
    assert claimed is not None
    run, writer = claimed
    services.ownership.end(writer, Ending.cancelled("requested"))
    services.ownership.commit_end(writer)
    return run.id


def _example(services: Services) -> tuple[NewRun, Any]:
    """What is to be created for a run that nobody has a name for yet."""
    run = pending_run(services, announce=False)
    (created,) = services.store.events(run.id, 0, 1)
    values = {name: getattr(run, name) for name in NewRun.__dataclass_fields__ if hasattr(run, name)}
    return NewRun(**{**values, "principal": DEV, "request_hash": "", "registered_at": None}), created
