"""`websockets`: as many WebSocket windows as SSE windows in one web process, weighed apart and followed together."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench.load import Load, Windows
from bench.processes import usage
from bench.report import Figures, Result
from bench.scenarios.delivery import CLIENT_SHARE, DELIVERY, GRACE_SECONDS, LATE_MS
from bench.servers import RuntailWeb
from bench.stage import Stage

OPEN_SECONDS = 300
SSE, WEBSOCKET = "sse", "websocket"
KINDS = (SSE, WEBSOCKET)
LIMITS = {
    "websocket_bytes_per_window": 4_096,
    **{f"{kind}_{name}": 0 for kind in KINDS for name in ("missing", "gaps", "repeats")},
    "websocket_odd_frames": 0,
}


@dataclass(frozen=True, slots=True)
class WebSockets:
    """WebSocket windows beside SSE windows: bytes of memory and delivery latency of each kind."""

    windows: int = 2_000
    """Of each kind."""
    runs: int = 2_000
    rate: float = 2_000
    seconds: float = 10
    idle_seconds: float = 20
    payload_bytes: int = 120
    warm_up: int = 1_000

    def run(self, stage: Stage) -> Result:
        """Play it."""
        result = Result(limits=LIMITS)
        weights = self._weigh(stage)
        result.servers["runtail"] = {"windows": self.windows, **weights, **self._deliver(stage, result)}
        return result

    # Memory.

    def _weigh(self, stage: Stage) -> Figures:
        """Each kind on runs of its own, a window on each. All stay open: what they take is given to no other."""
        figures: Figures = {}
        with stage.web(auth=True) as web, ExitStack() as exit:
            more: dict[str, Any] = {"headers": (stage.key(),), "seconds": OPEN_SECONDS}
            for kind in KINDS:
                self._open_idle(stage, exit, web, kind, self.warm_up, more)
            for kind in KINDS:
                before = usage(web.workers())
                opens_per_s = self._open_idle(stage, exit, web, kind, self.windows, more)
                after = usage(web.workers())
                figures[f"{kind}_opens_per_s"] = opens_per_s
                figures[f"{kind}_bytes_per_window"] = (after.rss - before.rss) / self.windows
                figures[f"{kind}_files_per_window"] = (after.fds - before.fds) / self.windows
        return figures

    def _open_idle(
        self, stage: Stage, exit: ExitStack, web: RuntailWeb, kind: str, windows: int, more: dict[str, Any]
    ) -> float:
        """Windows that stay open; returns how many were opened a second, once they were idle for long enough."""
        runs = stage.runs(windows)
        load = exit.enter_context(_load(stage, web, kind, runs, windows, **more))
        open_s = stage.wait_open(load, web, runs)
        time.sleep(self.idle_seconds)
        return windows / open_s

    # Delivery.

    def _deliver(self, stage: Stage, result: Result) -> Figures:
        """Both kinds on the same runs, at the same time."""
        runs, per_run = stage.runs(self.runs), max(1, round(self.rate * self.seconds / self.runs))
        more: dict[str, Any] = {"until_seq": 1 + per_run, "seconds": self.seconds + GRACE_SECONDS}
        with stage.web() as web, ExitStack() as exit:
            loads = {kind: exit.enter_context(_load(stage, web, kind, runs, self.windows, **more)) for kind in KINDS}
            for load in loads.values():
                stage.wait_open(load, web, runs)
            before = usage(web.workers())
            with stage.writer(web, runs, self.rate, per_run, self.payload_bytes) as writer:
                written = writer.result(self.seconds + GRACE_SECONDS)
                found = {kind: load.result() for kind, load in loads.items()}
            cpu_s = usage(web.workers()).cpu_s - before.cpu_s
        if written["late_p99_ms"] > LATE_MS:
            result.doubts.append(f"The writer ran {written['late_p99_ms']:.1f} ms late (p99).")
        frames = sum(each["frames"] for each in found.values())
        figures: Figures = {"web_cpu_us_per_frame": cpu_s / frames * 1e6 if frames else None}
        for kind, each in found.items():
            figures |= _figures(kind, each, self.windows * per_run)
            if figures[f"{kind}_client_cpu_share"] > CLIENT_SHARE:
                result.doubts.append(f"The load client of {kind} was busy most of the time.")
        return {**figures, "writer_late_p99_ms": written["late_p99_ms"]}


def _load(stage: Stage, web: RuntailWeb, kind: str, runs: Sequence[str], windows: int, **more: Any) -> Load:
    """A load client for windows of one kind, not opened yet."""
    if kind == SSE:
        return stage.load(web, runs, windows, **more)
    paths = [f"/runs/{run}/ws" for run in runs]
    return Load(Windows(web.port, paths, windows, since=web.since, websocket=True, **more), stage.folder)


def _figures(kind: str, found: dict[str, Any], expected: int) -> Figures:
    own = {
        "frames": found["frames"],
        "missing": expected - found["frames"],
        **{name: found["latency"].get(name) for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")},
        **{name: found[name] for name in (*DELIVERY, "odd_frames")},
        "client_cpu_share": found["measured_cpu_s"] / found["measured_s"],
    }
    return {f"{kind}_{name}": value for name, value in own.items()}
