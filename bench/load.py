"""The load client from Python: builds `sseload.c`, runs one or several of it, adds up what they counted.

Responsible for the client processes. Not responsible for what the windows check: see `sseload.c`.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from bench.processes import BenchError, Child, eventually

SOURCE = Path(__file__).parent / "sseload.c"
ADDRESS_WINDOWS = 2_000
"""Windows per loopback source address: an address has about 28,000 ports, and closed ones rest for a minute."""
OPEN_SECONDS = 180
SLACK_SECONDS = 30
HISTOGRAMS = ("latency", "completion", "leveling", "stall_closing")
LEAST = ("min_frames", "min_seq", "ready_ns")
MOST = ("max_frames", "max_seq", "ended_ns", "measured_s")


def build(source: Path, folder: Path) -> Path:
    """Compile a C program into the folder, once per content of it and of the headers beside it.

    :raises BenchError: there is no gcc, or it refuses.
    """
    gcc = shutil.which("gcc")
    if gcc is None:
        raise BenchError(f"The benchmarks need gcc to build {source.name}; there is none on PATH.")
    content = b"".join(path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h"))))
    binary = folder / f"{source.stem}-{hashlib.sha256(content).hexdigest()[:12]}"
    if not binary.exists():
        fresh = binary.with_suffix(f".{os.getpid()}")
        done = subprocess.run([gcc, "-O2", "-o", fresh, source], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"gcc does not build {source.name}: {done.stderr.strip()}")
        fresh.replace(binary)
    return binary


@dataclass(frozen=True, slots=True)
class Windows:
    """What a load client is to open and how its windows behave; the fields are the options of `sseload.c`."""

    port: int
    paths: Sequence[str]
    windows: int
    since: int | None = None
    until_seq: int | None = None
    seconds: float = 30
    stalled: int = 0
    reconnect: bool = False
    seq: str = "id"
    websocket: bool = False
    headers: Sequence[str] = field(default=())

    def arguments(self) -> list[str]:
        """As the load client takes them, without its share of the windows."""
        addresses = self.windows // ADDRESS_WINDOWS + 1
        found = [f"--port={self.port}", f"--seconds={self.seconds}", f"--seq={self.seq}", f"--addresses={addresses}"]
        found += [f"--header={header}" for header in self.headers]
        found += [] if self.since is None else [f"--since={self.since}"]
        found += [] if self.until_seq is None else [f"--until-seq={self.until_seq}"]
        found += ["--reconnect"] if self.reconnect else []
        found += ["--websocket"] if self.websocket else []
        return [*found, f"--open-seconds={OPEN_SECONDS}"]


class Load:
    """Windows open in `clients` processes, the paths dealt out in turn. Use it in a `with` block."""

    def __init__(self, windows: Windows, folder: Path, clients: int = 1) -> None:
        self.windows = windows
        self._folder = folder
        self._clients = min(clients, windows.windows)
        self._children: list[Child] = []
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        binary = build(SOURCE, self._folder)
        for index in range(self._clients):
            paths = self._folder / f"paths-{os.getpid()}-{id(self)}-{index}"
            paths.write_text("".join(f"{path}\n" for path in self._share(self._each_path(), index)))
            command = [str(binary), f"--paths={paths}", f"--windows={self._of(self.windows.windows, index)}"]
            command += [f"--stalled={self._of(self.windows.stalled, index)}", *self.windows.arguments()]
            self._children.append(self._exit.enter_context(Child("sseload", command, self._folder)))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def wait_open(self, meanwhile: Callable[[], object] = lambda: None) -> float:
        """Wait until all windows are open. Returns the seconds that it took the slowest client.

        :raises BenchError: some could not be opened.
        """

        def ready() -> list[dict[str, Any]]:
            meanwhile()
            return self._all_heard("ready")

        said = eventually(ready, OPEN_SECONDS + SLACK_SECONDS, "The opening of all windows")
        if failed := sum(each["failed"] for each in said):
            raise BenchError(f"{failed} of {self.windows.windows} windows could not be opened.")
        return max(each["open_s"] for each in said)

    def ask_level(self, seq: int) -> None:
        """Have it told when every window is open and has this seq."""
        self.say(f"level {seq}")

    def wait_level(self, seconds: float) -> int:
        """Wait for what `ask_level` asked. Returns the moment, CLOCK_MONOTONIC ns.

        :raises BenchError: it did not come in time.
        """
        said = eventually(lambda: self._all_heard("level"), seconds, "The moment that all windows are level")
        return max(each["ns"] for each in said)

    def wait_parked(self, seconds: float) -> None:
        """Wait until the server has closed all stalled windows, but no longer than that."""
        with suppress(BenchError):  # the result says how many it has closed
            eventually(lambda: self._all_heard("parked"), seconds, "The end of all stalled windows")

    def say(self, command: str) -> None:
        """Give every client process a command."""
        for child in self._children:
            child.say(command)

    def result(self) -> dict[str, Any]:
        """Wait for the end, by completeness or time, and return the sums."""
        seconds = OPEN_SECONDS + self.windows.seconds + SLACK_SECONDS
        return add_up([child.result(seconds) for child in self._children])

    def finish(self, seconds: float) -> dict[str, Any]:
        """Wait so long for every window to be complete, then end it and return the sums."""
        with suppress(BenchError):  # some are not: the sums say how many
            eventually(lambda: all(child.ended for child in self._children), seconds, "The end of all windows")
        self.say("finish")
        return self.result()

    def _all_heard(self, word: str) -> list[dict[str, Any]]:
        said = [child.heard(word) for child in self._children]
        return [each for each in said if each is not None] if all(said) else []

    def _each_path(self) -> list[str]:
        paths = self.windows.paths
        return [paths[i % len(paths)] for i in range(self.windows.windows)]

    def _share(self, items: Sequence[str], index: int) -> Sequence[str]:
        return items[index :: self._clients]

    def _of(self, total: int, index: int) -> int:
        return len(range(index, total, self._clients))


def add_up(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One result for several client processes: sums, extremes, and the quantiles of all latencies together."""
    total: dict[str, Any] = {}
    for name in results[0]:
        values = [result[name] for result in results]
        if isinstance(values[0], list):
            total[name] = [item for value in values for item in value]
        elif name in HISTOGRAMS:
            total[name] = _quantiles([pair for value in values for pair in value["histogram"]], values)
        else:
            total[name] = min(values) if name in LEAST else max(values) if name in MOST else sum(values)
    return total


def _quantiles(pairs: list[list[int]], values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds, rounded up to the histogram's bounds; none where nothing was measured. It can be added up again."""
    count = sum(number for _, number in pairs)
    found: dict[str, Any] = {"count": count, "histogram": pairs}
    if not count:
        return found
    found |= {f"p{q}_ms": _quantile(sorted(pairs), count * q / 100) for q in (50, 95, 99)}
    return {**found, "max_ms": max(value.get("max_ms", 0) for value in values)}


def _quantile(pairs: list[list[int]], rank: float) -> float:
    seen = 0
    for bound, number in pairs:
        seen += number
        if seen > rank:
            return bound / 1e6
    return pairs[-1][0] / 1e6
