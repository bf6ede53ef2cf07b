"""`writers`: external writers append to their runs at an even pace, repeat themselves and are cut off.

What each log then says is read back and compared with what was sent. The same client asks `GET /healthz` at the same
pace first: that is what a request costs that does nothing. And one connection commits such events, one after the other:
that is what Postgres takes for it on this machine.
"""

import secrets
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psycopg2

from app.cli.verification import Claim, Mismatch, verify
from app.storage.run_store.as_json import event_row, recordset
from app.storage.run_store.runs import INSERT_EVENTS
from bench.client import Api
from bench.load import build
from bench.processes import ROOT, Child
from bench.quantiles import quantiles
from bench.report import Figures, Result
from bench.servers import RuntailWeb
from bench.stage import Stage
from bench.ticks import TYPE, tick
from bench.watch import Cpu

WRITELOAD = ROOT / "bench" / "writeload.c"
WARM_UP_SECONDS = 1.0
GRACE_SECONDS = 60.0
PAGE = 1_000
NOTHING = "/healthz"
LATE_MS = 5.0
BEHIND = 0.98
"""Of the rate that was asked for; below it the server has not kept up, and the latencies tell of the queue."""
LIMITS = {"lost": 0, "doubled": 0, "out_of_order": 0, "unfinished": 0, "unverified": 0}
COMMITS = 1_000
COMMITS_WORTH = 3
"""An append may take as long as a request that does nothing, and so many bare commits."""
FAST_MS, FAST_MOST_MS = 0.3, 5.0
"""Where a request that does nothing takes at most the first (p50), an append takes at most the second."""
COUNTS = ("appends", "repeats", "cut_at_once", "cut_unread", "cut_read", "again_new", "again_known", "lost_connections")


class Target(NamedTuple):
    """What a writer writes to, with its token and epoch. The path is what the client asks."""

    path: str
    token: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Writers:
    """External writers at an even pace, with repeats and broken connections, against `GET /healthz` at the same."""

    writers: int = 50
    rate: float = 1_000
    seconds: float = 20
    event_bytes: int = 100
    processes: int = 2

    def run(self, stage: Stage) -> Result:
        """Play it."""
        result = Result(compare=("p50_ms", "p99_ms", "web_cpu_us_per_request"))
        committed = bare_commits(stage, self.event_bytes)
        with stage.web(processes=self.processes) as web, Api(web.port) as api:
            nothing = self._measure(stage, web, [Target(NOTHING, "-", 0)] * self.writers, "--get")
            runs = [start(api) for _ in range(self.writers)]
            appended = self._measure(stage, web, [run.target for run in runs])
            logs = [finish(api, run, self._each + 1) for run in runs]
        self._doubt(result, {"healthz": nothing, "runtail": appended})
        result.servers = {"runtail": {**appended, **judge(logs, self._each)}, "healthz": nothing, "commit": committed}
        result.limits = LIMITS | latency_limits(nothing, committed)
        return result

    @property
    def _each(self) -> int:
        """Appends of each writer."""
        return max(1, round(self.rate * self.seconds / self.writers))

    def _measure(self, stage: Stage, web: RuntailWeb, targets: Sequence[Target], *more: str) -> Figures:
        pids = {
            "web": web.process.pid,
            "postgres": stage.embedded.pid("postgres"),
            "redis": stage.embedded.pid("redis"),
        }
        with Child("writeload", [*self._command(stage.folder, web.port, targets), *more], stage.folder) as client:
            client.wait_heard("measuring", WARM_UP_SECONDS + GRACE_SECONDS)
            cpu = Cpu(**pids)
            found = client.result(self.seconds + GRACE_SECONDS)
            shares = cpu.shares()
        requests = (found["appends"] + found["repeats"] + found["again_new"] + found["again_known"]) / found["seconds"]
        return {
            **{name: found["latency"].get(name) for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")},
            "rate": found["rate"],
            **{name: found[name] for name in COUNTS},
            **shares,
            "client_cpu_share": found["measured_cpu_s"] / found["measured_s"],
            "web_cpu_us_per_request": shares["web_cpu_share"] / requests * 1e6,
            "client_late_p99_ms": found["late"].get("p99_ms", 0),
        }

    def _command(self, folder: Path, port: int, targets: Sequence[Target]) -> list[str]:
        listed = folder / f"targets-{secrets.token_hex(3)}"
        listed.write_text("".join(f"{target.path} {target.token} {target.epoch}\n" for target in targets))
        warm_up = min(WARM_UP_SECONDS, self.seconds / 4)
        numbers = [f"--port={port}", f"--rate={self.rate}", f"--appends={self._each}", f"--warm-up={warm_up}"]
        return [str(build(WRITELOAD, folder)), f"--targets={listed}", f"--event-bytes={self.event_bytes}", *numbers]

    def _doubt(self, result: Result, servers: dict[str, Figures]) -> None:
        for name, figures in servers.items():
            if figures["client_late_p99_ms"] > LATE_MS:
                result.doubts.append(f"{name}: the client sent {figures['client_late_p99_ms']:.1f} ms late (p99).")
            if figures["rate"] < BEHIND * self.rate:
                result.doubts.append(f"{name}: only {figures['rate']:.0f} of {self.rate:.0f} appends a second.")


def latency_limits(nothing: Figures, committed: Figures) -> dict[str, float]:
    """What an append may take on this machine, given what a request that does nothing and a bare commit take."""
    most: dict[str, float] = {q: (nothing[q] or 0) + COMMITS_WORTH * committed[q] for q in ("p50_ms", "p99_ms")}
    if (nothing["p50_ms"] or 0) <= FAST_MS:
        most["p50_ms"] = min(most["p50_ms"], FAST_MOST_MS)
    return most


def bare_commits(stage: Stage, event_bytes: int) -> Figures:
    """Milliseconds of COMMITS commits of one event each, one after the other, into a table like that of all events."""
    insert = INSERT_EVENTS.replace("run_events", "bare_events")
    times = []
    with closing(psycopg2.connect(stage.embedded.database_url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute("CREATE TABLE bare_events (LIKE run_events INCLUDING ALL)")
        for seq in range(1, COMMITS + 1):
            row = recordset([event_row("run_bare", tick("run_bare", seq, event_bytes))])
            began = time.monotonic()
            cursor.execute(insert, [row])
            times.append((time.monotonic() - began) * 1_000)
    return {name.removeprefix("commit_"): value for name, value in quantiles("commit", times).items()}


class Run(NamedTuple):
    """An external run that has begun."""

    run_id: str
    target: Target


def start(api: Api) -> Run:
    """Start an external run."""
    said = api.post("/runs", {"agent": "external", "input": {}})
    return Run(said["run_id"], Target(f"/runs/{said['run_id']}/events", said["writer_token"], said["epoch"]))


class Log(NamedTuple):
    """A run that is over, and its whole log, as the server tells both."""

    run: dict[str, Any]
    events: list[dict[str, Any]]

    @property
    def verified(self) -> bool:
        """Whether the log is whole, seq by seq, and says what the run claims."""
        claim = Claim(self.run["status"], self.run["digest"], self.run["state"])
        with suppress(Mismatch):
            return bool(verify(self.run["run_id"], self.events, claim))
        return False


def finish(api: Api, run: Run, number: int) -> Log:
    """End the run as its writer and read it back; `number` is that of the writer's last request."""
    headers = {
        "Authorization": f"Bearer {run.target.token}",
        "Producer-Epoch": str(run.target.epoch),
        "Producer-Seq": str(number),
    }
    api.post(f"/runs/{run.run_id}/finish", {"status": "completed"}, headers)
    events: list[dict[str, Any]] = []
    while page := api.get(f"/runs/{run.run_id}/events?since_seq={len(events)}&limit={PAGE}")["events"]:
        events += page
    return Log(api.get(f"/runs/{run.run_id}"), events)


def judge(logs: Sequence[Log], each: int) -> Figures:
    """What became of the `each` appends of every run."""
    told = [[event["payload"]["n"] for event in log.events if event["type"] == TYPE] for log in logs]
    return {
        "lost": sum(each - len(set(numbers)) for numbers in told),
        "doubled": sum(len(numbers) - len(set(numbers)) for numbers in told),
        "out_of_order": sum(later < earlier for numbers in told for earlier, later in pairwise(numbers)),
        "unfinished": sum(log.run["status"] != "completed" for log in logs),
        "unverified": sum(not log.verified for log in logs),
    }
