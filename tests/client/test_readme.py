"""The README's first case, as it stands there: a view, an RQ job, a script and a follower."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from redis import Redis
from rq import Callback, Queue, Retry
from rq.command import send_stop_job_command

from runtail.client import Runtail
from tests.conftest import StackMaker
from tests.harness import ROOT, Process, Stack
from tests.stored import ended, reach

README = ROOT / "clients" / "python" / "README.md"


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """A server."""
    stack = module_stack()
    stack.start_web()
    stack.start_worker()
    return stack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a file for each block of Python that names one."""
    folder = tmp_path_factory.mktemp("readme")
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", README.read_text(), re.DOTALL):
        compile(code, name, "exec")
        (folder / name).write_text(code)
    return folder


def call(web: Stack, folder: Path, *command: str) -> str:
    """What a program says."""
    env = {**os.environ, "RUNTAIL_URL": web.url, "REDIS_URL": web.env["REDIS_URL"], "PYTHONPATH": str(folder)}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_view_answers_at_once_and_the_plain_worker_writes(web: Stack, folder: Path) -> None:
    post = "print(views.app.test_client().post('/reports', json={'month': 'May'}).json['run_id'])"
    run_id = call(web, folder, sys.executable, "-c", f"import views; {post}").strip()
    assert web.http.get(f"/runs/{run_id}", headers={"Runtail-User": "alice"}).json()["status"] == "running"
    rq = Path(sys.executable).with_name("rq")
    call(web, folder, str(rq), "worker", "--burst", "--url", web.env["REDIS_URL"])
    run = ended(web, run_id)
    assert run.output == "Rent: 900 EUR. Paper: 12 EUR. "
    assert [step["status"] for step in run.state["plan"]] == ["completed", "completed"]


def test_a_job_whose_module_cannot_be_imported_fails_its_run(web: Stack, folder: Path) -> None:
    enqueue = """
import os
from redis import Redis
from rq import Callback, Queue, Retry
from failures import client
opened = client.open(user="alice", input={"month": "May"})
queue = Queue(connection=Redis.from_url(os.environ["REDIS_URL"]))
failed = Callback("failures.run_failed")
queue.enqueue("no_such_module.report", "May", ref=opened.ref, retry=Retry(max=1), on_failure=failed)
print(opened.run_id)
"""
    run_id = call(web, folder, sys.executable, "-c", enqueue).strip()
    call(web, folder, str(Path(sys.executable).with_name("rq")), "worker", "--burst", "--url", web.env["REDIS_URL"])
    assert ended(web, run_id, "failed").error == {"code": "job_failed", "message": "The job failed."}


def test_a_job_that_is_stopped_in_rq_fails_its_run(web: Stack, folder: Path) -> None:
    env = {"RUNTAIL_URL": web.url, "PYTHONPATH": f"{folder}:{ROOT}"}
    command = [str(Path(sys.executable).with_name("rq")), "worker", "--url", web.env["REDIS_URL"], "stopped"]
    worker = Process("rq", command, {**os.environ, **env}, web.folder)
    try:
        with Redis.from_url(web.env["REDIS_URL"]) as redis, Runtail(web.url) as client:
            opened = client.open(user="alice")
            about = {"ref": opened.ref, "retry": Retry(max=2), "on_stopped": Callback("failures.run_stopped")}
            job = Queue("stopped", connection=redis).enqueue("tests.client.jobs.ticks", 60, **about)
            reach(web, opened.run_id, "custom.tick")
            send_stop_job_command(redis, job.id)
            assert ended(web, opened.run_id, "failed").error["code"] == "job_stopped"
    finally:
        worker.stop(seconds=20)


def test_a_report_is_shown_later(web: Stack, folder: Path) -> None:
    show = """
from reports import client, report
from later import shown
opened = client.open(user="alice", input={"month": "May"})
print(shown(opened.ref)["status"])
report("May", ref=opened.ref)
again = shown(opened.ref)
print(again["status"])
print(again["watch_url"])
print(client.for_user("alice").read(opened.run_id)["output"])
"""
    waiting, done, watch_url, output = call(web, folder, sys.executable, "-c", show).splitlines()
    assert (waiting, done, output) == ("running", "completed", "Rent: 900 EUR. Paper: 12 EUR. ")
    assert httpx.get(watch_url, headers={"Accept": "application/json"}).json()["terminal"]


def test_the_script_writes_and_the_follower_reads(web: Stack, folder: Path) -> None:
    run_id = call(web, folder, sys.executable, "script.py").strip()
    assert ended(web, run_id).output == "Rent: 900 EUR. Paper: 12 EUR. "
    mine = web.start("emit", {"count": 1})
    assert call(web, folder, sys.executable, "follow.py", mine).splitlines()[-1].startswith("run.completed")
