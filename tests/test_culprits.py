"""A run that is known to have ended its worker is charged at once, and its neighbours are not; others never are."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.storage.run_queue import NO_ISOLATED
from app.storage.run_store import Beats
from app.wiring import Services
from tests.conftest import StackMaker
from tests.harness import READY_SECONDS, ROOT, Process, Stack, eventually, pending_run
from tests.stored import begin, ended, payloads, reach, row
from workers.execution.named import run_in_dump

BLOCKED = """
import runpy, sys
import workers.first
import workers.coroner
coroner = workers.coroner.appoint()
workers.coroner.appoint = lambda: coroner
workers.first.prepare()
workers.first.prepare = lambda: None
from gevent import monkey
monkey.patch_all()
import workers.watchdog
workers.watchdog.STALLED_SECONDS = 2.0
sys.argv = ["workers"]
runpy.run_module("workers", run_name="__main__")
"""
"""A worker that is ended sooner by what blocks it."""
CRASHES = {
    "segfault in a branch": -signal.SIGSEGV,
    "abort in a tool": -signal.SIGABRT,
    "block": 70,
}


def _neighbours(stack: Stack) -> tuple[list[str], Path]:
    """Runs that go on until the gate is there."""
    gate = stack.folder / "gate"
    run_ids = [begin(stack, "steady", count=1, interval=0.05, gate=str(gate)) for _ in range(3)]
    for run_id in run_ids:
        reach(stack, run_id, "custom.tick")
    return run_ids, gate


def _worker(stack: Stack, way: str) -> Process:
    if way != "block":
        return stack.start_worker()
    process = stack._start("worker", [sys.executable, "-c", BLOCKED])
    eventually(lambda: " is ready: " in process.log.read_text(), READY_SECONDS, "readiness of the worker")
    return process


@pytest.mark.parametrize("way", CRASHES)
def test_a_known_culprit_is_charged_at_once_and_its_neighbours_are_not(stack: StackMaker, way: str) -> None:
    server = stack(DB_POOL_SIZE="2", RUN_MAX_ATTEMPTS="1")
    victim = _worker(server, way)
    neighbours, gate = _neighbours(server)
    culprit = begin(server, "kill_worker", way=way)
    assert victim.popen.wait(60) == CRASHES[way]
    server.start_worker()
    run = ended(server, culprit, "failed")
    assert run.error == {"code": "worker_lost", "message": "The run ended its worker 1 times in a row."}
    gate.touch()
    for run_id in neighbours:
        assert ended(server, run_id).attempt == 1
        assert [step["attempt"] for step in payloads(server, run_id, "run.step")] == [1]


def test_nobody_is_charged_with_a_signal_while_no_agent_is_executed(stack: StackMaker) -> None:
    server = stack(DB_POOL_SIZE="2")
    victim = server.start_worker()
    neighbours, gate = _neighbours(server)
    children = psutil.Process(victim.pid).children()
    os.kill(victim.pid, signal.SIGSEGV)
    assert victim.popen.wait(10) == -signal.SIGSEGV
    server.start_worker()
    gate.touch()
    for run_id in neighbours:
        assert ended(server, run_id).attempt == 1
    eventually(lambda: not any(child.is_running() for child in children), what="the end of what watched the worker")


def test_nothing_outlives_a_worker_that_ends_in_order_or_is_killed(stack: StackMaker) -> None:
    server = stack(DB_POOL_SIZE="2")
    for way in (Process.stop, Process.kill):
        worker = server.start_worker()
        children = psutil.Process(worker.pid).children()
        assert len(children) == 1
        children[0].terminate()  # as a platform does that signals every process
        way(worker)
        eventually(lambda children=children: not children[0].is_running(), what="the end of what watched the worker")


# What it costs, in the rows.


def _lost(services: Services, run_id: str, *, culprit: bool = False, isolated: bool = False) -> Any:
    """Claim the run for a worker, and call that lost."""
    owner = f"w-{time.monotonic_ns()}"
    beats = Beats(services.config.database_url, owner, isolated=isolated)
    beats.beat()
    assert services.store.claim(run_id, owner, start=True)
    if culprit:
        beats.blame(run_id)
    beats.close()
    (seen,) = [beat for beat in services.store.owner_beats() if beat.owner == owner]
    (released,) = services.store.release_lost(seen)
    services.registry.remove_worker(owner)
    return released.attempt, released.losses


def _record(services: Services, run_id: str, op: str) -> None:
    sql = """INSERT INTO run_ops (run_id, op, epoch, kind, name, arguments, fingerprint, failed, result)
             SELECT id, %s, epoch, 'now', '', '[]', '', false, '0' FROM runs WHERE id = %s"""
    with services.database.session() as db:
        db.execute_sql(sql, (op, run_id))


def test_losses_in_a_row_count_until_something_is_recorded(apart: Services) -> None:
    run_id = pending_run(apart).id
    assert _lost(apart, run_id) == (1, 1)
    assert _lost(apart, run_id) == (1, 2)
    assert apart.store.claim(run_id, "w", start=True)
    _record(apart, run_id, "1")
    released = apart.store.release(run_id, row_of(apart, run_id).epoch, "deploy")
    assert released is not None
    assert (released.losses, released.alone) == (0, False)
    assert _lost(apart, run_id) == (1, 1)


def row_of(services: Services, run_id: str) -> Any:
    found = services.store.get(run_id)
    assert found is not None
    return found


def test_charges_in_a_row_count_until_something_is_recorded(apart: Services) -> None:
    run_id = pending_run(apart).id
    assert _lost(apart, run_id, culprit=True) == (2, 0)
    assert _lost(apart, run_id) == (2, 1), "nobody is charged with this one"
    assert _lost(apart, run_id, culprit=True) == (3, 1)
    assert apart.store.claim(run_id, "w", start=True)
    _record(apart, run_id, "1")
    apart.store.release(run_id, row_of(apart, run_id).epoch, "deploy")
    assert _lost(apart, run_id, culprit=True) == (2, 0)


def test_a_culprit_goes_on_in_a_process_of_its_own_where_there_is_a_worker_for_it(apart: Services) -> None:
    run_id = pending_run(apart).id
    beats = Beats(apart.config.database_url, "isolated", isolated=True)
    beats.beat()
    beats.close()
    assert _lost(apart, run_id, culprit=True) == (2, 2)
    assert row_of(apart, run_id).alone
    apart.registry.remove_worker("isolated")


def test_a_run_alone_that_takes_the_parent_of_its_process_along_is_charged_at_the_third_time(apart: Services) -> None:
    run_id = pending_run(apart).id
    assert _lost(apart, run_id, isolated=True) == (1, 1)
    assert _lost(apart, run_id, isolated=True) == (1, 2)
    assert _lost(apart, run_id, isolated=True)[0] == 2


def test_a_run_that_waits_for_an_isolated_worker_where_there_is_none_is_told_of(stack: StackMaker) -> None:
    server = stack(DB_POOL_SIZE="2")
    server.start_web()
    worker = server.start_worker()
    assert NO_ISOLATED not in server.http.get("/readyz").json()["warnings"]
    run_id = pending_run(server.services, "steady", {"count": 1}).id
    for _ in range(2):
        _lost(server.services, run_id)
    server.services.queue.enqueue(run_id, 2, "runs")
    eventually(lambda: row(server, run_id).queue == "isolated", 30, "the hand-over")
    eventually(lambda: NO_ISOLATED in server.http.get("/readyz").json()["warnings"], 10, "the warning")
    assert server.http.get("/readyz").status_code == 200
    eventually(lambda: NO_ISOLATED in worker.log.read_text(), 10, "the warning in the log")
    assert row(server, run_id).status == "pending"
    server.start_worker("--isolated")
    assert ended(server, run_id).attempt == 1
    assert NO_ISOLATED not in server.http.get("/readyz").json()["warnings"]


def test_a_run_that_was_lost_twice_and_is_cancelled_ends_without_an_isolated_worker(stack: StackMaker) -> None:
    server = stack(DB_POOL_SIZE="2")
    run_id = pending_run(server.services, "steady", {"count": 1}).id
    for _ in range(2):
        _lost(server.services, run_id)
    server.services.store.request_cancel(run_id)
    server.start_worker()
    ended(server, run_id, "cancelled")


def test_a_function_that_is_named_like_a_run_is_none() -> None:
    code = """
import faulthandler, sys
from workers.execution.named import call_named

def run_forever():
    faulthandler.dump_traceback(sys.stdout)

call_named("run_" + "0" * 26, run_forever)
"""
    dump = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "in run_forever" in dump
    assert run_in_dump(dump) == "run_" + "0" * 26
    assert run_in_dump('  File "asyncio/base_events.py", line 3 in run_forever\n') is None
