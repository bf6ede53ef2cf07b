"""The client in other kinds of processes: forked after it was made, patched by gevent, killed."""

import json
import os
import subprocess
import sys

from runtail.client import Runtail
from tests.harness import ROOT, Stack
from tests.stored import ended

WRITE = "with client.run() as run: run.output = run.stream(['a', 'b'])"


def run_python(live: Stack, code: str) -> list[str]:
    """The ids of runs that a process of its own prints, one to a line. It has nothing to complain of."""
    env = {**os.environ, "RUNTAIL_URL": live.url}
    quiet = ["-W", "error", "-W", "ignore::ResourceWarning"]  # they leave their clients open
    done = subprocess.run(
        [sys.executable, *quiet, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_a_client_made_and_used_before_a_fork_works_on_both_sides(live: Stack) -> None:
    code = f"""
import os
from runtail.client import Runtail
client = Runtail(os.environ["RUNTAIL_URL"])
{WRITE}
print(run.id, flush=True)
child = os.fork()
for _ in range(3):
    {WRITE}
    os.write(1, (run.id + "\\n").encode())
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    os._exit(0)
"""
    written = run_python(live, code)
    assert len(set(written)) == 7
    for run_id in written:
        assert ended(live, run_id).output == "ab"


def test_a_process_forked_in_the_block_neither_writes_nor_ends_the_run(live: Stack) -> None:
    code = """
import os, sys
from runtail import WriterLost
from runtail.client import Runtail
client = Runtail(os.environ["RUNTAIL_URL"])
with client.run() as run:
    with run.step("Fork"), run.message("system") as message:
        message.write("Forking.")
        if (child := os.fork()) == 0:
            try:
                run.emit("custom.child", {})
            except WriterLost:
                sys.exit(7)  # out of the parent's blocks
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    run.emit("custom.parent", {})
print(run.id)
"""
    (run_id,) = run_python(live, code)
    ended(live, run_id)
    types = [event.type for event in live.services.store.events(run_id, 0, 100)]
    said = ["message.started", "message.delta", "message.completed"]
    assert types[2:-1] == ["step.started", *said, "step.completed", "custom.parent"]


def test_it_works_where_gevent_has_patched_everything(live: Stack) -> None:
    code = f"""
from gevent import monkey; monkey.patch_all()
import gevent, os, threading
from runtail.client import Runtail
client = Runtail(os.environ["RUNTAIL_URL"])
def work():
    {WRITE}
    print(run.id, flush=True)
gevent.joinall([gevent.spawn(work) for _ in range(20)], raise_error=True)
"""
    written = run_python(live, code)
    assert len(set(written)) == 20
    for run_id in written:
        assert ended(live, run_id).output == "ab"


def test_a_process_that_is_interrupted_fails_its_run(live: Stack) -> None:
    code = """
import os, signal
from runtail.client import Runtail
client = Runtail(os.environ["RUNTAIL_URL"])
try:
    with client.run() as run:
        print(run.id, flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        run.sleep(30)
except KeyboardInterrupt:
    pass
"""
    (run_id,) = run_python(live, code)
    assert ended(live, run_id, "failed").error["code"] == "agent_error"


def test_nothing_of_the_server_is_imported(live: Stack) -> None:
    code = """
import sys, runtail.client
theirs = {"app", "workers", "flask", "redis", "rq", "gevent", "peewee", "marshmallow"}
print(sorted(theirs & set(sys.modules)))
"""
    assert run_python(live, code) == ["[]"]


def test_a_ref_is_plain_text_that_any_queue_carries(client: Runtail, live: Stack) -> None:
    opened = client.open(input={"month": "Mäi"})
    carried = json.loads(json.dumps({"ref": opened.ref}))["ref"]
    with client.run(ref=carried) as run:
        pass
    assert run.id == opened.run_id
    ended(live, run.id)
