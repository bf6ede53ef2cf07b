"""`fanout` and `wide`: every event of an evenly paced writer to every window, on Runtail and on the baselines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.processes import BenchError, Usage, usage
from bench.report import Figures, Result
from bench.servers import BASELINES, Server, WrittenInC, WrittenInPython
from bench.stage import Stage

GRACE_SECONDS = 15.0
"""After the writer's time, for what is still under way; who needs longer has not delivered all."""
LATE_MS = 5.0
CLIENT_SHARE = 0.8
ALL = "all"
DELIVERY = ("min_frames", "max_frames", "gaps", "repeats", "snapshots", "complete", "clean_ends", "broken_ends")


@dataclass(frozen=True, slots=True)
class Delivery:
    """What both have in common: the load, and what is measured."""

    windows: int
    runs: int
    rate: float
    seconds: float
    payload_bytes: int
    clients: int

    @property
    def per_run(self) -> int:
        """Events of each run."""
        return max(1, round(self.rate * self.seconds / self.runs))

    def measure(self, stage: Stage, server: Server, result: Result) -> Figures:
        """Run one server under the load."""
        runs = stage.runs(self.runs)
        more: dict[str, Any] = {"until_seq": 1 + self.per_run, "seconds": self.seconds + GRACE_SECONDS}
        redis_pid = stage.embedded.pid("redis")
        with server, stage.load(server, runs, self.windows, self.clients, **more) as load:
            open_s = stage.wait_open(load, server, runs)
            before, redis_before = usage(server.workers()), usage([redis_pid])
            with stage.writer(server, runs, self.rate, self.per_run, self.payload_bytes) as writer:
                connections = stage.redis_commands(server.workers())
                written = writer.result(self.seconds + GRACE_SECONDS)
                found = load.result()
            after, redis_after = usage(server.workers()), usage([redis_pid])
        doubt(server.name, written, found, self.clients, result)
        told = figures(found, self.windows * self.per_run, before, after)
        return {
            "open_s": open_s,
            "redis_connections": connections.total(),
            "redis_last_commands": ", ".join(f"{n} {command}" for command, n in connections.most_common()),
            **told,
            "redis_cpu_s": redis_after.cpu_s - redis_before.cpu_s,
            "writer_rate": written["rate"],
            "writer_late_p99_ms": written["late_p99_ms"],
        }


def figures(found: dict[str, Any], expected: int, before: Usage, after: Usage) -> Figures:
    cpu, frames = after.cpu_s - before.cpu_s, found["frames"]
    return {
        "frames": frames,
        "delivered": frames / expected,
        "missing": expected - frames,
        **{name: found["latency"].get(name) for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms")},
        **{name: found[name] for name in DELIVERY},
        "web_cpu_s": cpu,
        "web_cpu_us_per_frame": cpu / frames * 1e6 if frames else None,
        "web_cpu_share": cpu / found["measured_s"],
        "web_rss_mb": after.rss / 1e6,
        "client_cpu_share": found["measured_cpu_s"] / found["measured_s"],
    }


def doubt(name: str, written: dict[str, Any], found: dict[str, Any], clients: int, result: Result) -> None:
    """Figures of a writer that was late, or of a load client that was busy, are not the server's own."""
    if written["late_p99_ms"] > LATE_MS:
        result.doubts.append(f"{name}: the writer ran {written['late_p99_ms']:.1f} ms late (p99).")
    if found["incomplete"]:
        result.doubts.append(f"{name}: not everything was delivered, for example to {found['incomplete'][0]}.")
    share = found["measured_cpu_s"] / found["measured_s"] / clients
    if share > CLIENT_SHARE:
        result.doubts.append(f"{name}: the load client was busy {share:.0%} of the time.")


def chosen(baselines: str, applicable: tuple[str, ...], result: Result) -> list[type[Server]]:
    """The baselines that were asked for (names with commas between, `all` or `none`) and that this machine has.

    :raises BenchError: a name is none of them.
    """
    asked = list(applicable) if baselines == ALL else [name for name in baselines.split(",") if name and name != "none"]
    if unknown := set(asked) - set(applicable):
        raise BenchError(f"The baselines here are {', '.join(applicable)}, not {', '.join(sorted(unknown))}.")
    result.not_installed += [name for name in asked if not BASELINES[name][1]()]
    return [BASELINES[name][0] for name in asked if name not in result.not_installed]


def compare(
    delivery: Delivery, stage: Stage, webs: Sequence[Server], baselines: str, applicable: tuple[str, ...]
) -> Result:
    """Runtail, then each baseline, one after the other."""
    result = Result(compare=("web_cpu_us_per_frame", "p50_ms", "p99_ms"))
    kinds = chosen(baselines, applicable, result)
    for server in (*webs, *map(stage.baseline, kinds)):
        try:
            result.servers[server.name] = delivery.measure(stage, server, result)
        except BenchError as error:
            if server.name == "runtail":
                raise
            result.doubts.append(f"{server.name}: {error}")  # a baseline that breaks down is a finding
    return result


@dataclass(frozen=True, slots=True)
class Fanout:
    """Many windows on one run."""

    windows: int = 1_000
    rate: float = 100
    seconds: float = 10
    payload_bytes: int = 120
    clients: int = 1
    baselines: str = ALL

    def run(self, stage: Stage) -> Result:
        """Play it."""
        delivery = Delivery(self.windows, 1, self.rate, self.seconds, self.payload_bytes, self.clients)
        return compare(delivery, stage, [stage.web()], self.baselines, tuple(BASELINES))


@dataclass(frozen=True, slots=True)
class Wide:
    """Many windows, each on a run of its own; once with a writer in C, once with the one in Python."""

    windows: int = 8_000
    rate: float = 4_000
    seconds: float = 10
    payload_bytes: int = 120
    clients: int = 1
    baselines: str = ALL

    def run(self, stage: Stage) -> Result:
        """Play it."""
        delivery = Delivery(self.windows, self.windows, self.rate, self.seconds, self.payload_bytes, self.clients)
        webs = [stage.web(kind=WrittenInC), stage.web(kind=WrittenInPython)]
        return compare(delivery, stage, webs, self.baselines, ("xread-per-client",))
