"""`runs`: very many runs that stream at the same time, all in one worker process."""

import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from bench.client import Api
from bench.processes import Child, eventually, python
from bench.report import Result
from bench.servers import clean_environment
from bench.stage import Stage
from bench.watch import Cpu, Watch, peak_rss

WITHOUT_END = 1_000_000
TEXT = "Somebody's words "
START_SECONDS = 120.0
PAUSE_SECONDS = 0.1
ENDERS = 8
RESULT_SECONDS = 30.0
LATE_MS = 50.0
LIMITS = {
    "worker_rss_peak_mb": 400,
    "latency_p99_ms": 150,
    "archive_behind_max_s": 5,
    "heartbeat_pause_max_s": 3,
    "gaps": 0,
    "lost_runs": 0,
}


@dataclass(frozen=True, slots=True)
class Streaming:
    """Runs that stream in one worker process: how late their text is in Redis, how far Postgres is behind."""

    runs: int = 500
    per_run: float = 10
    seconds: float = 30

    def run(self, stage: Stage) -> Result:
        """Play it."""
        with ExitStack() as exit:
            web, worker = exit.enter_context(stage.web()), exit.enter_context(stage.worker(self.runs))
            watch = exit.enter_context(Watch(stage.embedded.database_url, stage.embedded.redis_url))
            api = exit.enter_context(Api(web.port))
            begun = time.monotonic()
            runs = stream(stage, api, self.runs, self.per_run)
            started_s = time.monotonic() - begun
            reader = exit.enter_context(arrivals(stage, runs))
            reader.wait_heard("begun")
            cpu = Cpu(worker=worker.pid, redis=stage.embedded.pid("redis"), postgres=stage.embedded.pid("postgres"))
            time.sleep(self.seconds)
            shares = cpu.shares()
            reader.say("finish")
            found = reader.result(RESULT_SECONDS)
            lost = self.runs - undisturbed(stage, runs)
            peak = peak_rss(worker.pid)
            end(web.port, runs)
        doubts = []
        if found["slowest_look_ms"] > LATE_MS:
            doubts.append(f"The reader once came {found['slowest_look_ms']:.0f} ms late: latencies count that too.")
        texts_per_s = found["texts"] / found["seconds"]
        figures = {
            "runs": self.runs,
            "lost_runs": lost,
            "started_s": started_s,
            "texts_per_s": texts_per_s,
            **{name: value for name, value in found.items() if name.startswith(("latency", "gaps", "slowest"))},
            **watch.figures(),
            "worker_rss_peak_mb": peak / 1e6,
            **shares,
            "worker_cpu_us_per_text": shares["worker_cpu_share"] / texts_per_s * 1e6 if texts_per_s else None,
        }
        return Result({"runtail": figures}, doubts=doubts, limits=LIMITS)


def stream(stage: Stage, api: Api, count: int, per_second: float) -> list[str]:
    """Ids of so many runs, each of which writes so many stamped pieces of text a second, without end.

    :raises BenchError: they do not all run.
    """
    input = {"count": WITHOUT_END, "interval_ms": 1_000 / per_second, "stamp": True, "text": TEXT}
    runs = [api.start("emit", input) for _ in range(count)]
    eventually(lambda: undisturbed(stage, runs) == count, START_SECONDS, "The start of all runs", PAUSE_SECONDS)
    return runs


def end(port: int, runs: Sequence[str]) -> None:
    """Cancel these runs: no later worker of the stage is to go on with them."""

    def cancel(some: Sequence[str]) -> None:
        with Api(port) as api:
            for run in some:
                api.post(f"/runs/{run}/cancel")

    with ThreadPoolExecutor(ENDERS) as pool:
        list(pool.map(cancel, (runs[first::ENDERS] for first in range(ENDERS))))


def undisturbed(stage: Stage, runs: Sequence[str]) -> int:
    """How many of these runs are running, and by their first owner."""
    sql = "SELECT count(*) FROM runs WHERE status = 'running' AND epoch = 1 AND id = ANY (%s)"
    return int(stage.ask(sql, list(runs)))


def arrivals(stage: Stage, runs: Sequence[str]) -> Child:
    """The process that measures how late the text of these runs is, started."""
    listed = stage.folder / f"runs-{secrets.token_hex(3)}"
    listed.write_text("\n".join(runs))
    command = python("-m", "bench.arrivals", "--url", stage.embedded.redis_url, "--runs", str(listed))
    return Child("arrivals", command, stage.folder, clean_environment())
