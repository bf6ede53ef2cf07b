"""`takeover`: a worker is killed, and what it had under way goes on in another one."""

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from bench.arrivals import Tail
from bench.client import Api
from bench.processes import BenchError, Child
from bench.quantiles import quantiles
from bench.report import Result
from bench.scenarios.streaming import end, stream
from bench.stage import Stage

PATIENCE_SECONDS = 60.0
LOOK_SECONDS = 0.01
FIRST = b"run.step"
LIMITS = {"takeover_p95_ms": 12_000, "not_taken_over": 0}


@dataclass(frozen=True, slots=True)
class Takeover:
    """kill -9 of a worker to the first event of each of its runs by its next owner, which had nothing to do."""

    runs: int = 50
    per_run: float = 2
    rounds: int = 5

    def run(self, stage: Stage) -> Result:
        """Play it. The one that takes over is the next round's victim."""
        taken: list[float] = []
        with ExitStack() as exit:
            web = exit.enter_context(stage.web())
            worker = exit.enter_context(stage.worker())
            api = exit.enter_context(Api(web.port))
            for _ in range(self.rounds):
                runs = stream(stage, api, self.runs, self.per_run)
                idle = exit.enter_context(stage.worker())  # started now, it has got none of them
                taken += kill(stage, worker, runs)
                worker = idle
                end(web.port, runs)
        killed = self.runs * self.rounds
        figures = {"killed": self.rounds, "runs": killed, "not_taken_over": killed - len(taken)}
        return Result({"runtail": {**figures, **quantiles("takeover", taken)}}, limits=LIMITS)


def kill(stage: Stage, worker: Child, runs: Sequence[str]) -> list[float]:
    """Kill a worker. Milliseconds until each of its runs has an event of its next owner, as far as it gets one."""
    begun = time.monotonic()
    worker.popen.kill()
    worker.popen.wait()
    taken: dict[str, float] = {}
    with closing(Tail(stage.embedded.redis_url, runs)) as tail:
        while len(taken) < len(runs) and time.monotonic() < begun + PATIENCE_SECONDS:
            time.sleep(LOOK_SECONDS)
            arrived, now = tail.read(), time.monotonic()
            for event in arrived:
                if event.type == FIRST:
                    taken.setdefault(event.run_id, (now - begun) * 1_000)
        if tail.gaps:
            raise BenchError(f"{tail.gaps} events are missing after a takeover.")
    return list(taken.values())
