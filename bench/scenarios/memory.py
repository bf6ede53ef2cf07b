"""`memory`: what an idle window costs the process that serves it, with access control on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.processes import usage
from bench.report import Figures, Result
from bench.scenarios.delivery import ALL, chosen
from bench.servers import BASELINES, Server
from bench.stage import Stage

OPEN_SECONDS = 180


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes and open files per idle window."""

    windows: int = 8_000
    warm_up: int = 1_000
    seconds: float = 20
    """How long the windows are idle before they are weighed: longer than a heartbeat."""
    baseline_windows: int = 1_000
    baselines: str = ALL

    def run(self, stage: Stage) -> Result:
        """Play it."""
        result = Result(compare=("bytes_per_window",))
        kinds = chosen(self.baselines, tuple(BASELINES), result)
        headers = [stage.key()]
        result.servers["runtail"] = self._weigh(stage, stage.web(auth=True), self.windows, headers)
        for server in map(stage.baseline, kinds):
            result.servers[server.name] = self._weigh(stage, server, self.baseline_windows, ())
        return result

    def _weigh(self, stage: Stage, server: Server, windows: int, headers: Sequence[str]) -> Figures:
        """The warm-up's windows stay open, so that what they have taken is not given to those that are weighed."""
        more: dict[str, Any] = {"headers": tuple(headers), "seconds": OPEN_SECONDS}
        warm_up, runs = stage.runs(self.warm_up), stage.runs(windows)
        with server, stage.load(server, warm_up, self.warm_up, **more) as first:
            stage.wait_open(first, server, warm_up)
            time.sleep(self.seconds)
            before = usage(server.workers())
            with stage.load(server, runs, windows, **more) as second:
                open_s = stage.wait_open(second, server, runs)
                time.sleep(self.seconds)
                after = usage(server.workers())
                second.say("finish")
                found = second.result()
        return {
            "windows": windows,
            "opens_per_s": windows / open_s,
            "rss_before_mb": before.rss / 1e6,
            "rss_after_mb": after.rss / 1e6,
            "bytes_per_window": (after.rss - before.rss) / windows,
            "files_per_window": (after.fds - before.fds) / windows,
            **{name: found[name] for name in ("open", "heartbeats", "broken_ends", "clean_ends")},
        }
