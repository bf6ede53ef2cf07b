"""Honest runs beside agents that misbehave in every known way, for a long time: none of them pays for a neighbour.

`make test-soak` plays half an hour; ARGS='--soak-seconds 60' less. It prints what it came to.
"""

import random
import re
import statistics
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import StackMaker
from tests.harness import AGENTS, Stack, eventually

pytestmark = pytest.mark.timeout(7_200)

HONEST, HARMFUL = 100, 10
"""Runs in flight."""
HONEST_SECONDS = 10
PATIENCE_SECONDS = 30
"""Harmful runs that ask, or sleep, for longer than that are cancelled: what they did has been done."""
TICK_SECONDS = 0.5
SAMPLE_SECONDS = 5
CALLS = 10
"""Tool calls of one honest run."""
MEMORY_SLACK_BYTES = 30_000_000
DESCRIPTORS_SLACK = 20


@dataclass
class Played:
    """What was started, and what the processes cost meanwhile: (bytes, descriptors) per sample."""

    honest: list[str] = field(default_factory=list)
    harmful: dict[str, str] = field(default_factory=dict)
    """Run id to what it does."""
    samples: list[tuple[int, int]] = field(default_factory=list)


def ways() -> list[tuple[str, str]]:
    """(agent, way) of all that is known to be harmful to others, or impossible to store."""
    names = {"harm": "harmful_agents", "in_a_loop": "asyncio_agents", "gives": "poison_agents"}
    return [(agent, way) for agent, module in names.items() for way in _ways_of(AGENTS / f"{module}.py")]


def _ways_of(module: Path) -> list[str]:
    """By name, without importing what only a worker should import."""
    text = module.read_text()
    return re.findall(r"^@way\ndef (\w+)", text, re.MULTILINE) or re.findall(r'^    "(\w+)": ', text, re.MULTILINE)


class Soak:
    """Keeps so many runs of both kinds in flight."""

    def __init__(self, server: Stack, folder: Path, seed: int) -> None:
        self._server = server
        self._folder = folder
        self._random = random.Random(seed)
        self._ways = ways()
        self._in_flight: dict[str, dict[str, float]] = {"honest": {}, "harmful": {}}
        """Run id to when it was started."""
        self._processes = [psutil.Process(process.pid) for process in server.processes]
        self.played = Played()

    def play(self, seconds: float) -> Played:
        """Play for so long, then let all runs end."""
        began = sampled = time.monotonic()
        while time.monotonic() - began < seconds:
            self._fill()
            if time.monotonic() - sampled >= SAMPLE_SECONDS:
                sampled = time.monotonic()
                self.played.samples.append(self._cost())
            time.sleep(TICK_SECONDS)
        eventually(lambda: self._forget_ended() == 0, 120, "the end of all runs")
        return self.played

    def _fill(self) -> None:
        self._forget_ended()
        for _ in range(HONEST - len(self._in_flight["honest"])):
            self._start_honest()
        for _ in range(HARMFUL - len(self._in_flight["harmful"])):
            self._start_harmful()

    def _start_honest(self) -> None:
        n = len(self.played.honest)
        run_id = self._server.start("honest", {"calls": str(self._folder / f"{n}.calls"), "seconds": HONEST_SECONDS})
        self.played.honest.append(run_id)
        self._in_flight["honest"][run_id] = time.monotonic()

    def _start_harmful(self) -> None:
        agent, way = self._random.choice(self._ways)
        input = {"way": way, "calls": str(self._folder / "harmful.calls"), "mark": "3", "seconds": 2}
        run_id = self._server.start(agent, input, timeout_s=20)
        self.played.harmful[run_id] = f"{agent} {way}"
        self._in_flight["harmful"][run_id] = time.monotonic()

    def _forget_ended(self) -> int:
        """Forget what has ended; returns how many runs have not."""
        for kind in self._in_flight.values():
            for run_id in [run_id for run_id in kind if self._server.read(run_id)["finished_at"]]:
                del kind[run_id]
        for run_id, began in self._in_flight["harmful"].items():
            if time.monotonic() - began > PATIENCE_SECONDS:
                self._server.http.post(f"/runs/{run_id}/cancel")
        return sum(map(len, self._in_flight.values()))

    def _cost(self) -> tuple[int, int]:
        family = [child for process in self._processes for child in [process, *process.children(recursive=True)]]
        memory = descriptors = 0
        for process in family:
            with suppress(psutil.NoSuchProcess):  # an isolated run that has ended meanwhile
                if process.name().startswith(("python", "gunicorn")):
                    cost = process.memory_info().rss, process.num_fds()
                    memory, descriptors = memory + cost[0], descriptors + cost[1]
        return memory, descriptors


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    """A web process, two shared workers and one for isolated runs."""
    stack = module_stack()
    stack.start_web()
    for _ in range(2):
        stack.start_worker()
    stack.start_worker("--isolated")
    return stack


@pytest.fixture(scope="module")
def played(server: Stack, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Played:
    seconds, seed = (request.config.getoption(f"soak_{name}") for name in ("seconds", "seed"))
    found = Soak(server, tmp_path_factory.mktemp("soak"), seed).play(seconds)
    ends = Counter(f"{what}: {said(server, run_id)}" for run_id, what in found.harmful.items())
    print(f"\n{len(found.honest)} honest runs, {len(found.harmful)} harmful ones; seed {seed}")
    print(*(f"{number:5d}  {end}" for end, number in sorted(ends.items())), sep="\n")
    print("MB and descriptors over time:", [(memory // 1_000_000, fds) for memory, fds in found.samples[::12]])
    return found


def said(server: Stack, run_id: str) -> str:
    run = server.read(run_id)
    return f"{run['status']} {(run['error'] or {}).get('code', '')}"


def test_every_honest_run_completes_at_its_first_attempt(server: Stack, played: Played) -> None:
    wrong = [
        f"{run_id} {run['status']} at attempt {run['attempt']}: {run['error']}"
        for run_id in played.honest
        if ((run := server.read(run_id))["status"], run["attempt"]) != ("completed", 1)
    ]
    assert not wrong, wrong[:20]


def test_every_tool_call_of_an_honest_run_is_made_once(server: Stack, played: Played) -> None:
    def calls(run: dict[str, Any]) -> list[str]:
        return Path(run["input"]["calls"]).read_text().split()

    wrong = [run_id for run_id in played.honest if sorted(calls(server.read(run_id))) != [str(n) for n in range(CALLS)]]
    assert not wrong, wrong[:20]


def test_every_harmful_run_ends(server: Stack, played: Played) -> None:
    assert not [what for run_id, what in played.harmful.items() if not server.read(run_id)["finished_at"]]


def test_no_worker_is_lost(server: Stack, played: Played) -> None:
    assert [process.popen.poll() for process in server.processes] == [None] * len(server.processes)


def test_memory_and_descriptors_stay_flat(played: Played) -> None:
    """The last quarter against the second one: the first is for warming up."""
    quarter = len(played.samples) // 4
    if quarter < 6:
        pytest.skip("It was played for less than two minutes.")
    for cost, slack in ((0, MEMORY_SLACK_BYTES), (1, DESCRIPTORS_SLACK)):
        before, after = (
            statistics.median(sample[cost] for sample in part)
            for part in (played.samples[quarter : 2 * quarter], played.samples[-quarter:])
        )
        assert after <= before + slack, (before, after)
