"""What a play amounted to, as numbers and as a table."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from tests.chaos.evidence import Evidence
from tests.chaos.play import Blow


def takeover_seconds(evidence: Evidence, *, alone: bool) -> list[float]:
    """For each run that lost its worker: from the kill to the first event of its next owner.

    :param alone: only kills of a worker and nothing else; otherwise only those in a pair.
    """
    blows = [blow for blow in evidence.play.blows if blow.victim.kind in ("worker", "isolated")]
    kills = [_seconds(blow.wall) for blow in blows]
    pairs = [len(blow.round.victims) > 1 for blow in blows]
    found = []
    for events in evidence.archive.events.values():
        for event in events:
            if event.type == "run.step" and event.envelope()["payload"]["reason"] == "worker_lost":
                at = _seconds(event.envelope()["ts"])
                kill = bisect_right(kills, at) - 1
                if kill >= 0 and pairs[kill] != alone:
                    found.append(at - kills[kill])
    return found


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which so large a share is; 0 where there is none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def table(evidence: Evidence) -> str:
    """For people."""
    return "\n".join(f"{name:<42} {value}" for name, value in _rows(evidence)) + "\n\n" + _blows(evidence.play.blows)


def _rows(evidence: Evidence) -> Iterator[tuple[str, object]]:
    play, archive, windows = evidence.play, evidence.archive, evidence.play.windows
    statuses = sum((window.statuses for window in windows), Counter[int]())
    yield "seed, width, seconds", f"{play.seed}, {play.width}, {play.seconds:.0f}"
    yield "rounds", len({blow.round.number for blow in play.blows})
    yield "kills", f"{len(play.blows)}: {_counts(blow.victim.kind for blow in play.blows)}"
    yield "runs", f"{len(play.started)}: {_counts(order.agent for order in play.started.values())}"
    yield "  by status", _counts(archive.runs[run_id].status for run_id in play.started)
    yield "  that changed hands by a crash", sum(_crashes(evidence, run_id) > 0 for run_id in play.started)
    yield "  most crashes of one run", max((_crashes(evidence, run_id) for run_id in play.started), default=0)
    yield "  whose tools found no database", sum(map(evidence.diverted, play.started))
    yield "events archived", sum(len(events) for events in archive.events.values())
    yield "events received", sum(len(window.texts) for window in windows)
    yield "windows, connections", f"{len(windows)}, {sum(window.connections for window in windows)}"
    yield "connections' ends by status", dict(sorted(statuses.items()))
    yield "connections given up as silent", sum(window.silences for window in windows)
    yield "requests asked again", dict(play.retries)
    yield "lost, repeated", f"{sum(w.lost for w in windows)}, {sum(w.repeated for w in windows)}"
    yield "gaps, snapshots", f"{sum(w.gaps for w in windows)}, {sum(len(w.snapshots) for w in windows)}"
    yield "writers that died and were followed", play.writers_followed
    yield "recorded tool calls", len(archive.results)
    yield (
        "effects of calls that can be counted",
        f"{sum(map(len, archive.plain.values()))} plain, {len(archive.keyed)} keyed",
    )
    yield "doubled effects of recorded calls", evidence.doubled()
    yield "calls in flight that were made again", evidence.in_flight()
    yield "approvals", _counts(str(a.decision) for found in archive.approvals.values() for a in found)
    yield "decisions answered", _counts(str(decided.status) for decided in play.decided)
    yield "refunds", sum(archive.refunds.values())
    yield "worker killed → goes on elsewhere", _spread(takeover_seconds(evidence, alone=True))
    yield "  where something else was killed too", _spread(takeover_seconds(evidence, alone=False))


def _blows(blows: Sequence[Blow]) -> str:
    lines = [f"{'round':<6} {'killed':<16} level again after"]
    lines += [f"{blow.round.number:<6} {blow.victim!s:<16} {_spread(blow.level)}" for blow in blows]
    return "\n".join(lines)


def _crashes(evidence: Evidence, run_id: str) -> int:
    return sum(
        event.type == "run.step" and event.envelope()["payload"]["reason"] == "worker_lost"
        for event in evidence.archive.events[run_id]
    )


def _spread(seconds: Sequence[float]) -> str:
    p50, p95, most = (percentile(seconds, share) for share in (0.5, 0.95, 1))
    return f"p50 {p50:.1f} s, p95 {p95:.1f} s, max {most:.1f} s of {len(seconds)}"


def _counts(names: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(names).items()))


def _seconds(ts: str) -> float:
    return datetime.fromisoformat(ts).timestamp()
