"""`cancel`: runs that are stopped in the middle, among many that stream in the same worker."""

import random
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.client import Api, Window
from bench.processes import BenchError
from bench.quantiles import quantiles
from bench.report import Result
from bench.scenarios.streaming import TEXT, WITHOUT_END, end, stream, undisturbed
from bench.silent import Silent
from bench.stage import Stage

ENDED = "run.cancelled"
LIMITS = {
    "streaming_end_p50_ms": 100,
    "streaming_end_p99_ms": 500,
    "silent_end_p50_ms": 100,
    "silent_end_p99_ms": 500,
    "silent_closed_p50_ms": 100,
    "silent_closed_p99_ms": 500,
}


@dataclass(frozen=True, slots=True)
class Cancel:
    """POST of the cancel to the terminal event in a window, and to the end of a provider's connection."""

    streaming: int = 100
    per_run: float = 10
    victims: int = 200
    """Half of them stream too, the others hang in a provider that never answers."""

    def run(self, stage: Stage) -> Result:
        """Play it."""
        with ExitStack() as exit:
            web, _ = exit.enter_context(stage.web()), exit.enter_context(stage.worker(self.streaming + 2))
            api, silent = exit.enter_context(Api(web.port)), exit.enter_context(Silent())
            others = stream(stage, api, self.streaming, self.per_run)
            play = _Play(web.port, api, silent, self.per_run)
            for number in range(self.victims):
                play.cancel_streaming() if number % 2 else play.cancel_silent()
            still = undisturbed(stage, others)
            end(web.port, others)
        figures = {
            **{"streaming": self.streaming, "still_streaming": still, "victims": self.victims},
            **quantiles("streaming_end", play.streaming_end),
            **quantiles("silent_end", play.silent_end),
            **quantiles("silent_closed", play.silent_closed),
            **quantiles("answer", play.answer),
        }
        return Result({"runtail": figures}, limits=LIMITS)


@dataclass(slots=True)
class _Play:
    """Cancels one run after the other; milliseconds from before the request."""

    port: int
    api: Api
    silent: Silent
    per_run: float
    streaming_end: list[float] = field(default_factory=list)
    silent_end: list[float] = field(default_factory=list)
    silent_closed: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    chance: random.Random = field(default_factory=lambda: random.Random(1))

    def cancel_streaming(self) -> None:
        """A run that writes, at any moment between two pieces of text."""
        pause = 1 / self.per_run
        run = self.api.start("emit", {"count": WITHOUT_END, "interval_ms": pause * 1_000, "text": TEXT})
        with Window(self.port, run) as window:
            window.until("message.delta")
            time.sleep(self.chance.uniform(0, pause))
            _, ended = self._cancel(run, window)
        self.streaming_end.append(ended)

    def cancel_silent(self) -> None:
        """A run whose agent waits for the first byte of an answer."""
        run = self.api.start("bench_listen", {"url": self.silent.url})
        with Window(self.port, run) as window:
            window.until("run.started")
            self.silent.wait_asked()
            asked, ended = self._cancel(run, window)
        self.silent_end.append(ended)
        self.silent_closed.append((self.silent.wait_left() - asked) * 1_000)

    def _cancel(self, run: str, window: Window) -> tuple[float, float]:
        asked = time.monotonic()
        self.api.send(f"/runs/{run}/cancel")
        ended = (window.until(ENDED).at - asked) * 1_000
        if self.api.answer()["status"] != "cancelled":
            raise BenchError(f"{run} has ended, but not the answer that says so.")
        self.answer.append((time.monotonic() - asked) * 1_000)
        return asked, ended
