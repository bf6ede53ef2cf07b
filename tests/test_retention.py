"""Erasing: one run by request, many by age. Nothing of them is left, whatever fails half-way, and nothing else goes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
from click.testing import CliRunner, Result
from redis import Redis

from app.cli.main import main
from app.errors import StoreUnavailable
from app.protocol.ending import Ending
from app.storage.erasure import Erasure
from app.storage.event_log import EventLog
from app.storage.ownership import Ownership
from app.storage.run_queue import RunQueue
from app.storage.run_store import (
    Beats,
    Checkpoint,
    EarlyCancels,
    Leftovers,
    NewApproval,
    OpRecord,
    RunRecord,
    RunStore,
    Tally,
)
from app.storage.run_store import retention as retention_module
from app.wiring import Services
from tests.conftest import StackMaker, execute
from tests.harness import DEV, eventually, free_port, pending_run
from workers.janitor.retention import Retention

MARKER = "the-secret-of-ann"
OURS = ("runs", "run_events", "run_ops", "approvals", "run_inputs")


@pytest.fixture
def erasure(apart: Services) -> Erasure:
    """On databases without a run."""
    apart.queue.redis.flushdb()
    execute(apart.config.database_url, f"TRUNCATE {', '.join(OURS)}, workers, early_cancels")
    return apart.erasure


def _ended(services: Services, marker: str = "", days_ago: float = 0, ending: Ending | None = None) -> RunRecord:
    """A run that has left rows in every table; `marker` is in all that a user or an agent writes."""
    run = pending_run(services, input={"q": marker}, metadata={"m": marker})
    claimed = services.store.claim(run.id, "tests", start=True)
    assert claimed is not None
    _, writer = services.ownership.adopt(claimed)
    writer.add("custom.said", {"text": marker})
    op = OpRecord("1", "tool", "look_up", {"x": marker}, "f", False, {"y": marker})
    asked = NewApproval("apr_2", marker, "owner", "tool_1", None)
    services.store.archive([Checkpoint(run.id, claimed.epoch, writer.unarchived(), ops=[op], approvals=[asked])])
    writer.mark_archived(writer.head)
    assert services.waits.decide(DEV, run.id, "apr_2", "approved", marker)
    assert services.waits.add_input(DEV, run.id, marker, "key")
    services.ownership.finish(writer, ending or Ending.completed({"answer": marker}))
    if days_ago:
        sql = f"UPDATE runs SET finished_at = now() - interval '{days_ago} days' WHERE id = '{run.id}'"
        execute(services.config.database_url, sql)
    ended = services.store.get(run.id)
    assert ended is not None
    assert ended.terminal
    return ended


def _query(url: str, sql: str) -> list[Any]:
    with closing(psycopg2.connect(url)) as connection:
        cursor = connection.cursor()
        cursor.execute(sql)
        return cursor.fetchall()


def _tables_with(url: str, text: str, *, but: tuple[str, ...] = ()) -> set[str]:
    """The tables that have the text in any column of any row."""
    tables = [name for (name,) in _query(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    sql = "SELECT count(*) FROM {0} AS t WHERE t::text LIKE '%{1}%'"
    return {table for table in tables if table not in but and _query(url, sql.format(table, text))[0][0]}


def _keys_with(url: str, text: str) -> set[str]:
    """The keys of Redis that have the text in their name or anywhere in their value."""
    reads: dict[bytes, Callable[[Redis, bytes], Any]] = {
        b"string": lambda redis, key: redis.get(key),
        b"hash": lambda redis, key: redis.hgetall(key),
        b"list": lambda redis, key: redis.lrange(key, 0, -1),
        b"set": lambda redis, key: redis.smembers(key),
        b"zset": lambda redis, key: redis.zrange(key, 0, -1),
        b"stream": lambda redis, key: redis.xrange(key),
        b"none": lambda redis, key: None,
    }
    with Redis.from_url(url) as redis:
        found: dict[bytes, str] = {key: repr((key, reads[redis.type(key)](redis, key))) for key in redis.scan_iter()}
    return {key.decode() for key, all_of_it in found.items() if text in all_of_it}


def _check_nothing_left(services: Services, run_id: str, *texts: str) -> None:
    for text in (run_id, *texts):
        assert _tables_with(services.config.database_url, text) == set()
        assert _keys_with(services.config.events_redis_url, text) == set()


# One run.


def test_nothing_of_an_erased_run_is_left_anywhere(apart: Services, erasure: Erasure) -> None:
    run, other = _ended(apart, MARKER), _ended(apart, "somebody-else")
    with Redis.from_url(apart.config.events_redis_url) as redis:
        redis.hset(f"rt:{{{run.id}}}:windows", "holder", "1:9999999999")
    for text in (MARKER, run.id):
        assert _tables_with(apart.config.database_url, text) == set(OURS), "or the test would not find it afterwards"
    assert _keys_with(apart.config.events_redis_url, run.id) == {
        f"rt:{{{run.id}}}:{name}" for name in ("events", "meta", "windows")
    }
    erasure.erase(run)
    _check_nothing_left(apart, run.id, MARKER)
    assert _tables_with(apart.config.database_url, other.id) == set(OURS)
    assert apart.log.head(other.id) == other.state_seq


def test_a_run_that_has_not_ended_is_not_erased(apart: Services, erasure: Erasure) -> None:
    run = pending_run(apart)
    erasure.erase(run)
    assert apart.store.get(run.id) == run
    assert apart.log.head(run.id) == 1


def test_a_run_that_no_worker_ever_took_leaves_no_job(apart: Services, erasure: Erasure) -> None:
    run, other = pending_run(apart), pending_run(apart)
    for one in (run, other):
        apart.queue.enqueue(one.id, one.epoch, one.queue)
    apart.store.request_cancel(run.id)
    apart.ownership.end_unowned(run)
    ended = apart.store.get(run.id)
    assert ended is not None
    erasure.erase(ended)
    _check_nothing_left(apart, run.id)
    assert other.id in apart.queue.waiting()


def test_a_run_of_an_agent_is_erased_through_the_api_while_somebody_follows_it(stack: StackMaker) -> None:
    server = stack()
    server.start_web()
    server.start_worker()
    body = {"agent": "support", "input": {"message": f"I want a refund for order 48291. {MARKER}", "latency_scale": 0}}
    run_id = server.http.post("/runs", json={**body, "metadata": {"m": MARKER}}).json()["run_id"]
    eventually(lambda: server.read(run_id)["status"] == "waiting", 20)
    (approval,) = server.read(run_id)["state"]["approvals"]
    decision = {"decision": "approved", "comment": MARKER}
    assert server.http.post(f"/runs/{run_id}/input", json={"text": MARKER}).is_success
    assert server.http.post(f"/runs/{run_id}/approvals/{approval['id']}", json=decision).is_success
    assert server.ended(run_id, 30)["status"] == "completed"
    url = server.env["DATABASE_URL"]
    assert _tables_with(url, MARKER) >= {"runs", "run_events", "approvals", "run_inputs"}
    assert "run_ops" in _tables_with(url, run_id)
    with server.http.stream("GET", f"/runs/{run_id}/events?since_seq=1") as window:
        assert server.http.post(f"/runs/{run_id}/erase").status_code == 204
        for _ in window.iter_lines():
            pass
    assert server.http.get(f"/runs/{run_id}").status_code == 404
    assert _tables_with(url, MARKER) == set()
    assert _tables_with(url, run_id, but=("shop_refunds",)) == set()
    eventually(lambda: not {k for k in _keys_with(server.env["REDIS_URL"], run_id) if not k.endswith(":windows")})
    assert _keys_with(server.env["REDIS_URL"], MARKER) == set()


class Died(BaseException):
    """Stands for the end of the process."""


def _dies(*_: object) -> None:
    raise Died


@pytest.mark.parametrize("line", ["job", "log", "rows", "commit"])
def test_an_erasure_that_dies_half_way_leaves_a_run_that_can_be_erased_again(
    apart: Services, erasure: Erasure, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    run = _ended(apart, MARKER)
    with monkeypatch.context() as dying:
        if line == "job":
            dying.setattr(RunQueue, "drop", _dies)
        elif line == "log":
            dying.setattr(EventLog, "delete", _dies)
        elif line == "rows":
            dying.setattr("app.storage.run_store.runs.erase_runs", _dies)
        else:
            dying.setattr(apart.database.peewee, "commit", _dies)
        with pytest.raises(Died):
            erasure.erase(run)
    assert _tables_with(apart.config.database_url, MARKER) == set(OURS)
    assert apart.store.get(run.id) == run
    assert [e.seq for e in apart.history.all_after(run.id, 0)] == list(range(1, run.state_seq + 1))
    erasure.erase(run)
    _check_nothing_left(apart, run.id, MARKER)


def test_without_redis_nothing_is_erased(apart: Services, erasure: Erasure) -> None:
    run = _ended(apart, MARKER, days_ago=3)
    away = EventLog(f"redis://127.0.0.1:{free_port()}", ttl_seconds=60, max_connections=1)
    for call in (lambda e: e.erase(run), lambda e: e.erase_old(1)):
        with pytest.raises(StoreUnavailable):
            call(replace(erasure, log=away))
    assert _tables_with(apart.config.database_url, MARKER) == set(OURS)


def test_what_is_brought_into_redis_during_an_erasure_goes_as_well(
    apart: Services, erasure: Erasure, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _ended(apart)
    real = RunStore.erase

    def erase(store: RunStore, run_id: str) -> bool:
        apart.ownership.sync(run_id, run.epoch)  # as whoever publishes its end does
        assert apart.log.head(run_id) == run.state_seq
        return real(store, run_id)

    monkeypatch.setattr(RunStore, "erase", erase)
    erasure.erase(run)
    _check_nothing_left(apart, run.id)


def test_an_erasure_holds_no_row_while_it_waits_for_redis(
    apart: Services, erasure: Erasure, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, old = _ended(apart), _ended(apart, days_ago=3)
    locked: list[int] = []
    real = EventLog.delete

    def delete(log: EventLog, *run_ids: str) -> None:
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in%'"
        locked.append(_query(apart.config.database_url, others)[0][0])
        real(log, *run_ids)

    monkeypatch.setattr(EventLog, "delete", delete)
    erasure.erase(run)
    assert erasure.erase_old(1) == 1
    assert locked == [0, 0, 0, 0]
    _check_nothing_left(apart, old.id)


# By age.


def test_runs_go_that_ended_longer_ago_than_they_are_kept(apart: Services, erasure: Erasure) -> None:
    old = [_ended(apart, "old", days_ago=days) for days in (2.01, 3, 400)]
    young = [_ended(apart, "young", days_ago=days) for days in (0, 1, 1.99)]
    unfinished = pending_run(apart)
    execute(apart.config.database_url, "UPDATE runs SET created_at = now() - interval '900 days'")
    assert erasure.erase_old(2) == 3
    assert erasure.erase_old(2) == 0
    for run in old:
        _check_nothing_left(apart, run.id)
    left = {run.id for run in apart.store.page(DEV, {}, None, 100)}
    assert left == {unfinished.id, *(run.id for run in young)}
    assert all(apart.log.head(run.id) == run.state_seq for run in young)
    assert erasure.erase_old(10**12) == 0


def test_a_batch_is_of_so_many_runs_or_events_the_oldest_first(
    apart: Services, erasure: Erasure, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [_ended(apart, days_ago=10 - n) for n in range(7)]

    def left() -> list[str]:
        return [run.id for run in reversed(apart.store.page(DEV, {}, None, 100))]

    monkeypatch.setattr(retention_module, "RUNS_MAX", 2)
    assert erasure.erase_old(1) == 2
    assert left() == [run.id for run in runs[2:]]
    monkeypatch.setattr(retention_module, "RUNS_MAX", 200)
    monkeypatch.setattr(retention_module, "EVENTS_MAX", 2 * runs[0].state_seq + 1)
    assert erasure.erase_old(1) == 3
    assert left() == [run.id for run in runs[5:]]
    monkeypatch.setattr(retention_module, "EVENTS_MAX", 1)
    assert [erasure.erase_old(1) for _ in range(3)] == [1, 1, 0]


def test_workers_that_purge_at_the_same_time_share_the_runs(
    apart: Services, erasure: Erasure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "RUNS_MAX", 3)
    runs = [_ended(apart, days_ago=3) for _ in range(30)]
    seen: list[str] = []
    real = EventLog.delete
    monkeypatch.setattr(EventLog, "delete", lambda log, *run_ids: (seen.extend(run_ids), real(log, *run_ids)))
    with ThreadPoolExecutor(4) as pool:
        erased = list(pool.map(lambda _: erasure.erase_old(1), range(20)))
    while more := erasure.erase_old(1):
        erased.append(more)
    assert sum(erased) == len(runs)
    assert set(seen) == {run.id for run in runs}


def test_by_default_runs_are_kept_for_ever(apart: Services, erasure: Erasure) -> None:
    assert apart.config.run_retention_days == 0
    run = _ended(apart, days_ago=4_000)
    Retention(erasure, 0).purge()
    assert apart.store.get(run.id) == run


def test_the_duty_takes_a_batch_at_a_time_and_then_waits(
    apart: Services, erasure: Erasure, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr("workers.janitor.retention.time.monotonic", lambda: now)
    monkeypatch.setattr(retention_module, "RUNS_MAX", 2)
    for _ in range(3):
        _ended(apart, days_ago=3)
    duty, left = Retention(erasure, 1), []
    for _ in range(3):
        duty.purge()
        left.append(len(apart.store.page(DEV, {}, None, 100)))
    assert left == [1, 0, 0]
    _ended(apart, days_ago=3)
    now += 59
    duty.purge()
    assert len(apart.store.page(DEV, {}, None, 100)) == 1
    now += 1
    duty.purge()
    assert len(apart.store.page(DEV, {}, None, 100)) == 0


def test_a_duty_that_failed_is_due_at_once(apart: Services, erasure: Erasure) -> None:
    run = _ended(apart, days_ago=3)
    away = EventLog(f"redis://127.0.0.1:{free_port()}", ttl_seconds=60, max_connections=1)
    duty = Retention(replace(erasure, log=away), 1)
    with pytest.raises(StoreUnavailable):
        duty.purge()
    duty._erasure = erasure  # Redis is back
    duty.purge()
    assert apart.store.get(run.id) is None


def test_rows_that_refer_to_nothing_any_more_go_too(apart: Services, erasure: Erasure) -> None:
    url, cancels = apart.config.database_url, EarlyCancels(apart.database)
    busy = pending_run(apart)
    assert apart.store.claim(busy.id, "busy", start=True)
    for worker in ("gone", "busy", "here"):
        with closing(Beats(url, worker)) as beats:
            beats.beat()
    execute(url, "UPDATE workers SET seen_at = now() - interval '25 hours' WHERE id <> 'here'")
    for key in ("forgotten", "remembered"):
        assert cancels.find_or_note(DEV, "client_run_id", key) is None
    execute(url, "UPDATE early_cancels SET created_at = now() - interval '25 hours' WHERE key = 'forgotten'")
    assert erasure.retention.leftovers() == Leftovers(workers=1, early_cancels=1)
    Retention(erasure, 0).purge()
    assert erasure.retention.leftovers() == Leftovers(0, 0)
    assert {id for (id,) in _query(url, "SELECT id FROM workers")} == {"busy", "here"}
    assert _query(url, "SELECT key FROM early_cancels") == [("remembered",)]


def test_a_worker_erases_by_its_setting(stack: StackMaker) -> None:
    server = stack(RUN_RETENTION_DAYS="1")
    old, young = (_ended(server.services, MARKER, days_ago=days) for days in (2, 0.5))
    server.start_worker()
    eventually(lambda: server.services.store.get(old.id) is None)
    _check_nothing_left(server.services, old.id)
    assert server.services.store.get(young.id) is not None


# The command.


def _command(services: Services, *arguments: str, **settings: str) -> Result:
    urls = {"DATABASE_URL": services.config.database_url, "REDIS_URL": services.config.redis_url}
    return CliRunner().invoke(main, ["retention", *arguments], env={"RUN_RETENTION_DAYS": None, **urls, **settings})


def test_a_dry_run_shows_what_would_go_and_removes_nothing(apart: Services, erasure: Erasure) -> None:
    _ended(apart, "é" * 1_000, days_ago=3)
    _ended(apart, days_ago=3, ending=Ending.cancelled("requested"))
    _ended(apart, days_ago=3, ending=Ending.cancelled("requested"))
    _ended(apart)
    cancelled, completed = erasure.retention.tally(2)
    assert replace(cancelled, bytes=0, events=0) == Tally("cancelled", 2, 0, 2, 2, 2, 0)
    assert replace(completed, bytes=0, events=0) == Tally("completed", 1, 0, 1, 1, 1, 0)
    old = "run_id IN (SELECT id FROM runs WHERE status = 'completed' AND finished_at < now() - interval '2 days')"
    sql = f"SELECT count(*), sum(octet_length(e)) FROM run_events WHERE {old}"
    assert (completed.events, completed.bytes) == _query(apart.config.database_url, sql)[0]
    answer = _command(apart, "--dry-run", "--days", "2")
    assert (answer.exit_code, answer.stderr) == (0, "")
    rows = [line.split() for line in answer.stdout.splitlines()]
    numbers = [["2", f"{cancelled.events}", "2", "2", "2"], ["1", f"{completed.events}", "1", "1", "1"]]
    assert [row[:-1] for row in rows[2:4]] == [["cancelled", *numbers[0]], ["completed", *numbers[1]]]
    assert rows[4] == [
        *("total", "3", str(cancelled.events + completed.events), "3", "3", "3"),
        f"{cancelled.bytes + completed.bytes:,}",
    ]
    assert len({len(line) for line in answer.stdout.splitlines()[1:5]}) == 1, "the columns stand below each other"
    assert len(apart.store.page(DEV, {}, None, 100)) == 4


def test_the_command_erases_at_once(apart: Services, erasure: Erasure) -> None:
    old, young = _ended(apart, MARKER, days_ago=3), _ended(apart)
    answer = _command(apart, RUN_RETENTION_DAYS="2")
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout.splitlines()[0] == "Runs that ended more than 2 days ago: 1 removed."
    _check_nothing_left(apart, old.id, MARKER)
    assert apart.store.get(young.id) == young
    assert ": 0 removed." in _command(apart, "--days", "2").stdout


def test_of_nothing_a_dry_run_shows_nothing(apart: Services, erasure: Erasure) -> None:
    answer = _command(apart, "--dry-run", "--days", "2")
    assert answer.stdout.splitlines()[2].split() == ["total", *"000000"]


def test_the_command_wants_to_know_after_how_many_days(apart: Services, erasure: Erasure) -> None:
    run = _ended(apart, days_ago=900)
    for arguments in ((), ("--dry-run",), ("--days", "0"), ("--days", "-1")):
        answer = _command(apart, *arguments)
        assert answer.exit_code == 2, answer.stdout
        assert "days" in answer.stderr
        assert "Traceback" not in answer.stderr
    assert apart.store.get(run.id) == run


class _Slow:
    """A store whose first answer to `events` arrives late: after something else has happened."""

    def __init__(self, store: RunStore, meanwhile: Callable[[], None]) -> None:
        self._store = store
        self._meanwhile = [meanwhile]

    def events(self, *args: Any) -> Any:
        found = self._store.events(*args)
        while self._meanwhile:
            self._meanwhile.pop()()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_an_end_that_is_published_while_its_run_is_erased_leaves_nothing_in_redis(
    apart: Services, erasure: Erasure
) -> None:
    run = _ended(apart, "x")
    apart.log.delete(run.id)
    slow: Any = _Slow(apart.store, lambda: erasure.erase(run))
    Ownership(slow, apart.log, apart.hooks).publish(run.id, run.epoch)
    assert _keys_with(apart.config.redis_url, run.id) == set()
