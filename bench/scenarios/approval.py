"""`approval`: from a decision to the run going on."""

import time
from dataclasses import dataclass, field

from bench.client import Api, Window
from bench.quantiles import quantiles
from bench.report import Figures, Result
from bench.stage import Stage

DAY_SECONDS = 86_400
LIMITS = {"resumed_p50_ms": 50}


@dataclass(frozen=True, slots=True)
class Approval:
    """POST of a decision to the first event of the next invocation, seen in a window, one run after the other."""

    decisions: int = 200
    warm_up: int = 10

    def run(self, stage: Stage) -> Result:
        """Play it."""
        with stage.web() as web, stage.worker(), Api(web.port) as api:
            for measured in (Decisions(web.port, api), decisions := Decisions(web.port, api)):
                for _ in range(self.decisions if measured is decisions else self.warm_up):
                    measured.decide(api.start("bench_ask", {"expires_in": DAY_SECONDS}))
        return Result({"runtail": {"decisions": self.decisions, **decisions.figures()}}, limits=LIMITS)


@dataclass(slots=True)
class Decisions:
    """Milliseconds from before the request."""

    port: int
    api: Api
    resumed: list[float] = field(default_factory=list)
    went_on: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)

    def decide(self, run: str) -> None:
        """Approve what the run asks for, once it waits."""
        with Window(self.port, run) as window:
            asked = window.until("approval.required").event["payload"]["approval_id"]
            window.until("run.waiting")
            begun = time.monotonic()
            self.api.send(f"/runs/{run}/approvals/{asked}", {"decision": "approved"})
            resumed, went_on = window.until("run.resumed").at, window.until("custom.went_on").at
            self.api.answer()
            self.answer.append((time.monotonic() - begun) * 1_000)
            window.until("run.completed")
        self.resumed.append((resumed - begun) * 1_000)
        self.went_on.append((went_on - begun) * 1_000)

    def figures(self) -> Figures:
        """The quantiles of: the run is resumed, its agent says something new, the request is answered."""
        resumed, went_on = quantiles("resumed", self.resumed), quantiles("went_on", self.went_on)
        return {**resumed, **went_on, **quantiles("answer", self.answer)}
