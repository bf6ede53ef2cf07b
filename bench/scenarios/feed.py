"""`feed`: ordinary windows with and without a sampled admin feed. Does it show what was asked, do the others notice?

Pairs of the same load without and with the feed, in turn in this and in the other order, so that a change of the
machine's mood hits both; the quantiles are those of all halves of a kind together.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from app.storage.feed_log import WANTED
from bench.feed import STATUS, Feed
from bench.load import add_up
from bench.processes import eventually, usage
from bench.report import Figures, Result
from bench.scenarios.delivery import GRACE_SECONDS, LATE_MS
from bench.servers import RuntailWeb
from bench.stage import Stage
from bench.ticks import TYPE

LIMITS = {"rate_off_pct": 10, "p99_ratio": 1.1, "missing": 0, "gaps": 0, "repeats": 0, "feed_dropped": 0}
FORGOTTEN_SECONDS = 30.0
STATUS_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class FeedBeside:
    """Windows, each on a run of its own, with and without an admin feed that shows a sample of all events."""

    windows: int = 2_000
    rate: float = 4_000
    seconds: float = 10
    sample: float = 0.1
    payload_bytes: int = 120
    pairs: int = 5

    def run(self, stage: Stage) -> Result:
        """Play it."""
        with stage.web() as web:
            pairs = [self._pair(stage, web, number) for number in range(self.pairs)]
        figures = self._summary(pairs)
        late = figures["writer_late_p99_ms"]
        doubts = [f"The writer ran {late:.1f} ms late (p99)."] if late > LATE_MS else []
        return Result({"runtail": figures}, doubts=doubts, limits=LIMITS)

    def _pair(self, stage: Stage, web: RuntailWeb, number: int) -> Sequence[Figures]:
        order = (True, False) if number % 2 else (False, True)
        halves = {with_feed: self._half(stage, web, with_feed) for with_feed in order}
        return halves[False], halves[True]

    def _half(self, stage: Stage, web: RuntailWeb, with_feed: bool) -> Figures:
        """The same load, with a feed or without. Begins when no writer samples for an earlier feed any more."""
        runs, per_run = stage.runs(self.windows), max(1, round(self.rate * self.seconds / self.windows))
        more: dict[str, Any] = {"until_seq": 1 + per_run, "seconds": self.seconds + GRACE_SECONDS}
        eventually(lambda: not stage.redis_has(WANTED), FORGOTTEN_SECONDS, "The end of the last feed")
        with ExitStack() as exit:
            load = exit.enter_context(stage.load(web, runs, self.windows, **more))
            stage.wait_open(load, web, runs)
            feed = exit.enter_context(Feed(web.port, self.sample)) if with_feed else None
            if feed:
                eventually(lambda: stage.redis_has(WANTED), FORGOTTEN_SECONDS, "The wish for a feed")
            before = usage(web.workers())
            with stage.writer(web, runs, self.rate, per_run, self.payload_bytes) as writer:
                written = writer.result(self.seconds + GRACE_SECONDS)
            found = load.result()
            cpu_s = usage(web.workers()).cpu_s - before.cpu_s
            shown = self._shown(feed, written["events"]) if feed else {}
        return {
            "latency": found["latency"],
            **{name: found[name] for name in ("gaps", "repeats")},
            "missing": self.windows * per_run - found["frames"],
            "web_cpu_us_per_frame": cpu_s / found["frames"] * 1e6 if found["frames"] else float("inf"),
            "late_ms": written["late_p99_ms"],
            **shown,
        }

    def _shown(self, feed: Feed, events: int) -> Figures:
        """What the feed has shown of so many events. Its next status stands behind all of them."""
        told = len(feed.of_type(STATUS))
        eventually(lambda: len(feed.of_type(STATUS)) > told, STATUS_SECONDS, "The next status of the feed")
        shown, dropped = len(feed.of_type(TYPE)), feed.of_type(STATUS)[-1]["payload"]["dropped"]
        return {"shown": shown, "share": shown / events, "dropped": dropped}

    def _summary(self, pairs: Sequence[Sequence[Figures]]) -> Figures:
        without, with_feed = zip(*pairs, strict=True)
        halves, quiet, beside = [*without, *with_feed], _together(without), _together(with_feed)
        share = sum(half["share"] for half in with_feed) / len(with_feed)
        return {
            **{f"without_{name}": value for name, value in quiet.items()},
            **{f"with_{name}": value for name, value in beside.items()},
            "p99_ratio": beside["p99_ms"] / quiet["p99_ms"],
            "sample": self.sample,
            "share_shown": share,
            "rate_off_pct": max(abs(half["share"] / self.sample - 1) for half in with_feed) * 100,
            "shown_per_s": share * self.rate,
            "feed_dropped": sum(half["dropped"] for half in with_feed),
            **{name: sum(half[name] for half in halves) for name in ("missing", "gaps", "repeats")},
            "writer_late_p99_ms": max(half["late_ms"] for half in halves),
        }


def _together(halves: Sequence[Figures]) -> Figures:
    """What all halves of a kind come to."""
    latency = add_up([{"latency": half["latency"]} for half in halves])["latency"]
    cpu = statistics.median(half["web_cpu_us_per_frame"] for half in halves)
    return {**{name: latency.get(name, float("inf")) for name in ("p50_ms", "p99_ms")}, "web_cpu_us_per_frame": cpu}
