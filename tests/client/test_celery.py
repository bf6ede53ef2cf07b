"""Tasks of Celery, as released: sent by its beat with the same ref each time, and tried again."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery

from runtail.client import Runtail
from tests.conftest import StackMaker
from tests.harness import ROOT, Process, Stack, eventually
from tests.stored import ended

CELERY = [sys.executable, "-m", "celery", "-A", "tests.client.tasks", "worker", "--pool", "solo", "--loglevel", "INFO"]
Start = Callable[..., Process]


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    """A server."""
    server = module_stack()
    server.start_web()
    return server


@pytest.fixture
def celery(server: Stack, tmp_path: Path) -> Iterator[Start]:
    """Starts a worker of Celery."""
    started: list[Process] = []

    def start(*options: str, **settings: str) -> Process:
        urls = {"RUNTAIL_URL": server.url, "REDIS_URL": server.env["REDIS_URL"], "PYTHONPATH": str(ROOT)}
        process = Process("celery", [*CELERY, *options], {**os.environ, **urls, **settings}, server.folder)
        started.append(process)
        return process

    yield start
    for process in started:
        process.stop(seconds=20)


def completed(server: Stack, session: str) -> list[str]:
    """The runs of that session that were completed."""
    listed = server.http.get("/runs", params={"session": session, "limit": 50}).json()["runs"]
    return [run["run_id"] for run in listed if run["status"] == "completed"]


def test_each_time_that_beat_sends_a_task_is_a_run(server: Stack, celery: Start, tmp_path: Path) -> None:
    with Runtail(server.url) as client:
        opened = client.open(session="ses_beat")
    celery("-B", "--schedule", str(tmp_path / "schedule"), BEAT_REF=opened.ref)
    eventually(lambda: len(completed(server, "ses_beat")) >= 3, 40, "three runs")
    assert opened.run_id in completed(server, "ses_beat")


def test_the_tries_of_a_task_that_was_sent_again_have_one_run(server: Stack, celery: Start, tmp_path: Path) -> None:
    with Runtail(server.url) as client:
        opened = client.open(session="ses_again")
        with client.run(ref=opened.ref) as run:
            run.output = "of the first task"
    celery()
    with Celery(broker=server.env["REDIS_URL"]) as app:
        app.send_task("tests.client.tasks.fragile", [str(tmp_path)], {"ref": opened.ref})
    new, first = eventually(lambda: found if len(found := completed(server, "ses_again")) == 2 else None, 40)
    assert first == opened.run_id
    assert ended(server, new).attempt == 2
    assert len(server.http.get("/runs", params={"session": "ses_again"}).json()["runs"]) == 2


@pytest.mark.parametrize(("name", "statuses"), [("fragile", ["completed"]), ("unaware", ["failed"])])
def test_a_task_that_is_tried_again_does_its_work(
    server: Stack, celery: Start, tmp_path: Path, name: str, statuses: list[str]
) -> None:
    celery()
    app = Celery(broker=server.env["REDIS_URL"])
    app.send_task(f"tests.client.tasks.{name}", [str(tmp_path)])
    eventually(lambda: (tmp_path / "done").exists(), 40, "the second try")
    app.close()
    listed = eventually(
        lambda: [
            run
            for run in server.http.get("/runs", params={"session": f"ses_{name}"}).json()["runs"]
            if run["status"] != "running"
        ]
    )
    assert [run["status"] for run in listed] == statuses, "the tries of a task have one run"
    assert ended(server, listed[0]["run_id"], statuses[0]).attempt == (2 if name == "fragile" else 1)
    with server.services.database.session() as db:
        sql = "SELECT max(lease_seconds) FROM writers WHERE run_id = %s"
        (lease,) = db.execute_sql(sql, (listed[0]["run_id"],)).fetchone()
    assert lease == (1 + 60 + (3_600 if name == "fragile" else 0)), "a lost task is sent again after an hour"
