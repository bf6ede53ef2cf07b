"""`replay`: how long a late joiner takes to have everything, from Redis and, once its stream is gone, from Postgres."""

import statistics
from dataclasses import dataclass
from typing import Any

from bench.processes import BenchError
from bench.report import Figures, Result
from bench.servers import RuntailWeb
from bench.stage import UNCAPPED, Stage


@dataclass(frozen=True, slots=True)
class Replay:
    """A late joiner on a long run, live and finished."""

    events: int = 5_000
    payload_bytes: int = 120
    joins: int = 20

    def run(self, stage: Stage) -> Result:
        """Play it."""
        live = stage.live_run(self.events, self.payload_bytes)
        finished = stage.finished_run(self.events, self.payload_bytes)
        with stage.web(UNCAPPED) as web:
            figures = {f"live_{name}": value for name, value in self._join(stage, web, live).items()}
            figures |= {f"finished_{name}": value for name, value in self._join(stage, web, finished).items()}
        return Result({"runtail": figures})

    def _join(self, stage: Stage, web: RuntailWeb, run: str) -> Figures:
        """Milliseconds from before the connection to the last event, of one joiner after the other."""
        found = [self._once(stage, web, run) for _ in range(self.joins)]
        times = [each["completion"]["max_ms"] for each in found]
        return {
            "first_ms": times[0],
            "p50_ms": statistics.median(times),
            "max_ms": max(times),
            **{name: sum(each[name] for each in found) for name in ("events", "gaps", "repeats", "snapshots")},
        }

    def _once(self, stage: Stage, web: RuntailWeb, run: str) -> dict[str, Any]:
        with stage.load(web, [run], 1, since=0, until_seq=self.events, seconds=10) as load:
            found = load.result()
        if not found["complete"]:
            raise BenchError(f"A joiner got {found['events']} of {self.events} events.")
        return found
