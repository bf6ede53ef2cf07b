"""One play: keep so many runs in flight, each with a window, and strike. Then wait for the last run to end.

What happened is written down in a `Play`; what must be true of it is said in `evidence`.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from random import Random
from typing import Any

from app.protocol.events import timestamp
from tests.chaos.commands import Callers, Decided, Started
from tests.chaos.installation import Installation
from tests.chaos.schedule import EXTERNAL, Order, Round, Victim, orders, references
from tests.chaos.windows import Window, Windows
from tests.chaos.writers import Writers

TURN_SECONDS = 0.02
WARM_SECONDS = 90.0
"""Within which the first runs must have begun."""
LEVEL_SECONDS = 60.0
"""Within which every window must have got something new after a blow."""
END_SECONDS = 120.0
"""Within which every run must have ended after the last blow."""
DISTURBED = 0.15
"""Share of the clients that lose their connections by themselves, once a round."""
AT_REST = ("run.waiting", "approval.required")


@dataclass(slots=True)
class Blow:
    """One kill -9, or backends stopped, and what became level after it, when."""

    round: Round
    victim: Victim
    at: float
    """Monotonic seconds."""
    wall: str
    """As events have it."""
    waiting: set[Window] = field(default_factory=set, repr=False)
    """Windows that have got nothing yet that was emitted after it."""
    level: list[float] = field(default_factory=list)
    """After how many seconds each of the others had."""


@dataclass(slots=True)
class Play:
    """What happened."""

    seed: int
    width: int
    started: dict[str, Order] = field(default_factory=dict)
    """By run id."""
    decided: list[Decided] = field(default_factory=list)
    blows: list[Blow] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    complaints: list[str] = field(default_factory=list)
    unlevel: list[str] = field(default_factory=list)
    """What had got nothing new LEVEL_SECONDS after a blow."""
    writers_followed: int = 0
    """Writers of external runs that died, and were followed by another one."""
    references: list[str] = field(default_factory=list)
    """Ids of the runs that ended before the first blow."""
    seconds: float = 0.0


class Director:
    """Plays the rounds of one seed on an installation."""

    def __init__(self, installation: Installation, seed: int, rounds: list[Round], width: int) -> None:
        """:param width: runs in flight, each with a window."""
        self.play = Play(seed, width)
        self._installation = installation
        self._rounds = rounds
        self._randomly = Random(f"disturbances of {seed}")
        self._orders = orders(seed)
        self._callers = Callers(installation.url)
        self._writers = Writers(installation.url)
        self._windows = Windows()
        self._asked = 0
        self._refilling = False
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def run(self) -> Play:
        """From the first run to the end of the last, or until END_SECONDS have passed."""
        began = time.monotonic()
        try:
            for _ in self._acts():
                self._turn()
        finally:
            self._callers.close()
            self._writers.close()
            for result in self._results():  # rivals whose answer nobody waits for
                self._take(result)
            self._windows.close()
        self.play.seconds = time.monotonic() - began
        self.play.windows = self._windows.all
        self.play.retries = self._callers.retries
        self.play.complaints = self._callers.complaints + self._writers.complaints
        self.play.writers_followed = self._writers.deaths
        return self.play

    def _acts(self) -> Iterator[None]:
        """What happens in order; each `yield` is a turn of the loop."""
        yield from self._play_references()
        self._refilling = True
        yield from self._until(lambda: self._begun() >= self.play.width, WARM_SECONDS)
        for round in self._rounds:
            yield from self._pause(round.pause)
            self._windows.disturb(DISTURBED, self._randomly)
            for n, victim in enumerate(round.victims):
                yield from self._pause(round.gap if n else 0)
                self._strike(round, victim)
            yield from self._until_level(round)
        self._refilling = False
        _tell(f"waiting for the end of {sum(1 for _ in self._windows)} runs")
        yield from self._until(lambda: not any(self._windows) and not self._owed, END_SECONDS)

    def _play_references(self) -> Iterator[None]:
        """A run of each kind while nothing is killed, to compare the others with."""
        models = references()
        self._ask(models[:1])  # makes the shop's tables
        yield from self._until_calm(1)
        self._installation.fill_shop()
        self._ask(models[1:])
        yield from self._until_calm(len(models))
        self.play.references = list(self.play.started)

    def _until_calm(self, runs: int) -> Iterator[None]:
        yield from self._until(lambda: len(self._windows.all) == runs and not any(self._windows), WARM_SECONDS)

    def _pause(self, seconds: float) -> Iterator[None]:
        return self._until(lambda: False, seconds)

    def _until(self, true: Callable[[], bool], seconds: float) -> Iterator[None]:
        deadline = time.monotonic() + seconds
        while not true() and time.monotonic() < deadline:
            yield

    def _until_level(self, round: Round) -> Iterator[None]:
        blows = [blow for blow in self.play.blows if blow.round is round]
        yield from self._until(lambda: not any(self._unlevel(blow) for blow in blows), LEVEL_SECONDS)
        for blow in blows:
            left = self._unlevel(blow)
            _tell(f"round {round.number}: {blow.victim} struck; {_levelled(blow)}, {len(left)} nothing")
            self.play.unlevel += [
                f"{window.run_id} after seq {window.cursor} ({window.type}), by {blow.victim} of round {round.number}"
                for window in left
            ]

    def _unlevel(self, blow: Blow) -> list[Window]:
        """Windows that still wait for something new, where it is not the run that waits."""
        blow.waiting = {window for window in blow.waiting if not window.done}
        return [window for window in blow.waiting if window.type not in AT_REST]

    def _strike(self, round: Round, victim: Victim) -> None:
        self._installation.kill(victim)
        live = {window for window in self._windows if window.cursor}
        self.play.blows.append(Blow(round, victim, time.monotonic(), timestamp(), live))

    # The loop.

    def _turn(self) -> None:
        self._refill()
        self._windows.turn(TURN_SECONDS)
        for result in self._results():
            self._take(result)
        now = time.monotonic()
        due = [timer for timer in self._timers if timer[0] <= now]
        self._timers = [timer for timer in self._timers if timer[0] > now]
        for _, action in due:
            action()

    def _results(self) -> Iterator[Started | Decided]:
        yield from self._callers.results()
        yield from self._writers.results()

    @property
    def _owed(self) -> int:
        """Runs that were asked for and have no window yet."""
        return self._asked - len(self._windows.all)

    def _begun(self) -> int:
        """Windows that have got something."""
        return sum(window.cursor > 1 for window in self._windows)

    def _refill(self) -> None:
        if self._refilling:
            missing = self.play.width - sum(1 for _ in self._windows) - self._owed
            self._ask(islice(self._orders, max(0, missing)))

    def _ask(self, orders: Iterable[Order]) -> None:
        for order in orders:
            (self._writers if order.agent == EXTERNAL else self._callers).start(order)
            self._asked += 1

    def _take(self, result: Started | Decided) -> None:
        if isinstance(result, Decided):
            self.play.decided.append(result)
            return
        self.play.started[result.run_id] = result.order
        self._windows.add(Window(self._installation.port, result.run_id, result.order.accept, self._heard))

    def _heard(self, window: Window, envelope: dict[str, Any]) -> None:
        for blow in self.play.blows[-2:]:
            if window in blow.waiting and envelope["ts"] >= blow.wall:
                blow.waiting.discard(window)
                blow.level.append(time.monotonic() - blow.at)
        if envelope["type"] == "approval.required":
            self._decide_later(window.run_id, envelope["payload"]["approval_id"])

    def _decide_later(self, run_id: str, approval_id: str) -> None:
        decision = self.play.started[run_id].decision
        verdicts = [decision.verdict]
        verdicts += [decision.opposite] * decision.rivalled + [decision.verdict] * decision.repeated
        for verdict in verdicts:
            ask = partial(self._callers.decide, run_id, approval_id, verdict)
            self._timers.append((time.monotonic() + decision.after, ask))


def _levelled(blow: Blow) -> str:
    after = f"the last after {max(blow.level):.1f} s" if blow.level else "none"
    return f"{len(blow.level)} windows have got something new, {after}"


def _tell(text: str) -> None:
    """For whoever waits (pytest -s)."""
    print(text, flush=True)
