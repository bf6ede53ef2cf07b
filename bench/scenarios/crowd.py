"""`crowd`: idle windows by the ten thousand, each on a run of its own, over several web processes.

First they are weighed, then each of the runs has one event, at an even pace.
"""

import time
from dataclasses import dataclass

from bench.processes import Usage, usage
from bench.report import Figures, Result
from bench.scenarios.delivery import GRACE_SECONDS, doubt, figures
from bench.servers import WrittenInC
from bench.stage import Stage

LIMITS = {"bytes_per_window": 3_072, "p99_ms": 10, "missing": 0}


@dataclass(frozen=True, slots=True)
class Crowd:
    """Windows, most of them idle, on a run each; what each weighs, and events among them."""

    windows: int = 50_000
    rate: float = 1_000
    payload_bytes: int = 120
    processes: int = 4
    clients: int = 4
    warm_up: int = 1_000
    idle_seconds: float = 20
    """How long the windows are idle before they are weighed: longer than a heartbeat."""

    def run(self, stage: Stage) -> Result:
        """Play it."""
        result = Result(limits=LIMITS)
        server = stage.web(kind=WrittenInC, processes=self.processes)
        warm_up, runs = stage.runs(self.warm_up), stage.runs(self.windows)
        seconds = self.windows / self.rate + GRACE_SECONDS
        with server, stage.load(server, warm_up, self.warm_up, seconds=3_600) as first:
            stage.wait_open(first, server, warm_up)
            time.sleep(self.idle_seconds)
            before = usage(server.workers())
            with stage.load(
                server, runs, self.windows, self.clients, until_seq=2, seconds=self.idle_seconds + seconds
            ) as load:
                open_s = stage.wait_open(load, server, runs)
                time.sleep(self.idle_seconds)
                idle = usage(server.workers())
                with stage.writer(server, runs, self.rate, 1, self.payload_bytes) as writer:
                    written = writer.result(seconds)
                    found = load.result()
                after = usage(server.workers())
        doubt(server.name, written, found, self.clients, result)
        told = figures(found, self.windows, idle, after)
        result.servers["runtail"] = {"opens_per_s": self.windows / open_s, **self._weighed(before, idle), **told}
        return result

    def _weighed(self, before: Usage, idle: Usage) -> Figures:
        return {
            "rss_before_mb": before.rss / 1e6,
            "bytes_per_window": (idle.rss - before.rss) / self.windows,
            "files_per_window": (idle.fds - before.fds) / self.windows,
        }
