"""The blocking apps of examples/, before and after: under sync workers, Django's own server and a plain `rq worker`."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from redis import Redis
from rq import Queue, Worker

from tests.conftest import StackMaker, own_databases
from tests.harness import ROOT, Process, Stack, eventually, free_port

EXAMPLES = ROOT / "examples"
BEFORE, AFTER = (EXAMPLES / "legacy-flask" / name for name in ("before", "after"))
DJANGO = EXAMPLES / "legacy-django"
DIFF = EXAMPLES / "legacy-flask" / "streaming.diff"
RQ = [str(Path(sys.executable).parent / "rq"), "worker"]
PAUSE_SECONDS = 0.25
TEXT = """Ann has ordered 3 times.
A desk, for 480 euros.
A lamp, for 60 euros.
A chair, for 210 euros.
That makes 750 euros.
"""
REPORT = {"customer": "ann", "total": 750, "text": TEXT}
STEPS = ["Read the orders", "Add them up", "Write the report"]
LEASE_SECONDS = 3
JANITOR_SECONDS = 4
"""More than it takes to look at every lease twice."""
STREAMS = 10


class Legacy:
    """An old app, its queue, and a Runtail beside it."""

    def __init__(self, runtail: Stack, redis_url: str) -> None:
        self.runtail = runtail
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.redis = Redis.from_url(redis_url)
        self.queue = Queue(connection=self.redis)
        self._env = {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "REDIS_URL": redis_url,
            "REPORT_PAUSE_SECONDS": str(PAUSE_SECONDS),
            "RUNTAIL_URL": runtail.url,
        }
        self._processes: list[Process] = []

    @property
    def rq(self) -> psutil.Process:
        """The worker that was started last."""
        return psutil.Process(next(process.pid for process in reversed(self._processes) if "rq-" in process.log.name))

    def flask(self, folder: Path = AFTER) -> None:
        """Start gunicorn with two sync workers."""
        kind = ["--worker-class", "sync", "--workers", "2", "--no-control-socket"]
        self._serve(folder, [sys.executable, "-m", "gunicorn", *kind, "--bind", f"127.0.0.1:{self.port}", "app:app"])

    def django(self) -> None:
        """Start Django's development server."""
        self._env["PYTHONPATH"] = str(AFTER)
        self._serve(DJANGO, [sys.executable, "shop.py", "runserver", f"127.0.0.1:{self.port}", "--noreload"])

    def worker(self) -> None:
        """Start `rq worker` and wait until it is there."""
        self._run("rq", AFTER, RQ)
        eventually(lambda: Worker.count(connection=self.redis), 20, "the rq worker")

    def idle(self) -> None:
        """Wait until nothing is queued or being made."""
        eventually(lambda: self.queue.count == 0 and not self.rq.children(), what="the end of all jobs")

    def _serve(self, folder: Path, command: list[str]) -> None:
        process = self._run("legacy", folder, command)

        def answers() -> bool:
            assert process.popen.poll() is None, process.log.read_text()[-3000:]
            try:
                return self.http.get("/").status_code > 0
            except httpx.TransportError:
                return False

        eventually(answers, 20, "readiness of the app")

    def _run(self, name: str, folder: Path, command: list[str]) -> Process:
        process = Process(name, ["env", "-C", str(folder), *command], self._env, self.runtail.folder)
        self._processes.append(process)
        return process

    def close(self) -> None:
        """Leave nothing behind."""
        self.http.close()
        self.redis.close()
        for process in self._processes:
            if process.popen.poll() is None:
                family = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                for child in family:
                    child.kill()

    # What its users do.

    def report(self, accept: str = "application/json") -> httpx.Response:
        """Ask for a report and wait for it."""
        return self.http.post("/report", data={"customer": "ann"}, headers={"Accept": accept})

    def live(self) -> "Live":
        """Ask for a report that is made live."""
        answer = self.http.post("/live", data={"customer": "ann"})
        if answer.status_code == 303:
            page, _, token = answer.headers["Location"].partition("#")
            run_id = page.rpartition("/")[2]
            return Live(self, run_id, f"{self.runtail.url}/runs/{run_id}/events?watch_token={token}")
        assert answer.status_code == 202, answer.text
        return Live(self, **answer.json())


class Live:
    """A report that is being made, as its page sees it."""

    def __init__(self, legacy: Legacy, run_id: str, watch_url: str) -> None:
        self._legacy = legacy
        self.run_id = run_id
        self.watch_url = watch_url

    def events(self) -> Iterator[dict[str, Any]]:
        """As they come, without a key."""
        headers = {"Accept": "application/x-ndjson"}
        with httpx.stream("GET", self.watch_url, headers=headers, timeout=30) as window:
            assert window.status_code == 200, window.read()
            yield from (json.loads(line) for line in window.iter_lines() if line)

    def reaches(self, type: str) -> None:
        """Wait for an event of that type."""
        assert any(event["type"] == type for event in self.events())

    def horse(self) -> psutil.Process:
        """The process in which the worker makes it."""
        worker = self._legacy.rq
        return eventually(lambda: next(iter(worker.children()), None), what="the work horse")

    def stop(self) -> None:
        """Press Stop."""
        assert self._legacy.http.post(f"/live/{self.run_id}/stop").status_code == 204

    def ended(self) -> dict[str, Any]:
        """The run, when it has ended: the app's user has none of Runtail's keys."""
        *_, last = self.events()
        store = self._legacy.runtail.services.store
        run = store.get(self.run_id)
        assert run is not None
        assert last["type"] == f"run.{run.status}"
        return {"status": run.status, "state": run.state, "output": run.output, "error": run.error}


@contextmanager
def legacy_app(runtail: Stack, environment: dict[str, str]) -> Iterator[Legacy]:
    with own_databases(environment, migrated=False) as urls:
        legacy = Legacy(runtail, urls["REDIS_URL"])
        try:
            yield legacy
        finally:
            legacy.close()


@pytest.fixture(scope="module")
def runtail(module_stack: StackMaker) -> Stack:
    """A server; its worker is there to end what has lost its writer."""
    runtail = module_stack(EXTERNAL_LEASE_SECONDS="60")
    runtail.start_web()
    return runtail


@pytest.fixture(scope="module", params=["flask", "django"])
def legacy(runtail: Stack, environment: dict[str, str], request: pytest.FixtureRequest) -> Iterator[Legacy]:
    """The app with the new view, and a worker."""
    with legacy_app(runtail, environment) as legacy:
        getattr(legacy, request.param)()
        legacy.worker()
        yield legacy


@pytest.fixture
def mortal(stack: StackMaker, environment: dict[str, str]) -> Iterator[Legacy]:
    """A server that takes a writer to be lost after a short time."""
    runtail = stack(EXTERNAL_LEASE_SECONDS=str(LEASE_SECONDS))
    runtail.start_web()
    runtail.start_worker()
    with legacy_app(runtail, environment) as legacy:
        legacy.flask()
        yield legacy


# The old way.


def test_the_diff_is_what_lies_between_before_and_after() -> None:
    command = ["diff", "-urN", "-x", "__pycache__", BEFORE.name, AFTER.name]
    output = subprocess.run(command, cwd=BEFORE.parent, capture_output=True, text=True).stdout
    lines = [re.sub(r"^(---|\+\+\+) (\S+)\t.*", r"\1 \2", line) for line in output.splitlines()]
    assert [line for line in lines if not line.startswith("diff ")] == DIFF.read_text().splitlines()


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_the_blocking_view_answers_to_the_byte_what_it_did(
    runtail: Stack, environment: dict[str, str], accept: str
) -> None:
    answers = []
    for folder in (BEFORE, AFTER):
        with legacy_app(runtail, environment) as legacy:
            legacy.flask(folder)
            answers.append(legacy.report(accept))
    heads = [{name: value for name, value in answer.headers.items() if name != "date"} for answer in answers]
    assert answers[0].status_code == answers[1].status_code == 200
    assert answers[0].content == answers[1].content
    assert heads[0] == heads[1]
    assert "That makes 750 euros." in answers[0].text


def test_the_blocking_view_answers_while_ten_streams_are_open(legacy: Legacy) -> None:
    assert legacy.report().json() == REPORT
    alone = legacy.report().elapsed.total_seconds()
    reports = [legacy.live() for _ in range(STREAMS)]
    with ExitStack() as opened, ThreadPoolExecutor(2) as pool:
        streams = [report.events() for report in reports]
        for stream in streams:
            opened.callback(stream.close)
            assert next(stream)["type"] == "run.created"
        answers = [pool.submit(legacy.report) for _ in range(2)]
        for answer in answers:
            assert answer.result().json() == REPORT
            assert answer.result().elapsed.total_seconds() < alone + 1.5
        assert legacy.queue.count > 0, "there were streams open all the while"
        for report in reports:
            report.stop()
        for stream in streams:
            assert [event["type"] for event in stream][-1] in ("run.completed", "run.cancelled")


# The new one.


def test_a_report_is_seen_while_it_is_made_and_comes_out_the_same(legacy: Legacy) -> None:
    report = legacy.live()
    events = report.events()
    first = next(event for event in events if event["type"] == "message.delta")
    assert first["payload"]["text"] == TEXT.splitlines(keepends=True)[0]
    assert legacy.runtail.services.store.get(report.run_id).status == "running"
    assert [event["type"] for event in events][-1] == "run.completed"
    run = report.ended()
    assert run["output"] == REPORT == legacy.report().json()
    assert run["state"]["answer"] == {"text": TEXT, "status": "final"}
    assert [step["title"] for step in run["state"]["steps"]] == STEPS


def test_stop_stops_the_job(legacy: Legacy) -> None:
    report = legacy.live()
    report.reaches("message.delta")
    report.stop()
    run = report.ended()
    assert run["status"] == "cancelled"
    assert run["state"]["answer"]["text"] != TEXT
    legacy.idle()
    assert legacy.queue.failed_job_registry.count == 0


def test_a_job_that_is_stopped_before_it_begins_does_nothing(mortal: Legacy) -> None:
    report = mortal.live()
    report.stop()
    mortal.worker()
    run = report.ended()
    assert run["status"] == "cancelled"
    assert run["state"]["messages"] == []
    mortal.idle()


# When a job dies.


def test_the_run_of_a_worker_that_is_gone_for_good_fails_within_the_lease(mortal: Legacy) -> None:
    mortal.worker()
    report = mortal.live()
    report.reaches("message.delta")
    for process in (mortal.rq, report.horse()):
        process.kill()
    killed_at = time.monotonic()
    run = report.ended()
    assert time.monotonic() - killed_at < LEASE_SECONDS + JANITOR_SECONDS
    assert run["status"] == "failed"
    assert run["error"]["code"] == "writer_lost"


def test_a_job_that_is_killed_is_tried_again_and_shows_nothing_twice(mortal: Legacy) -> None:
    mortal.worker()
    report = mortal.live()
    report.reaches("message.delta")
    report.horse().kill()
    events = list(report.events())
    run = report.ended()
    assert run["status"] == "completed"
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert run["output"] == REPORT
    assert run["state"]["answer"]["text"] == TEXT
    assert [message["status"] for message in run["state"]["messages"]] == ["abandoned", "completed"]
    again = max(event["seq"] for event in events if event["type"] == "run.step")
    assert [event["payload"]["title"] for event in events[again:] if event["type"] == "step.started"] == STEPS
