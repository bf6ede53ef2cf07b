"""`waiting`: what it costs that very many runs wait, for a decision or for a time."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis import Redis
from rq import Queue

from app.storage.run_queue import QUEUE
from bench.client import Api, Window
from bench.processes import Child, eventually, usage
from bench.report import Figures, Result
from bench.scenarios.approval import DAY_SECONDS, Decisions
from bench.scenarios.streaming import end
from bench.stage import Stage
from bench.watch import Cpu

MAKE_SECONDS = 3_600.0
PAUSE_SECONDS = 0.5
SETTLE_SECONDS = 3.0
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bench_ask", {"expires_in": DAY_SECONDS}),
    ("bench_sleep", {"seconds": DAY_SECONDS}),
)
MORE = ("greenlets", "redis_connections", "job_hashes")
LIMITS = {
    "greenlets_more": 0,
    "redis_connections_more": 0,
    "job_hashes_more": 0,
    "owned_runs_after": 0,
    "resumed_p50_ms": 50,
}
_READ = """
SELECT coalesce(sum(seq_tup_read), 0)::bigint FROM pg_stat_user_tables
WHERE relname IN ('runs', 'run_events', 'run_ops', 'approvals', 'run_inputs')
"""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One worker with nothing to do, before and while so many runs wait; then a few of them are decided."""

    runs: int = 10_000
    """Half of them wait for a decision, half for a time, all a day."""
    seconds: float = 10
    """How long the idle worker and the stores are looked at."""
    decisions: int = 50
    clients: int = 4
    warm_up: int = 100

    def run(self, stage: Stage) -> Result:
        """Play it."""
        with stage.web() as web, stage.worker() as worker:
            end(web.port, self._wait(stage, web.port, self.warm_up))
            before = self._weigh(stage, worker, web.port)
            begun = time.monotonic()
            runs = self._wait(stage, web.port, self.runs)
            seconds = time.monotonic() - begun
            after = self._weigh(stage, worker, web.port)
            with Api(web.port) as api:
                decisions = Decisions(web.port, api)
                for run in runs[:: len(KINDS)][: self.decisions]:
                    decisions.decide(run)
        more = {f"{name}_more": after[name] - before[name] for name in MORE}
        both = (("before", before), ("after", after))
        compared = {f"{name}_{when}": found[name] for name in before for when, found in both}
        figures = {"runs": self.runs, "made_per_s": self.runs / seconds, **compared}
        return Result({"runtail": {**figures, **more, **decisions.figures()}}, limits=LIMITS)

    def _wait(self, stage: Stage, port: int, count: int) -> list[str]:
        """Ids of so many fresh runs that wait, started over several connections; the kinds in turn."""
        with ThreadPoolExecutor(self.clients) as pool:
            started = pool.map(partial(_start, port, count, self.clients), range(self.clients))
            by_number = {number: run for each in started for number, run in each.items()}
        runs = [by_number[number] for number in range(count)]
        sql = "SELECT count(*) FROM runs WHERE status = 'waiting' AND id = ANY (%s)"
        what = f"The waiting of {count} runs"
        eventually(lambda: stage.ask(sql, runs) == count, MAKE_SECONDS, what, PAUSE_SECONDS)
        return runs

    def _weigh(self, stage: Stage, worker: Child, port: int) -> Figures:
        """What the worker has, and what it and the stores do while nobody asks for anything."""
        stage.tidy()
        time.sleep(SETTLE_SECONDS)
        pids = {"redis": stage.embedded.pid("redis"), "postgres": stage.embedded.pid("postgres")}
        cpu, read = Cpu(worker=worker.pid, **pids), int(stage.ask(_READ))
        time.sleep(self.seconds)
        shares, scanned = cpu.shares(), int(stage.ask(_READ)) - read
        connections = stage.redis_commands([worker.pid]).total()
        return {
            **_rows(stage),
            **shares,
            "redis_connections": connections,
            "rows_read_by_scans_per_s": scanned / self.seconds,
            "worker_rss_mb": usage([worker.pid]).rss / 1e6,
            **census(port),
        }


def _start(port: int, count: int, clients: int, first: int) -> dict[int, str]:
    """Every `clients`-th of the runs, by its number."""
    with Api(port) as api:
        return {number: api.start(*KINDS[number % len(KINDS)]) for number in range(first, count, clients)}


def census(port: int) -> Figures:
    """What is alive in the worker, as an agent in it counts it. The agent's own run is among that."""
    with Api(port) as api:
        run = api.start("bench_census", {})
    with Window(port, run) as window:
        counted: Figures = window.until("run.completed").event["payload"]["output"]
    return counted


def _rows(stage: Stage) -> Figures:
    """What the worker is known to be doing: RQ's started and waiting jobs, rows that have an owner."""
    with Redis.from_url(stage.embedded.redis_url) as redis:
        hashes = sum(1 for _ in redis.scan_iter("rq:job:*"))
        queued = Queue(QUEUE, connection=redis).count
    agents = [agent for agent, _ in KINDS]  # other scenarios may have left runs of theirs
    owned = stage.ask("SELECT count(*) FROM runs WHERE owner IS NOT NULL AND agent = ANY (%s)", agents)
    return {"job_hashes": hashes, "queued_jobs": queued, "owned_runs": owned}
