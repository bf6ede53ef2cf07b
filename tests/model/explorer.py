"""Visits every state of a model, breadth first, and says what goes wrong: pure Python, knows nothing of runs.

A step may raise `Violation`; a state may be refused by the model's `inspect`. Beside these, progress is checked: from
every state a good end must be reachable by steps that are no faults. Traces are shortest.
"""

from array import array
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

S = TypeVar("S", bound=Hashable)


class Violation(Exception):
    """An invariant is broken. The text before the first colon is the kind."""


@dataclass(frozen=True, slots=True)
class Step:
    """One atomic step that can be made in a state: `after` is the state then, or what it breaks."""

    label: str
    after: Hashable | Violation
    fault: bool = False


class Model(Protocol):
    """What can be explored."""

    def start(self) -> Hashable:
        """The first state."""

    def steps(self, state: Hashable) -> Iterable[Step]:
        """Everything that may happen next."""

    def inspect(self, state: Hashable) -> None:
        """:raises Violation: the state itself must not be."""

    def is_good_end(self, state: Hashable) -> bool:
        """The run is over, and all is as it should be."""


@dataclass(slots=True)
class Exploration:
    """What was visited, and the first counterexample of each kind: kind → (what is broken, the steps to it)."""

    states: int = 0
    steps: int = 0
    depth: int = 0
    complete: bool = True
    """Every reachable state was visited."""
    broken: dict[str, tuple[str, list[str]]] = field(default_factory=dict)

    def __str__(self) -> str:
        size = f"{self.states} states, {self.steps} steps, at most {self.depth} deep"
        told = [f"{what}\n    " + "\n    ".join(trace) for what, trace in self.broken.values()]
        return "\n  ".join([size + ("" if self.complete else " (not all)"), *told])


class Explorer:
    """One exploration. A state that violates something is not gone on from."""

    def __init__(self, model: Model, most_states: int = 5_000_000, *, stop_at_first: bool = False) -> None:
        self._model = model
        self._most = most_states
        self._stop_at_first = stop_at_first
        self._index: dict[Hashable, int] = {}
        self._came: list[tuple[int, str]] = []
        self._depth = array("l")
        self._before: list[array[int]] = []
        """Of each state those from which a step that is no fault leads to it."""
        self._bad: set[int] = set()
        self._good: list[int] = []
        self.result = Exploration()

    def explore(self) -> Exploration:
        """Visit everything, or as much as was asked for."""
        todo: deque[Hashable] = deque()
        self._enter(self._model.start(), -1, "", todo)
        while todo and not (self._stop_at_first and self.result.broken):
            if len(self._came) > self._most:
                self.result.complete = False
                break
            state = todo.popleft()
            here = self._index[state]
            if here not in self._bad:
                self._go_on(state, here, todo)
        self.result.states = len(self._came)
        self.result.depth = max(self._depth)
        if self.result.complete and not self.result.broken:
            self._check_progress()
        return self.result

    def _go_on(self, state: Hashable, here: int, todo: deque[Hashable]) -> None:
        for step in self._model.steps(state):
            self.result.steps += 1
            if isinstance(step.after, Violation):
                self._bad.add(here)
                self._note(step.after, here, step.label)
                continue
            there = self._enter(step.after, here, step.label, todo)
            if not step.fault:
                self._before[there].append(here)

    def _enter(self, state: Hashable, origin: int, label: str, todo: deque[Hashable]) -> int:
        new = len(self._came)
        here = self._index.setdefault(state, new)
        if here != new:
            return here
        self._came.append((origin, label))
        self._depth.append(self._depth[origin] + 1 if origin >= 0 else 0)
        self._before.append(array("l"))
        todo.append(state)
        try:
            self._model.inspect(state)
        except Violation as violation:
            self._bad.add(here)
            self._note(violation, here)
        if self._model.is_good_end(state):
            self._good.append(here)
        return here

    def _check_progress(self) -> None:
        fine, todo = bytearray(len(self._came)), list(self._good)
        while todo:
            here = todo.pop()
            if not fine[here]:
                fine[here] = 1
                todo.extend(self._before[here])
        stuck = fine.find(0)
        if stuck >= 0:
            states = list(self._index)
            self._note(Violation(f"stuck: no good end can be reached without a fault: {states[stuck]}"), stuck)

    def _note(self, violation: Violation, here: int, last: str | None = None) -> None:
        kind = str(violation).partition(":")[0]
        if kind in self.result.broken:
            return
        trace = [last] if last else []
        while here > 0:
            here, label = self._came[here]
            trace.append(label)
        self.result.broken[kind] = (str(violation), trace[::-1])
