"""Real processes for tests: gunicorn and workers as children, over the session's PostgreSQL and Redis."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx
import psutil

from app.config import Config
from app.identifiers import new_id
from app.protocol.events import encode
from app.protocol.reducer import initial, reduce
from app.storage.event_log import Append
from app.storage.run_store import NewRun, Principal, RunRecord
from app.wiring import Services

T = TypeVar("T")

ROOT = Path(__file__).parent.parent
READY_SECONDS = 60
POLL_SHARE = 0.05
"""Of what was waited for so far, until the next look."""
POLL_MOST_SECONDS = 0.2
AGENTS = ROOT / "tests" / "agents_for_tests"
"""A distribution of agents that misbehave; workers find it on PYTHONPATH as they would find any other."""
DEV = Principal("dev", "dev", admin=True)


def eventually(condition: Callable[[], T], seconds: float = 10, what: str = "the condition") -> T:
    """The first true value of the condition; fails when there is none in time."""
    began = time.monotonic()
    while not (value := condition()):
        waited = time.monotonic() - began
        assert waited < seconds, f"{what} did not come true within {seconds} s"
        # A condition is often a request: asked all the time, it takes the processor from what it waits for.
        time.sleep(min(0.01 + waited * POLL_SHARE, POLL_MOST_SECONDS))
    return value


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def children_named(pid: int, *names: str) -> list[psutil.Process]:
    """What has come from a process and bears one of the names. One that ends while it is asked is none of them."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() in names:
                found.append(child)
    return found


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem document of an error; fails unless it is that one, in RFC 9457's form, without a stack trace."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert set(document) == {"type", "title", "status", "code", "detail"}
    assert (document["status"], document["code"]) == (status, code), document
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    return document


def pending_run(
    services: Services, agent: str = "emit", input: dict[str, Any] | None = None, *, announce: bool = True, **more: Any
) -> RunRecord:
    """A pending run, written past the API: committed, with `announce` also in Redis, but not enqueued."""
    run_id = new_id("run")
    created = encode(run_id, 1, "run.created", {"agent": agent, "input_preview": None})
    values: dict[str, Any] = {
        "id": run_id,
        "principal": DEV,
        "session_id": "ses_1",
        "agent": agent,
        "input": input or {},
        "metadata": {},
        "on_disconnect": "continue",
        "timeout_s": None,
        "idempotency_key": None,
        "request_hash": "",
        "state": reduce(initial(run_id), created.envelope()),
    }
    new = NewRun(**{**values, **more})
    run = services.store.create(new, created) or services.store.find_by_key(new.principal, new.idempotency_key or "")
    assert run is not None
    if announce:
        services.log.append(Append(run.id, 0, [created], archived=1))
    return run


class Process:
    """A child process with its output in a file."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], folder: Path) -> None:
        self.log = folder / f"{name}-{secrets.token_hex(3)}.log"
        with self.log.open("wb") as output:
            self.popen = subprocess.Popen(
                command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    def send(self, number: int) -> None:
        """Send a signal."""
        self.popen.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 10) -> int:
        """Signal it, wait, and return its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.send_signal(number)
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            raise AssertionError(f"It did not stop.\n{self.log.read_text()[-3000:]}") from None

    def kill(self) -> None:
        """kill -9."""
        self.popen.kill()
        self.popen.wait()


class Stack:
    """A web process and workers with settings of their own, on a Redis database of their own."""

    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RUNTAIL", "STREAM_", "RUN_"))},
            "PORT": str(self.port),
            "RUNTAIL_DEV": "1",
            "DEMO_AGENTS": "1",  # also where a test switches development mode off
            "WEB_CONCURRENCY": "1",
            "DRAIN_SECONDS": "0",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(AGENTS), os.environ.get("PYTHONPATH")])),
            **env,
        }
        self.folder = folder
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.services = Services.for_web(Config.from_env(self.env))
        """What its processes have stored, past the API."""
        self.processes: list[Process] = []

    def start_web(self, until: str = "/readyz", application: str = "wsgi:app") -> Process:
        """Start gunicorn and wait until that path answers 200."""
        process = self._start("web", [sys.executable, "-m", "gunicorn", application])
        self.web_pid = process.pid

        def ready() -> bool:
            assert process.popen.poll() is None, process.log.read_text()[-3000:]
            with contextlib.suppress(httpx.TransportError):
                return self.http.get(until).status_code == 200
            return False

        eventually(ready, READY_SECONDS, "readiness of the web process")
        return process

    def start_worker(self, *arguments: str) -> Process:
        """Start a worker and wait until it takes runs."""
        process = self._start("worker", [sys.executable, "-m", "workers", *arguments])

        def ready() -> bool:
            assert process.popen.poll() is None, process.log.read_text()[-3000:]
            return " is ready: " in process.log.read_text()

        eventually(ready, READY_SECONDS, "readiness of the worker")
        return process

    def _start(self, name: str, command: list[str]) -> Process:
        process = Process(name, command, self.env, self.folder)
        self.processes.append(process)
        return process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.services.close()
        for process in self.processes:
            if process.popen.poll() is None:
                family = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                for child in family:  # a stopped one does not see that its parent is gone
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.resume()

    # What tests say to it.

    def start(self, agent: str, input: dict[str, Any], **body: Any) -> str:
        """POST /runs; the run's id."""
        answer = self.http.post("/runs", json={"agent": agent, "input": input, **body})
        assert answer.status_code == 202, answer.text
        run_id: str = answer.json()["run_id"]
        return run_id

    def read(self, run_id: str) -> dict[str, Any]:
        """GET /runs/{id}."""
        answer = self.http.get(f"/runs/{run_id}")
        assert answer.status_code == 200, answer.text
        run: dict[str, Any] = answer.json()
        return run

    def ended(self, run_id: str, seconds: float = 15) -> dict[str, Any]:
        """The run once it has ended."""

        def terminal() -> dict[str, Any] | None:
            run = self.read(run_id)
            return run if run["finished_at"] else None

        return eventually(terminal, seconds, f"the end of {run_id}")

    def events(self, run_id: str, since: int = 0) -> list[dict[str, Any]]:
        """Every event of a run so far, by JSON pages."""
        found: list[dict[str, Any]] = []
        while True:
            query = {"since_seq": found[-1]["seq"] if found else since, "limit": 1000}
            headers = {"Accept": "application/json"}
            page = self.http.get(f"/runs/{run_id}/events", params=query, headers=headers).json()
            if not page["events"]:
                return found
            found += page["events"]

    def follow(self, run_id: str, since: int | str = 0) -> Iterator[str]:
        """The lines of an NDJSON window until it ends, heartbeats left out."""
        headers = {"Accept": "application/x-ndjson"}
        query = {"since_seq": since}
        with self.http.stream("GET", f"/runs/{run_id}/events", params=query, headers=headers) as window:
            assert window.status_code == 200
            yield from (line for line in window.iter_lines() if line)
