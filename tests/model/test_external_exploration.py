"""Explores who may write an external run, and how it ends, as `test_exploration` does for those of workers."""

import os

import pytest

from tests.model.explorer import Exploration, Explorer
from tests.model.external_scenarios import LONG, NEEDED_FOR, SHORT
from tests.model.external_store import RULES, SPARE
from tests.model.external_world import ExternalScenario, ExternalWorld

THOROUGH = bool(os.environ.get("RUNTAIL_MODEL_LONG"))


def _explore(scenario: ExternalScenario, *, stop_at_first: bool = False) -> Exploration:
    return Explorer(ExternalWorld(scenario), stop_at_first=stop_at_first).explore()


@pytest.mark.timeout(1_800 if THOROUGH else 120)
@pytest.mark.parametrize("name", [*SHORT, *(LONG if THOROUGH else ())])
def test_with_all_rules_no_interleaving_breaks_an_external_run(name: str) -> None:
    found = _explore((SHORT | LONG)[name])
    print(f"\n{name}: {found}")
    assert found.complete
    assert not found.broken, str(found)
    assert found.states > 300


@pytest.mark.parametrize("name", ["a writer that wavers, an ending taken over", "Redis back with less, a crash"])
def test_what_redis_and_an_end_check_beside_that_is_not_needed(name: str) -> None:
    """Nobody has to rely on it."""
    found = _explore(SHORT[name].without(*SPARE))
    assert not found.broken, str(found)


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_of_external_runs_is_needed(rule: str) -> None:
    """Without it there is a counterexample, which is printed."""
    found = _explore(NEEDED_FOR[rule].without(rule), stop_at_first=True)
    print(f"\nWithout this rule: {RULES[rule]}\n{found}")
    assert found.broken, f"Nothing breaks without {rule}."
