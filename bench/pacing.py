"""An even pace of events, in turn over all runs, into some sink; the main part of every writer process.

Responsible for when which event is written and for telling how late that was. Not responsible for how it is written.
"""

import argparse
import json
import select
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

TICK_SECONDS = 0.001
MOST_AT_ONCE = 500
"""Events of one write, when the pace has to be caught up with."""
CREATED_SEQ = 1
"""The event that each run has before a writer comes."""


class Due(NamedTuple):
    """An event to be written now."""

    run_id: str
    seq: int


class Sink(Protocol):
    """Where a writer's events go."""

    def write(self, events: Sequence[Due]) -> None:
        """Stamp and write them, in order. Blocks until they are written."""

    def end(self, ends: Sequence[Due]) -> None:
        """Write the terminal event of runs."""


@dataclass(slots=True)
class Pace:
    """`rate` events a second over the runs in turn; `per_run` of each, without end where that is 0."""

    runs: Sequence[str]
    rate: float
    per_run: int
    written: int = 0
    late_ms: list[float] = field(default_factory=list)

    def turns(self, begun: float) -> Iterator[list[Due]]:
        """What is due at each turn; blocks in between. Ends early when a line, or the end, comes on stdin."""
        total = len(self.runs) * self.per_run or sys.maxsize
        while self.written < total:
            now = time.monotonic()
            due_at = begun + self.written / self.rate
            if due_at > now:
                if _told_to_finish(max(due_at - now, TICK_SECONDS)):
                    return
                continue
            self.late_ms.append((now - due_at) * 1_000)
            count = min(int((now - begun) * self.rate) + 1 - self.written, total - self.written, MOST_AT_ONCE)
            yield [self._event(self.written + i) for i in range(count)]
            self.written += count
            if count == MOST_AT_ONCE and _told_to_finish(0):
                return

    def heads(self) -> list[Due]:
        """The last event of each run."""
        each, more = divmod(self.written, len(self.runs))
        return [Due(run, CREATED_SEQ + each + (i < more)) for i, run in enumerate(self.runs)]

    def _event(self, number: int) -> Due:
        turn, index = divmod(number, len(self.runs))
        return Due(self.runs[index], CREATED_SEQ + 1 + turn)


def _told_to_finish(seconds: float) -> bool:
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def arguments() -> argparse.ArgumentParser:
    """What every writer is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--runs", type=Path, required=True, help="a file with one run id a line")
    parser.add_argument("--rate", type=float, required=True, help="events a second over all runs")
    parser.add_argument("--per-run", type=int, required=True, help="events of each run; 0: until a line on stdin")
    parser.add_argument("--payload-bytes", type=int, required=True, help="size of each event's payload, about")
    parser.add_argument("--end", action="store_true", help="end each run with its terminal event")
    return parser


def write(sink: Sink, options: argparse.Namespace) -> None:
    """Write as told, then report on stdout as JSON: events, seconds, the rate, and by how much it ran late."""
    pace = Pace(options.runs.read_text().split(), options.rate, options.per_run)
    begun = time.monotonic()
    print(f'begun {{"ns": {time.monotonic_ns()}}}', file=sys.stderr, flush=True)
    for events in pace.turns(begun):
        sink.write(events)
    seconds = time.monotonic() - begun
    heads = pace.heads()
    if options.end:
        for first in range(0, len(heads), MOST_AT_ONCE):
            sink.end([Due(run, seq + 1) for run, seq in heads[first : first + MOST_AT_ONCE]])
    report = {"events": pace.written, "seconds": seconds, "rate": pace.written / seconds if seconds else 0}
    head = heads[-1].seq + bool(options.end)
    print(json.dumps({**report, "least_head": head, **_lateness(pace.late_ms)}))


def _lateness(late_ms: list[float]) -> dict[str, float]:
    if len(late_ms) < 2:
        return {"late_p50_ms": 0.0, "late_p99_ms": 0.0, "late_max_ms": max(late_ms, default=0.0)}
    return {
        "late_p50_ms": statistics.median(late_ms),
        "late_p99_ms": statistics.quantiles(late_ms, n=100)[-1],
        "late_max_ms": max(late_ms),
    }
