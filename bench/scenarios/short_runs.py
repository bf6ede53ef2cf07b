"""`short-runs`: what it costs to start a run, and to execute one that does nothing."""

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from bench.client import HOST
from bench.processes import BenchError, Child, eventually, python
from bench.report import Figures, Result
from bench.servers import clean_environment
from bench.stage import Stage
from bench.watch import family_cpu

REQUEST = json.dumps({"agent": "emit", "input": {"count": 0}}).encode()
CLIENTS = 8
END_SECONDS = 120.0
PAUSE_SECONDS = 0.02
RQ_SECONDS = 120.0
MS = 1e3
ENDED = "SELECT count(*) FROM runs WHERE published"
LIMITS = {"execute_worker_cpu_by_empty_job": 1.5}


@dataclass(frozen=True, slots=True)
class ShortRuns:
    """Runs of three events: CPU to start one, and to execute one, against an empty job of RQ's SimpleWorker."""

    runs: int = 1_000
    warm_up: int = 100

    def run(self, stage: Stage) -> Result:
        """Play it."""
        with stage.web() as web, stage.worker() as worker:
            stores = {name: stage.embedded.pid(name) for name in ("redis", "postgres")}
            warm = stage.ask(ENDED) + self.warm_up
            _start(web.port, self.warm_up)
            _wait_ended(stage, warm)
            with _stopped(worker):
                started = _measured(lambda: _start(web.port, self.runs), self.runs, {"web": web.process.pid, **stores})
            executed = _measured(
                lambda: _wait_ended(stage, warm + self.runs), self.runs, {"worker": worker.pid, **stores}
            )
        job_ms = self._empty_job(stage)
        figures = {
            **{f"start_{name}": value for name, value in started.items()},
            **{f"execute_{name}": value for name, value in executed.items()},
            "execute_worker_cpu_by_empty_job": executed["worker_cpu_ms"] / job_ms,
        }
        return Result({"runtail": figures, "SimpleWorker": {"execute_worker_cpu_ms": job_ms}}, limits=LIMITS)

    def _empty_job(self, stage: Stage) -> float:
        """Milliseconds of CPU that RQ's SimpleWorker takes for a job that does nothing."""
        command = python("-m", "bench.baselines.empty_jobs", "--jobs", str(self.runs))
        with Child("rq", command, stage.folder, {**clean_environment(), **stage.urls}) as rq:
            return float(rq.result(RQ_SECONDS)["cpu_ms"])


@contextmanager
def _stopped(child: Child) -> Iterator[None]:
    """The process stands still for the block."""
    child.popen.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        child.popen.send_signal(signal.SIGCONT)


def _measured(work: Callable[[], object], count: int, of: Mapping[str, int]) -> Figures:
    """CPU of each process and its children, by run, and runs a second, while the work is done."""
    before, began = {name: family_cpu(pid) for name, pid in of.items()}, time.monotonic()
    work()
    seconds = time.monotonic() - began
    cpu = {f"{name}_cpu_ms": (family_cpu(pid) - before[name]) / count * MS for name, pid in of.items()}
    return {**cpu, "per_s": count / seconds}


def _wait_ended(stage: Stage, count: int) -> None:
    eventually(lambda: stage.ask(ENDED) == count, END_SECONDS, "The end of all runs", PAUSE_SECONDS)


def _start(port: int, count: int) -> None:
    """Start so many runs over a few connections.

    :raises BenchError: one was refused.
    """
    shares = [count // CLIENTS + (n < count % CLIENTS) for n in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(partial(_start_some, port), shares))


def _start_some(port: int, count: int) -> None:
    """The same bytes each time: what a client takes for a request is taken from the server on a machine this small."""
    head = f"POST /runs HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\nContent-Length: {len(REQUEST)}"
    with socket.create_connection((HOST, port)) as connection:
        for _ in range(count):
            connection.sendall(f"{head}\r\n\r\n".encode() + REQUEST)
            answer = b""
            while not answer.rstrip().endswith(b"}"):
                answer += connection.recv(65_536)
            if b" 202 " not in answer[:20]:
                raise BenchError(f"A start was refused: {answer[:100]!r}")
