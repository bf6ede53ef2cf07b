"""`peers`: the same work on Runtail and on servers that others have made, one after the other."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import psutil

from bench.peers.environments import NotInstalled
from bench.peers.measures import Sizes, first_event, idle_windows, killed, reconnects, storage
from bench.peers.names import PEERS
from bench.peers.peer import Peer
from bench.peers.wire import Refused
from bench.processes import BenchError
from bench.report import Figures, Result
from bench.stage import Stage

T = TypeVar("T")

ALL = "all"
MISSING, NEVER = "missing", "never"
FOLDER = "~/.cache/runtail-bench"
MEASURES: dict[str, Callable[[Peer, Sizes], Figures]] = {
    "first-event": first_event,
    "reconnects": reconnects,
    "windows": idle_windows,
    "storage": storage,
    "kill": killed,
}


@dataclass(frozen=True, slots=True)
class Peers:
    """The same work on Runtail and its peers: first event, reconnects, kill -9, idle windows, storage."""

    only: str = ALL
    measures: str = ALL
    folder: str = FOLDER
    install: str = MISSING
    posts: int = 100
    events: int = 3_000
    interval_ms: float = 1
    cuts: int = 12
    away_ms: float = 100
    rounds: int = 3
    killed_events: int = 1_000
    killed_interval_ms: float = 10
    outage: float = 2
    patience: float = 150
    windows: int = 200
    stored_runs: int = 8
    deltas: int = 1_000
    delta_interval_ms: float = 20
    settle: float = 6

    def run(self, stage: Stage) -> Result:
        """Play it. A peer that cannot be installed is told as such; one that fails at something is a finding."""
        result = Result(compare=("first_delta_p50_ms", "window_server_bytes"))
        measures = chosen(self.measures, MEASURES, "measurements")
        for number, (name, kind) in enumerate(chosen(self.only, PEERS, "peers").items(), 1):
            peer = kind(stage, Path(self.folder).expanduser(), number)
            try:
                self._prepare(peer)
            except NotInstalled as error:
                result.not_installed.append(name)
                result.doubts.append(f"{name} is not installed: {error}")
                continue
            result.servers[name] = self._measure(peer, list(measures.values()), result)
        return result

    def _prepare(self, peer: Peer) -> None:
        environment = peer.environment()
        if environment is None or environment.installed:
            return
        if self.install == NEVER:
            raise NotInstalled("it was not to be installed")
        environment.install()

    def _measure(self, peer: Peer, measures: list[Callable[[Peer, Sizes], Figures]], result: Result) -> Figures:
        sizes = Sizes(**{field.name: getattr(self, field.name) for field in fields(Sizes)})
        figures: Figures = {
            "versions": ", ".join(f"{name} {version}" for name, version in peer.versions().items()),
            "as_run": peer.as_run,
            "not_for": peer.not_for,
            "comes_back_by": peer.resumes,
        }
        for measure in measures:
            begun = time.monotonic()
            try:
                figures |= measure(peer, sizes)
            except (BenchError, Refused, OSError, psutil.Error) as error:
                result.doubts.append(f"{peer.name}, {measure.__name__}, {time.monotonic() - begun:.0f} s: {error}")
        return figures


def chosen(names: str, of: dict[str, T], what: str) -> dict[str, T]:
    """Those that were asked for: names with commas between, or `all`.

    :raises BenchError: a name is none of them.
    """
    asked = list(of) if names == ALL else [name for name in names.split(",") if name]
    if unknown := set(asked) - set(of):
        raise BenchError(f"The {what} are {', '.join(of)}, not {', '.join(sorted(unknown))}.")
    return {name: of[name] for name in asked}
