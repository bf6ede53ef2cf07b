"""Explores who may write a run, and what wakes it, in a model: every interleaving of a scenario (see `scenarios`).

`make test-model` explores the long scenarios as well and prints what was visited.
"""

import os

import pytest

from tests.model.explorer import Exploration, Explorer, Step, Violation
from tests.model.runs import RULES
from tests.model.scenarios import LONG, NEEDED_FOR, SHORT
from tests.model.world import Scenario, World

THOROUGH = bool(os.environ.get("RUNTAIL_MODEL_LONG"))


def _explore(scenario: Scenario, *, stop_at_first: bool = False) -> Exploration:
    return Explorer(World(scenario), stop_at_first=stop_at_first).explore()


@pytest.mark.timeout(1_800 if THOROUGH else 120)
@pytest.mark.parametrize("name", [*SHORT, *(LONG if THOROUGH else ())])
def test_with_all_rules_no_interleaving_breaks_an_invariant(name: str) -> None:
    found = _explore((SHORT | LONG)[name])
    print(f"\n{name}: {found}")
    assert found.complete
    assert not found.broken, str(found)
    assert found.states > 300


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_needed(rule: str) -> None:
    """Without it there is a counterexample, which is printed; so the explorer can fail."""
    found = _explore(NEEDED_FOR[rule].without(rule), stop_at_first=True)
    print(f"\nWithout this rule: {RULES[rule]}\n{found}")
    assert found.broken, f"Nothing breaks without {rule}."


# The explorer itself.


class Counter:
    """From 0 up to `top` and back to 0, of which only `good` is a good end; above `top` by a fault alone."""

    def __init__(self, top: int, good: int, broken: int = -1) -> None:
        self.top, self.good, self.broken = top, good, broken

    def start(self) -> int:
        return 0

    def steps(self, n: int) -> list[Step]:
        if n == self.broken:
            return [Step("break", Violation("broken: it was to break"))]
        if n > self.top:
            return []
        return [
            Step(f"to {(n + 1) % (self.top + 1)}", (n + 1) % (self.top + 1)),
            Step("fault", self.top + 1, fault=True),
        ]

    def inspect(self, n: int) -> None:
        """Every number may be."""

    def is_good_end(self, n: int) -> bool:
        return n in (self.good, self.top + 1)


def test_the_explorer_visits_every_state_once() -> None:
    found = Explorer(Counter(top=9, good=3)).explore()
    assert (found.states, found.steps, found.broken) == (11, 20, {})


def test_the_explorer_gives_the_shortest_way_to_what_breaks() -> None:
    found = Explorer(Counter(top=9, good=3, broken=2)).explore()
    assert found.broken == {"broken": ("broken: it was to break", ["to 1", "to 2", "break"])}


def test_an_end_that_only_a_fault_leads_to_is_no_progress() -> None:
    found = Explorer(Counter(top=9, good=-1)).explore()
    assert list(found.broken) == ["stuck"]
