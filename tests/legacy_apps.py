"""The old apps of examples/, under gunicorn's sync workers or Django's server, with a plain `rq worker`."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from redis import Redis
from rq import Queue, Worker

from tests.conftest import own_databases
from tests.harness import ROOT, Process, Stack, eventually, free_port

EXAMPLES = ROOT / "examples"
BEFORE, AFTER = (EXAMPLES / "legacy-flask" / name for name in ("before", "after"))
DJANGO = EXAMPLES / "legacy-django"
RQ = [str(Path(sys.executable).parent / "rq"), "worker"]
PAUSE_SECONDS = 0.25
"""Of each piece of work; a report has five."""
TEXT = """Ann has ordered 3 times.
A desk, for 480 euros.
A lamp, for 60 euros.
A chair, for 210 euros.
That makes 750 euros.
"""
STEPS = ["Read the orders", "Add them up", "Write the report"]


class Legacy:
    """An old app, its queue, and a Runtail beside it."""

    def __init__(self, runtail: Stack, redis_url: str, port: int, pause: float) -> None:
        self.runtail = runtail
        self.port = port
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.redis = Redis.from_url(redis_url)
        self.queue = Queue(connection=self.redis)
        self._env = {
            **os.environ,
            "PYTHONDONTWRITEBYTECODE": "1",
            "REDIS_URL": redis_url,
            "REPORT_PAUSE_SECONDS": str(pause),
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

    def horse(self) -> psutil.Process:
        """The process in which the worker makes a report."""
        return eventually(lambda: next(iter(self.rq.children()), None), what="the work horse")

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
def legacy_app(
    runtail: Stack, environment: dict[str, str], port: int | None = None, pause: float = PAUSE_SECONDS
) -> Iterator[Legacy]:
    """An app with nothing started yet; nothing of it is left afterwards."""
    with own_databases(environment, migrated=False) as urls:
        legacy = Legacy(runtail, urls["REDIS_URL"], port or free_port(), pause)
        try:
            yield legacy
        finally:
            legacy.close()
