"""`storm`, `sigterm` and `redis-restart`: a process goes away under many windows, and nothing may be lost by it.

All three: windows on some runs, a writer that goes on all the time, the outage, the moment that every window is open
again and has what had been written when the process was started again; then the terminal events, to which every
window must come with every seq once.
"""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.load import Load
from bench.processes import Child
from bench.report import Figures, Result
from bench.servers import RuntailWeb
from bench.stage import Stage

PAYLOAD_BYTES = 120
LEVEL_SECONDS = 90.0
END_SECONDS = 60.0
LOAD_SECONDS = 600.0
GONE_SECONDS = 30.0
COUNTS = (
    *("windows", "complete", "events", "gaps", "repeats", "snapshots", "gap_frames", "rejected", "control_ids"),
    *("bad_status", "refused", "clean_ends", "broken_ends"),
)


@dataclass(slots=True)
class Scene:
    """Windows under a writer, in the middle of everything."""

    stage: Stage
    web: RuntailWeb
    runs: Sequence[str]
    load: Load
    writer: Child

    def ask_level(self) -> int:
        """Ask when every window will have what is written by now. Returns now, CLOCK_MONOTONIC ns."""
        self.load.ask_level(self.stage.head(self.runs[-1]))
        return time.monotonic_ns()

    def level_since(self, moment: int) -> float:
        """Seconds from then until they have."""
        return (self.load.wait_level(LEVEL_SECONDS) - moment) / 1e9

    def conclude(self) -> Figures:
        """End the runs; what every window has got by then.

        A window is complete at its terminal event; `gaps` are the seqs that one missed, `repeats` those it got again.
        """
        self.writer.say("finish")
        written = self.writer.result(END_SECONDS)
        found = self.load.finish(END_SECONDS)
        reconnects = found["opens"] + found["no_content"] - found["windows"]
        counts = {name: found[name] for name in COUNTS}
        counts["incomplete"] = ", ".join(found["incomplete"]) or None
        return {**counts, "reconnects": reconnects, "writer_late_max_ms": written["late_max_ms"]}


@contextmanager
def opened(stage: Stage, web: RuntailWeb, windows: int, runs: int, rate: float) -> Iterator[Scene]:
    """All windows open, the writer writing."""
    made = stage.runs(runs)
    more: dict[str, Any] = {"reconnect": True, "seconds": LOAD_SECONDS}
    with web, stage.load(web, made, windows, **more) as load:
        load.wait_open()
        with stage.writer(web, made, rate, 0, PAYLOAD_BYTES, end=True) as writer:
            writer.wait_heard("begun")
            yield Scene(stage, web, made, load, writer)


@dataclass(frozen=True, slots=True)
class Storm:
    """kill -9 of every web process, after which all clients come back at once."""

    windows: int = 5_000
    runs: int = 500
    rate: float = 500
    processes: int = 2
    before: float = 3
    """Seconds of quiet delivery before the kill."""
    outage: float = 2

    def run(self, stage: Stage) -> Result:
        """Play it."""
        web = stage.web(processes=self.processes)
        with opened(stage, web, self.windows, self.runs, self.rate) as scene:
            time.sleep(self.before)
            web.process.kill()
            time.sleep(self.outage)
            before = stage.transactions()
            web.launch()
            started = scene.ask_level()
            web.wait_ready()
            ready = time.monotonic_ns()
            level_s = scene.level_since(started)
            figures = scene.conclude()
            web.process.kill()
            transactions = stage.transactions() - before - self._idle(stage, web)
        times = self._times(level_s, (ready - started) / 1e9)
        return Result({"runtail": {**times, **figures, **_each(transactions, figures["reconnects"])}})

    def _times(self, level_s: float, ready_s: float) -> Figures:
        return {
            "level_after_start_s": level_s,
            "ready_after_start_s": ready_s,
            "level_after_ready_s": level_s - ready_s,
        }

    def _idle(self, stage: Stage, web: RuntailWeb) -> int:
        """Transactions that the same processes make without a client."""
        before = stage.transactions()
        web.start()
        web.process.kill()
        return stage.transactions() - before


def _each(transactions: int, reconnects: int) -> Figures:
    each = transactions / reconnects if reconnects else None
    return {"transactions": transactions, "transactions_per_reconnect": each}


@dataclass(frozen=True, slots=True)
class Sigterm:
    """SIGTERM under windows, as at every deploy, and a new process afterwards."""

    windows: int = 8_000
    runs: int = 500
    rate: float = 500
    processes: int = 1
    before: float = 3

    def run(self, stage: Stage) -> Result:
        """Play it."""
        web = stage.web(processes=self.processes)
        with opened(stage, web, self.windows, self.runs, self.rate) as scene:
            time.sleep(self.before)
            gone_s = web.process.stop(signal.SIGTERM, GONE_SECONDS)
            web.launch()
            started = scene.ask_level()
            web.wait_ready()
            level_s = scene.level_since(started)
            figures = scene.conclude()
        return Result({"runtail": {"gone_s": gone_s, "level_after_start_s": level_s, **figures}})


@dataclass(frozen=True, slots=True)
class RedisRestart:
    """kill -9 of Redis, which comes back with its append-only file."""

    windows: int = 1_000
    runs: int = 100
    rate: float = 200
    before: float = 3
    outage: float = 2

    def run(self, stage: Stage) -> Result:
        """Play it."""
        web = stage.web()
        with opened(stage, web, self.windows, self.runs, self.rate) as scene:
            time.sleep(self.before)
            stage.embedded.kill("redis")
            time.sleep(self.outage)
            stage.embedded.start("redis")
            back = scene.ask_level()
            level_s = scene.level_since(back)
            time.sleep(self.before)
            figures = scene.conclude()
        return Result({"runtail": {"level_after_back_s": level_s, **figures}})
