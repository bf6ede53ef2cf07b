"""The rows in Postgres: who may write them, what a batch does, and what happens to connections."""

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import gevent
import psycopg2
import pytest

from app.errors import Behind, Fenced, Refused, StoreUnavailable
from app.identifiers import new_id
from app.pace import CHARS_AT_ONCE
from app.protocol.events import Event, Outbound, dumps, encode
from app.protocol.reducer import State, fold, initial
from app.storage.run_store import (
    AgentRecord,
    Beats,
    Checkpoint,
    Database,
    Principal,
    Registry,
    RunRecord,
    RunStore,
    migrate,
)
from app.storage.run_store import database as database_module
from app.storage.run_store.runs import INSERTED_CHARS
from app.wiring import Services
from tests.conftest import execute, own_databases
from tests.harness import ROOT, eventually, free_port, pending_run

T = TypeVar("T")


@pytest.fixture(scope="module")
def url(apart: Services) -> str:
    return apart.config.database_url


@pytest.fixture(scope="module")
def database(url: str) -> Iterator[Database]:
    database = Database(url, 10)
    yield database
    database.close()


@pytest.fixture(scope="module")
def store(database: Database) -> RunStore:
    return RunStore(database)


@pytest.fixture
def run(apart: Services) -> RunRecord:
    return pending_run(apart, announce=False)


def _at_once(count: int, call: Callable[[int], T]) -> list[T]:
    """The results of `count` calls that all begin at the same moment."""
    barrier = threading.Barrier(count)

    def begin(n: int) -> T:
        barrier.wait()
        return call(n)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


def _events(run_id: str, first: int, last: int, text: str = "") -> list[Event]:
    return [encode(run_id, seq, "custom.tick", {"text": text}, op=str(seq)) for seq in range(first, last + 1)]


def _claimed(store: RunStore, run: RunRecord, owner: str = "a") -> RunRecord:
    claimed = store.claim(run.id, owner, start=True)
    assert claimed is not None
    return claimed


def _got(store: RunStore, run_id: str) -> RunRecord:
    run = store.get(run_id)
    assert run is not None
    return run


def _end(run: RunRecord, seq: int) -> tuple[State, Event]:
    payload = {"output": {"x": 1.0}, "usage": {}, "digest": "d"}
    event = encode(run.id, seq, "run.completed", payload)
    state = fold([event.envelope()], {**run.state, "last_seq": seq - 1})  # type: ignore[typeddict-item]
    return state, event


def test_of_fifty_claimers_one_gets_the_run(store: RunStore, run: RunRecord) -> None:
    claims = _at_once(50, lambda n: store.claim(run.id, f"owner-{n}", start=True))
    (claimed,) = [claim for claim in claims if claim]
    assert (claimed.epoch, claimed.status) == (1, "running")
    assert claimed.owner == _got(store, run.id).owner
    assert claimed.started_at is not None


def test_a_claim_that_does_not_start_the_run_leaves_no_start_time(store: RunStore, run: RunRecord) -> None:
    claimed = store.claim(run.id, "canceller", start=False)
    assert claimed is not None
    assert claimed.started_at is None


def test_nobody_can_claim_what_is_running_or_finished(store: RunStore, run: RunRecord) -> None:
    claimed = _claimed(store, run)
    assert store.claim(run.id, "b", start=True) is None
    state, event = _end(claimed, 2)
    store.finish(run.id, claimed.epoch, "completed", state, [event])
    assert store.claim(run.id, "b", start=True) is None
    assert store.claim("run_unknown", "b", start=True) is None


def test_a_fenced_owner_changes_nothing(store: RunStore, run: RunRecord) -> None:
    mine = _claimed(store, run)
    assert store.release(run.id, mine.epoch, "deploy")
    theirs = _claimed(store, run, "b")
    assert theirs.epoch == mine.epoch + 1
    before = _got(store, run.id)
    state, event = _end(mine, 2)
    assert store.archive([Checkpoint(run.id, mine.epoch, _events(run.id, 2, 5), '{"x":1}', 5)]) == {}
    assert store.owned({run.id: mine.epoch}) == {}
    assert store.release(run.id, mine.epoch, "deploy") is None
    with pytest.raises(Fenced):
        store.finish(run.id, mine.epoch, "completed", state, [event])
    assert _got(store, run.id) == before
    assert store.archived_head(run.id) == 1


def test_an_owner_whose_run_was_put_back_changes_nothing_either(store: RunStore, run: RunRecord) -> None:
    mine = _claimed(store, run)
    store.release(run.id, mine.epoch, "worker_lost")  # the epoch is still the same
    assert store.archive([Checkpoint(run.id, mine.epoch, _events(run.id, 2, 5))]) == {}
    with pytest.raises(Fenced):
        store.finish(run.id, mine.epoch, "completed", *(lambda s, e: (s, [e]))(*_end(mine, 2)))
    assert store.archived_head(run.id) == 1


def test_archiving_again_changes_nothing(store: RunStore, run: RunRecord) -> None:
    epoch = _claimed(store, run).epoch
    events = _events(run.id, 2, 6)
    for _ in range(2):
        assert store.archive([Checkpoint(run.id, epoch, events, '{"s":1}', 6)]) == {run.id: False}
    assert store.events(run.id, 1, 100) == events
    assert store.archive([Checkpoint(run.id, epoch, _events(run.id, 5, 8))]) == {run.id: False}
    assert [event.seq for event in store.events(run.id, 0, 100)] == list(range(1, 9))


def test_a_fenced_run_fails_alone_in_its_batch(apart: Services, store: RunStore) -> None:
    runs = [_claimed(store, pending_run(apart, announce=False)) for _ in range(3)]
    store.release(runs[1].id, runs[1].epoch, "deploy")
    store.request_cancel(runs[2].id)
    checkpoints = [Checkpoint(r.id, r.epoch, _events(r.id, 2, 3), '{"mine":true}', 3) for r in runs]
    assert store.archive(checkpoints) == {runs[0].id: False, runs[2].id: True}
    assert [store.archived_head(r.id) for r in runs] == [3, 1, 3]
    assert [_got(store, r.id).state_seq for r in runs] == [3, 1, 3]


TEXTS = {
    "quotes": 'it\'s a \\ "text"\n\t' * 200_000,
    "four bytes": "🚚\\'" * 300_000,
    "none": "",
    "what looks like a placeholder": "100 %s of %(it)s, %% and %" * 20_000,
    "just a piece": "x" * CHARS_AT_ONCE,
    "one more": "'" * (CHARS_AT_ONCE + 1),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_long_text_is_stored_to_the_letter(apart: Services, store: RunStore, run: RunRecord, name: str) -> None:
    assert apart.store.claim(run.id, "me", start=True) is not None
    state = {**initial(run.id), "last_seq": 1, "answer": {"text": TEXTS[name], "status": "draft"}}
    text = dumps(state)
    store.archive([Checkpoint(run.id, 1, (), text, 1)])
    found = store.get(run.id)
    assert found is not None
    assert (found.state_text, found.state) == (text, state)
    ended = {**state, "status": "completed", "output": [TEXTS[name]], "digest": "d"}
    store.finish(run.id, 1, "completed", ended, [])
    found = store.get(run.id)
    assert found is not None
    assert (found.state_text, found.output_text) == (dumps(ended), dumps([TEXTS[name]]))
    assert found.output == [TEXTS[name]]


def _waits_for(database: Database, pid: int) -> bool:
    """Whether somebody waits for a lock of this backend."""
    with database.session() as db:
        sql = "SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
        return db.execute_sql(sql, (pid,)).fetchone() is not None


def test_an_end_that_waited_for_its_row_sees_what_was_archived_meanwhile(
    url: str, database: Database, store: RunStore, run: RunRecord
) -> None:
    _claimed(store, run)
    (second,) = _events(run.id, 2, 2)
    state, third = _end(run, 3)
    with ThreadPoolExecutor(1) as pool, contextlib.closing(psycopg2.connect(url)) as other:
        cursor = other.cursor()
        cursor.execute("SELECT pg_backend_pid() FROM runs WHERE id = %s FOR UPDATE", (run.id,))
        (mine,) = cursor.fetchone() or (0,)
        insert = "INSERT INTO run_events (run_id, seq, type, ts, op, e) VALUES (%s, 2, %s, now(), %s, %s)"
        cursor.execute(insert, (run.id, second.type, second.op, second.text))
        finishing = pool.submit(store.finish, run.id, 1, "completed", state, [third])
        eventually(lambda: _waits_for(database, mine), what="its wait for the row")
        other.commit()
        finishing.result(10)
    assert [event.seq for event in store.events(run.id, 0, 10)] == [1, 2, 3]
    assert _got(store, run.id).status == "completed"


def test_greenlets_of_a_thread_that_is_not_patched_do_not_meet_in_a_session(
    database: Database, store: RunStore, run: RunRecord
) -> None:
    _claimed(store, run)
    losses, looks = database.losses, [True]

    def look() -> None:
        while looks[-1]:
            looks.append(_got(store, run.id).status == "running")
            gevent.sleep(0.001)

    looking = gevent.spawn(look)
    state, event = _end(run, 2)
    state["answer"] = {"text": "x" * 8_000_000, "status": "final"}
    gevent.spawn(store.finish, run.id, 1, "completed", state, [event]).get()
    looking.get()
    assert database.losses == losses
    assert len(looks) > 2, "they take turns outside of sessions"


def test_many_large_events_are_archived_whole_and_in_order(store: RunStore, run: RunRecord) -> None:
    assert store.claim(run.id, "me", start=True) is not None
    payload = {"text": "x" * (INSERTED_CHARS // 3)}
    events = [encode(run.id, seq, "custom.large", Outbound(payload)) for seq in range(2, 12)]
    (behind,) = store.archive([Checkpoint(run.id, 1, events[1:])]).values()
    assert isinstance(behind, Behind)
    assert store.archived_head(run.id) == 1, "nothing of what does not follow is archived, in however many pieces"
    store.archive([Checkpoint(run.id, 1, events)])
    found: list[Event] = []
    while page := store.events(run.id, 1 + len(found), 100):
        found += page
    assert found == events


def test_what_was_written_is_read_back_to_the_letter(apart: Services, store: RunStore) -> None:
    value = {"float": 1.0, "zero": -0.0, "tiny": 5e-324, "text": "\u2028 😀 \\u0000", "order": {"b": 1, "a": 2}}
    run = pending_run(apart, input=value, announce=False)
    assert repr(_got(store, run.id).input) == repr(value)
    event = encode(run.id, 2, "custom.tick", value)
    store.archive([Checkpoint(run.id, _claimed(store, run).epoch, [event])])
    assert store.events(run.id, 1, 1) == [event]


def test_an_end_is_one_transaction_with_every_event_before_it(store: RunStore, run: RunRecord) -> None:
    claimed = _claimed(store, run)
    state, end = _end(claimed, 4)
    store.finish(run.id, claimed.epoch, "completed", state, [*_events(run.id, 2, 3), end])
    finished = _got(store, run.id)
    assert (finished.status, finished.terminal, finished.owner, finished.state_seq) == ("completed", True, None, 4)
    assert (finished.output, finished.digest, finished.state) == ({"x": 1.0}, "d", state)
    assert [event.seq for event in store.events(run.id, 0, 10)] == [1, 2, 3, 4]
    with pytest.raises(Fenced):
        store.finish(run.id, claimed.epoch, "failed", state, [end])
    assert _got(store, run.id) == finished


def test_one_idempotency_key_makes_one_run_however_many_ask(apart: Services, store: RunStore) -> None:
    key = new_id("key")
    runs = _at_once(20, lambda n: pending_run(apart, announce=False, idempotency_key=key, request_hash=str(n)))
    assert len({run.id for run in runs}) == 1
    other = Principal("dev", "somebody-else")
    assert pending_run(apart, announce=False, idempotency_key=key, principal=other).id != runs[0].id
    assert store.archived_head(runs[0].id) == 1


def test_a_run_is_found_by_its_own_principal_only(store: RunStore, run: RunRecord) -> None:
    assert store.find(Principal("dev", "dev"), run.id) == run
    assert store.find(Principal("dev", "other"), run.id) is None
    assert store.find(Principal("other", "dev", admin=True), run.id) is None
    assert store.page(Principal("other", "dev"), {}, None, 10) == []


def test_a_cancel_request_stays_and_does_not_touch_a_finished_run(store: RunStore, run: RunRecord) -> None:
    claimed = _claimed(store, run)
    assert store.owned({run.id: claimed.epoch}) == {run.id: False}
    asked = store.request_cancel(run.id)
    assert asked is not None
    assert asked.cancel_requested
    assert store.owned({run.id: claimed.epoch}) == {run.id: True}
    state, event = _end(claimed, 2)
    store.finish(run.id, claimed.epoch, "completed", state, [event])
    before = _got(store, run.id)
    assert store.request_cancel(run.id) == before
    assert store.request_cancel("run_unknown") is None


def test_only_an_owner_whose_counter_stands_still_loses_its_runs(apart: Services, store: RunStore) -> None:
    alive, dead, rowless = (new_id("w") for _ in range(3))
    runs = {owner: _claimed(store, pending_run(apart, announce=False), owner) for owner in (alive, dead, rowless)}
    url = apart.config.database_url
    with contextlib.closing(Beats(url, alive)) as living, contextlib.closing(Beats(url, dead)) as dying:
        living.beat()
        dying.beat()
        seen = {beat.owner: beat for beat in store.owner_beats()}
        living.beat()
    assert seen[rowless].beats is None
    assert store.release_lost(seen[alive]) == []
    (lost,) = store.release_lost(seen[dead])
    assert (lost.id, lost.status, lost.attempt, lost.requeue_reason) == (runs[dead].id, "pending", 1, "worker_lost")
    assert [run.id for run in store.release_lost(seen[rowless])] == [runs[rowless].id]
    assert store.release_lost(seen[dead]) == [], "once"
    apart.registry.remove_worker(alive)


def test_a_forgotten_run_is_handed_to_one_caller(apart: Services, store: RunStore, url: str) -> None:
    runs = {pending_run(apart, announce=False).id for _ in range(20)}
    ids = ", ".join(f"'{run_id}'" for run_id in runs)
    execute(url, f"UPDATE runs SET enqueued_at = now() - interval '1 hour' WHERE id IN ({ids})")
    taken = [run.id for batch in _at_once(5, lambda _: store.take_forgotten(1800, 100)) for run in batch]
    assert sorted(taken) == sorted(runs)


def test_only_a_finished_run_can_be_erased(store: RunStore, run: RunRecord) -> None:
    claimed = _claimed(store, run)
    assert not store.erase(run.id)
    state, event = _end(claimed, 2)
    store.finish(run.id, claimed.epoch, "completed", state, [event])
    assert store.erase(run.id)
    assert store.get(run.id) is None
    assert store.events(run.id, 0, 10) == []
    assert not store.erase(run.id)


def test_agents_and_keys_are_kept(database: Database) -> None:
    registry = Registry(database)
    record = AgentRecord("a", {"type": "object"}, "gevent", "1")
    registry.put_agent(record)
    registry.put_agent(replace(record, version="2"))
    assert registry.agent("a") == replace(record, version="2")
    assert registry.agent("b") is None
    who = Principal("t", "u", admin=True)
    key = registry.create_key(who)
    assert registry.principal(key) == who
    assert registry.principal(key + "x") is None
    assert registry.principal("\ud800") is None


def test_migrations_are_applied_once_however_many_apply_them(environment: dict[str, str]) -> None:
    with own_databases(environment, migrated=False) as urls:
        applied = _at_once(6, lambda _: migrate(urls["DATABASE_URL"]))
        assert sorted(map(len, applied))[:5] == [0] * 5
        assert max(map(len, applied)) >= 1
        assert migrate(urls["DATABASE_URL"]) == []


def test_a_postgres_that_cannot_be_reached_is_said_so() -> None:
    database = Database(f"postgresql://x@127.0.0.1:{free_port()}/x", 1)
    with pytest.raises(StoreUnavailable):
        RunStore(database).get("run_1")
    with pytest.raises(StoreUnavailable):
        database.ping()


def test_who_finds_no_free_connection_in_time_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "POOL_WAIT_SECONDS", 1)
    database = Database(url, 2)
    held, free = threading.Barrier(3), threading.Event()

    def hold(_: int) -> None:
        with database.session():
            held.wait()
            free.wait(10)

    with ThreadPoolExecutor(2) as pool:
        holders = [pool.submit(hold, n) for n in range(2)]
        held.wait()
        with pytest.raises(StoreUnavailable):
            database.ping()
        free.set()
        for holder in holders:
            holder.result()
    database.ping()
    database.close()


def test_connections_that_were_cut_are_replaced(url: str) -> None:
    database = Database(url, 3)
    _at_once(3, lambda _: _sleep(database, 0.1))
    cut = "datname = current_database() AND query LIKE 'SELECT pg_sleep(0.1)'"
    execute(url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {cut}")
    with contextlib.suppress(StoreUnavailable):
        database.ping()  # the first may meet a dead one, which takes its pool mates with it
    for _ in range(4):
        database.ping()
    database.close()


def _sleep(database: Database, seconds: float) -> None:
    with database.session() as db:
        db.execute_sql(f"SELECT pg_sleep({seconds})")


def test_an_error_of_ones_own_gives_the_connection_back(url: str) -> None:
    database = Database(url, 1)
    for atomic in (False, True):
        for _ in range(3):
            with pytest.raises(RuntimeError, match="mine"):
                _fail_inside(database, atomic)
    database.ping()
    database.close()


def _fail_inside(database: Database, atomic: bool) -> None:
    with database.session(atomic=atomic) as db:
        db.execute_sql("SELECT 1")
        raise RuntimeError("mine")


def test_who_stops_in_the_middle_of_a_transaction_does_not_hold_its_rows_for_ever(url: str) -> None:
    database = Database(url, 1)
    for _ in range(2):
        with database.session(atomic=True) as db:
            assert 0 < _idle_milliseconds(db) <= 15_000
        with database.session() as db:
            assert _idle_milliseconds(db) == 0, "outside a transaction it holds none, and may idle"
    database.close()


def _idle_milliseconds(db: Any) -> int:
    """How long Postgres lets a transaction wait for its next statement; 0: for ever."""
    setting = "SELECT setting::int FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'"
    milliseconds: int = db.execute_sql(setting).fetchone()[0]
    return milliseconds


KILLED = """
from gevent import monkey; monkey.patch_all()
from app.storage.cooperative import make_psycopg_cooperative; make_psycopg_cooperative()
import sys, gevent
from app.storage.run_store import Database
from workers.execution.interrupts import Cancelled

database = Database(sys.argv[1], 2)

def query(atomic):
    with database.session(atomic=atomic) as db:
        db.execute_sql("SELECT 1")
        db.execute_sql("SELECT pg_sleep(60)")

def ping():
    database.ping()
    return True

for atomic in (False, True):
    for _ in range(3):
        greenlets = [gevent.spawn(query, atomic) for _ in range(2)]
        gevent.sleep(0.1)  # both are in their query
        waiting = gevent.spawn(query, atomic)  # and a third waits for a connection
        gevent.sleep(0.05)
        gevent.killall([waiting, *greenlets], Cancelled(), timeout=3)
        for greenlet in (waiting, *greenlets):
            assert greenlet.ready(), "it did not stop"
            assert isinstance(greenlet.exception, Cancelled), (atomic, greenlet.exception, greenlet.value)
        assert not database.peewee._in_use, database.peewee._in_use
        with gevent.Timeout(3):
            pings = gevent.joinall([gevent.spawn(ping) for _ in range(8)])
            assert all(ping.value for ping in pings), [ping.exception for ping in pings]
print("healthy")
"""


def test_a_greenlet_killed_inside_a_query_takes_its_connection_with_it(url: str) -> None:
    command = [sys.executable, "-c", KILLED, url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "healthy\n", done.stderr


def test_a_slow_query_of_one_greenlet_does_not_hold_up_the_others(url: str) -> None:
    script = """
from gevent import monkey; monkey.patch_all()
from app.storage.cooperative import make_psycopg_cooperative; make_psycopg_cooperative()
import sys, time, gevent
from app.storage.run_store import Database

database, turns = Database(sys.argv[1], 1), 0

def query():
    with database.session() as db:
        db.execute_sql("SELECT pg_sleep(0.5)")

slow = gevent.spawn(query)
while not slow.ready():
    turns += 1
    gevent.sleep(0.01)
print("turns", turns > 20)
"""
    command = [sys.executable, "-c", script, url]
    done: Any = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "turns True\n", done.stderr


def test_a_postgres_that_accepts_and_never_answers_is_unavailable_in_time() -> None:
    script = """
from gevent import monkey; monkey.patch_all()
import sys, time, gevent
from app.errors import StoreUnavailable
from app.storage import cooperative
from app.storage.run_store import Database

cooperative.make_psycopg_cooperative(silence_seconds=1)
database = Database(f"postgresql://nobody@127.0.0.1:{sys.argv[1]}/none", 1)
begun = time.monotonic()
try:
    database.ping()
except StoreUnavailable:
    print("unavailable", time.monotonic() - begun < 3)
"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        command = [sys.executable, "-c", script, str(silent.getsockname()[1])]
        done: Any = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "unavailable True\n", done.stderr


def test_a_page_is_newest_first_and_filtered(store: RunStore, apart: Services) -> None:
    who = Principal("t", new_id("user"))
    runs = [pending_run(apart, "ab"[n % 2], announce=False, principal=who, session_id=f"s{n % 3}") for n in range(6)]
    ids = [run.id for run in reversed(runs)]
    assert [run.id for run in store.page(who, {}, None, 10)] == ids
    assert [run.id for run in store.page(who, {}, ids[1], 2)] == ids[2:4]
    assert [run.id for run in store.page(who, {"agent": "a"}, None, 10)] == ids[1::2]
    assert [run.id for run in store.page(who, {"session_id": "s0", "agent": "b"}, None, 10)] == [runs[3].id]
    assert store.page(who, {"status": "running"}, None, 10) == []
    assert len(store.page(who, {"since": runs[3].created_at}, None, 10)) == 3


def test_ids_of_one_millisecond_sort_as_they_were_made() -> None:
    ids = [new_id("run") for _ in range(10_000)]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("value", [object(), {1, 2}, {"a": 1}, [object()]])
@pytest.mark.parametrize("atomic", [False, True])
def test_a_value_without_a_form_is_refused_and_costs_the_others_no_connection(
    database: Database, value: object, atomic: bool
) -> None:
    database.ping()
    before = database.losses
    with pytest.raises(Refused), database.session(atomic=atomic) as db:
        db.execute_sql("SELECT %s", (value,))
    assert database.losses == before


@pytest.mark.parametrize("error", [psycopg2.InterfaceError("connection already closed"), psycopg2.OperationalError("")])
def test_an_error_of_the_connection_itself_counts_as_its_loss(database: Database, error: Exception) -> None:
    before = database.losses
    with pytest.raises(StoreUnavailable), database.session():
        raise error
    assert database.losses == before + 1
