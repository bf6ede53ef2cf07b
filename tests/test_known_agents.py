"""A web process reads an agent once; a registration that comes later counts from its commit on all the same."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from app.errors import InvalidInput, UnknownAgent
from app.storage.run_queue import queue_of
from app.storage.run_store import AgentRecord, Registry, RunRecord
from app.verbs.runs import Runs, StartRequest
from app.wiring import Services
from tests.conftest import execute
from tests.harness import DEV

NUMBER = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
TEXT = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}
FIRST = AgentRecord("a", NUMBER, "gevent", "1")


class Changing(Registry):
    """Another process registers the agent anew after it was read, as often as it is told to."""

    times = 0

    def agent(self, name: str) -> AgentRecord | None:
        found = super().agent(name)
        if found is not None and self.times:
            self.times -= 1
            self.put_agent(replace(found, version=f"{found.version}+"))
        return found


@pytest.fixture
def registry(apart: Services) -> Iterator[Changing]:
    """With the agent `a`, which takes a number."""
    registry = Changing(apart.database)
    registry.put_agent(FIRST)
    yield registry
    execute(apart.config.database_url, "DELETE FROM agents")


@pytest.fixture
def runs(apart: Services, registry: Changing) -> Runs:
    """The verbs of a web process."""
    return Runs(replace(apart, registry=registry))


def start(runs: Runs, x: Any, **more: Any) -> RunRecord:
    values: dict[str, Any] = {
        "session_id": None,
        "on_disconnect": "continue",
        "timeout_s": None,
        "metadata": {},
        "client_run_id": None,
        "idempotency_key": None,
    }
    return runs.start(DEV, StartRequest(agent="a", input={"x": x}, **{**values, **more}))


def test_a_run_is_of_the_version_that_is_registered_when_it_is_committed(runs: Runs, registry: Changing) -> None:
    assert start(runs, 1).agent_version == "1"
    registry.put_agent(replace(FIRST, version="2", isolation="process"))
    run = start(runs, 1)
    assert (run.agent_version, run.queue) == ("2", queue_of("process"))


def test_an_input_is_taken_by_the_schema_that_is_registered_now(runs: Runs, registry: Changing) -> None:
    start(runs, 1)
    registry.put_agent(replace(FIRST, input_schema=TEXT))
    start(runs, "one")
    registry.put_agent(FIRST)
    with pytest.raises(InvalidInput):
        start(runs, "one")
    start(runs, 1)


def test_an_agent_that_is_gone_is_not_known_any_more(apart: Services, runs: Runs) -> None:
    start(runs, 1)
    execute(apart.config.database_url, "DELETE FROM agents")
    with pytest.raises(UnknownAgent):
        start(runs, 1)


@pytest.mark.parametrize("named", [{}, {"idempotency_key": "k"}, {"client_run_id": "c"}], ids=str)
def test_an_agent_that_is_registered_again_and_again_delays_a_run_and_refuses_none(
    runs: Runs, registry: Changing, named: dict[str, str]
) -> None:
    registry.times = 3
    run = start(runs, 1, **named)
    assert run.agent_version == "1+++"
    if named:
        assert start(runs, 1, **named).id == run.id


def test_a_name_that_was_used_is_found_with_whatever_registration(
    apart: Services, runs: Runs, registry: Changing
) -> None:
    run = start(runs, 1, idempotency_key="k")
    registry.put_agent(replace(FIRST, version="2"))
    assert start(runs, 1, idempotency_key="k").id == run.id
    assert start(Runs(apart), 1, idempotency_key="k").id == run.id
