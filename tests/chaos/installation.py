"""The installation under attack: a real `runtail dev`, whose supervisor starts again whatever is killed.

Responsible for its processes and for killing them. Not responsible for when (`schedule`) or for what comes of it.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any, Self

import httpx
import psutil
import psycopg2

from tests.chaos.schedule import BACKENDS, FIRST_ORDER, Victim
from tests.harness import ROOT, eventually, free_port

READY_SECONDS = 60
STOP_SECONDS = 20
AGENTS = ROOT / "tests" / "chaos" / "agents"
SETTINGS = {
    "WEB_CONCURRENCY": "2",
    "RUNTAIL_WORKERS": "2",
    # All windows are one user's, at one address.
    "STREAM_MAX_PER_USER": "0",
    "STREAM_MAX_PER_ADDRESS": "0",
    # Windows are also ended in order, all the time.
    "STREAM_MAX_SECONDS": "25",
    "STREAM_HEARTBEAT_SECONDS": "3",
}
WORKERS_SHARE = 0.6
RUNS_PER_ISOLATED = 25
"""Every fourth of the runs, say, has lost two workers in a row and then waits for an isolated one."""
COUNTS = {"web": 1 + 2, "worker": 2, "redis": 1, "postgres": 1}
"""Processes of each kind; those of a web are its master and what that has forked."""
STUCK_SECONDS = 14.0
"""How long backends of PostgreSQL stand still."""
STUCK_SHARE = 0.5
CALLERS_OWN = ("RUNTAIL", "STREAM_", "RUN_", "DATABASE_URL", "REDIS_URL", "EVENTS_REDIS_URL", "WEB_CONCURRENCY")


class Installation:
    """Up from `with` to the end of the block."""

    def __init__(self, data: Path, runs: int) -> None:
        """:param runs: in flight; neither of the two workers can have all of them."""
        self.data = data
        isolated = math.ceil(runs / RUNS_PER_ISOLATED)
        self._counts = {**COUNTS, "isolated": isolated}
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._output = data.with_suffix(".out")
        command = [sys.executable, "-m", "tests.chaos.durable_dev", "dev"]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--port", str(self.port), "--data", str(data)],
                env=_environment(
                    RUNTAIL_WORKER_CONCURRENCY=str(round(runs * WORKERS_SHARE)), RUNTAIL_ISOLATED_WORKERS=str(isolated)
                ),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def __enter__(self) -> Self:
        try:
            eventually(self._is_ready, READY_SECONDS, f"readiness ({self._output})")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def database_url(self) -> str:
        """Of its PostgreSQL."""
        found = dict(
            line.removeprefix("export ").split("=", 1) for line in (self.data / "env").read_text().splitlines()
        )
        return found["RUNTAIL_DATABASE_URL"].strip("'")

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of one statement, past the API."""
        with closing(psycopg2.connect(self.database_url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(sql, values)
            return cursor.fetchall() if cursor.description else []

    def fill_shop(self) -> None:
        """Give every support run an order of its own, whose refund somebody has to approve."""
        self.query(
            """INSERT INTO shop_orders
               SELECT n, 'DESK-180', 1, 124900, 'delivered', '2026-05-29', '2026-06-01', '2026-06-03'
               FROM generate_series(%s, %s) AS n""",
            FIRST_ORDER - 10,
            FIRST_ORDER + 20_000,
        )

    def kill(self, victim: Victim) -> None:
        """kill -9, once all processes of that kind are up. Backends are stopped, and go on after STUCK_SECONDS."""
        if victim.kind == BACKENDS:
            return self._stop_backends(victim)
        for process in self._processes_of(victim):
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def _stop_backends(self, victim: Victim) -> None:
        """Connections hang that do not break: half of all, drawn by the victim."""
        [postmaster] = eventually(lambda: self._alive("postgres"), READY_SECONDS, "a postmaster")
        randomly = Random(f"backends {victim.which}")
        chosen = [child for child in postmaster.children() if _is_backend(child) and randomly.random() < STUCK_SHARE]
        for backend in chosen:
            _signal(backend, signal.SIGSTOP)
        timer = threading.Timer(STUCK_SECONDS, lambda: [_signal(backend, signal.SIGCONT) for backend in chosen])
        timer.daemon = True
        timer.start()

    def _processes_of(self, victim: Victim) -> list[psutil.Process]:
        processes = eventually(lambda: self._alive(victim.kind), READY_SECONDS, f"a {victim} to kill")
        if victim.kind == "worker":
            return [processes[victim.which]]
        if victim.kind != "web":
            return processes
        parts = {"all": processes, "master": processes[:1], "process": [processes[1 + victim.which]]}
        return parts[victim.part]

    def _alive(self, kind: str) -> list[psutil.Process]:
        """The processes of a kind, oldest first (of a web that is its master), once all of them are up."""
        found: Any = self._pids().get(kind, [])
        with suppress(psutil.NoSuchProcess):
            processes = [psutil.Process(pid) for pid in (found if isinstance(found, list) else [found])]
            if kind == "web" and processes:
                processes += processes[0].children()
            up = [process for process in processes if process.status() != psutil.STATUS_ZOMBIE]
            up.sort(key=psutil.Process.create_time)
            return up if len(up) == self._counts[kind] else []
        return []

    def _pids(self) -> dict[str, Any]:
        with suppress(FileNotFoundError):
            pids: dict[str, Any] = json.loads((self.data / "pids.json").read_text())
            return pids
        return {}

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._output.read_text()
        return "is ready at" in self._output.read_text() and self.answers()

    def answers(self) -> bool:
        """It is ready as far as the web can tell."""
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == httpx.codes.OK
        return False

    def _stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            children = psutil.Process(self._process.pid).children(recursive=True)
            for process in [psutil.Process(self._process.pid), *children]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            self._process.wait()


def _is_backend(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return "127.0.0.1(" in " ".join(process.cmdline())
    return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _environment(**settings: str) -> dict[str, str]:
    mine = {name: value for name, value in os.environ.items() if not name.startswith(CALLERS_OWN)}
    paths = os.pathsep.join(filter(None, [str(AGENTS), os.environ.get("PYTHONPATH")]))
    return {**mine, **SETTINGS, **settings, "PYTHONPATH": paths}
