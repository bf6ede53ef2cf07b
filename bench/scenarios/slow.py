"""`slow`: readers that never read, among fast ones. What do the others notice, and what becomes of the stalled?

Pairs of the same load without and with stalled windows, one after the other, so that a change of the machine's mood
hits both; the figures are medians over the pairs.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.load import Load
from bench.processes import Child, usage
from bench.report import Figures, Result
from bench.servers import RuntailWeb
from bench.stage import UNCAPPED, Stage

GRACE_SECONDS = 15.0
STALLED_SECONDS = 600.0
PATIENCE_SECONDS = 5.0
SAMPLE_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Slow:
    """Stalled windows among fast ones, all on one run."""

    windows: int = 800
    """The fast ones."""
    stalled: int = 200
    rate: float = 100
    seconds: float = 15
    """Of one half of a pair. The stalled are to reach the lag limit in it."""
    lag_seconds: int = 5
    payload_bytes: int = 400
    pairs: int = 5
    warm_up: int = 1
    """Pairs that are not counted: a process grows by its first load."""

    def run(self, stage: Stage) -> Result:
        """Play it."""
        # A stalled window must come back to every event, not to a snapshot.
        settings = {"STREAM_MAX_LAG_SECONDS": str(self.lag_seconds), **UNCAPPED}
        with stage.web(settings) as web:
            for _ in range(self.warm_up):
                self._pair(stage, web)
            pairs = [self._pair(stage, web) for _ in range(self.pairs)]
        return Result({"runtail": self._summary(pairs)})

    def _pair(self, stage: Stage, web: RuntailWeb) -> Figures:
        (run,) = stage.runs(1)
        without = self._fast(stage, web, run)
        (run,) = stage.runs(1)
        more: dict[str, Any] = {"stalled": self.stalled, "reconnect": True, "seconds": STALLED_SECONDS}
        with stage.load(web, [run], self.stalled, until_seq=self._last, **more) as stalled:
            stalled.wait_open()
            among = self._fast(stage, web, run)
            resumed = self._resume(stalled)
        return {"without": without, "with": among, "resumed": resumed}

    @property
    def _last(self) -> int:
        return 1 + round(self.rate * self.seconds)

    def _fast(self, stage: Stage, web: RuntailWeb, run: str) -> Figures:
        limit = self.seconds + GRACE_SECONDS
        with stage.load(web, [run], self.windows, until_seq=self._last, seconds=limit) as load:
            load.wait_open()
            with stage.writer(web, [run], self.rate, self._last - 1, self.payload_bytes) as writer:
                rss = _peak_rss(writer, web.workers())
                written = writer.result(limit)
            found = load.result()
        expected = self.windows * (self._last - 1)
        latency = {name: found["latency"].get(name, float("inf")) for name in ("p50_ms", "p99_ms")}
        return {**latency, "rss": rss, "delivered": found["frames"] / expected, "late": written["late_p99_ms"]}

    def _resume(self, stalled: Load) -> dict[str, Any]:
        """What is stalled gets time to be closed, the lag limit once more, then comes back by cursor."""
        stalled.wait_parked(self.lag_seconds + PATIENCE_SECONDS)
        stalled.say("resume")
        return stalled.finish(self.seconds + GRACE_SECONDS)

    def _summary(self, pairs: Sequence[Figures]) -> Figures:
        def median(half: str, name: str) -> float:
            return statistics.median(pair[half][name] for pair in pairs)

        resumed = [pair["resumed"] for pair in pairs]
        return {
            "without_p50_ms": median("without", "p50_ms"),
            "with_p50_ms": median("with", "p50_ms"),
            "without_p99_ms": median("without", "p99_ms"),
            "with_p99_ms": median("with", "p99_ms"),
            "p99_ratio": statistics.median(pair["with"]["p99_ms"] / pair["without"]["p99_ms"] for pair in pairs),
            "p99_growth_ms": statistics.median(pair["with"]["p99_ms"] - pair["without"]["p99_ms"] for pair in pairs),
            "delivered": min(pair[half]["delivered"] for pair in pairs for half in ("without", "with")),
            "rss_growth_mb": statistics.median(pair["with"]["rss"] - pair["without"]["rss"] for pair in pairs) / 1e6,
            "stalled": self.stalled * self.pairs,
            **{name: sum(each[name] for each in resumed) for name in ("stalled_closed", "complete", "gaps", "repeats")},
            "snapshots": sum(each["snapshots"] for each in resumed),
            "closed_after_max_ms": max(each["stall_closing"].get("max_ms", 0) for each in resumed),
            "writer_late_p99_ms": max(pair[half]["late"] for pair in pairs for half in ("without", "with")),
        }


def _peak_rss(writer: Child, pids: Sequence[int]) -> int:
    """Most resident bytes that the processes had while the writer wrote."""
    peak = 0
    while not writer.ended:
        peak = max(peak, usage(pids).rss)
        time.sleep(SAMPLE_SECONDS)
    return peak
