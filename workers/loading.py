"""The agents that a worker has, by name, and what the server is told of them."""

import importlib
import logging
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from marshmallow import RAISE, Schema, ValidationError

from app.dev.authors_log import LOGGER
from app.errors import InvalidInput
from app.protocol.payloads import schema_json
from app.storage.run_queue import queue_of
from app.storage.run_store import AgentRecord
from runtail.agent import Agent

ENTRY_POINTS = "runtail.agents"
authors_log = logging.getLogger(LOGGER)
"""What the author of an agent should see: what the agent raised, and why it could not be loaded."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The agents that a worker has, by name, and why it lacks others: a sentence by the name of the entry point."""

    agents: dict[str, Agent]
    broken: dict[str, str]


def load_agents(*, demo: bool) -> Loaded:
    """The agents of the entry-point group `runtail.agents`. One that cannot be loaded takes no other one away.

    :param demo: also the built-in agents. An entry point's agent wins over a built-in one of the same name.
    """
    agents = {agent.name: agent for agent in _built_in()} if demo else {}
    broken: dict[str, str] = {}
    declared: dict[str, str] = {}
    for entry_point in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry_point: entry_point.name):
        try:
            agent = _load(entry_point)
            if earlier := declared.get(agent.name):
                raise ValueError(f"The entry point {earlier!r} has an agent of the name {agent.name!r} already.")
        except (Exception, SystemExit) as error:  # whatever a module of the user's does while it is imported
            broken[entry_point.name] = f"{entry_point.value} cannot be loaded: {type(error).__name__}: {error}"
            authors_log.exception("The entry point %r of %s cannot be loaded.", entry_point.name, ENTRY_POINTS)
        else:
            agents[agent.name] = agent
            declared[agent.name] = entry_point.name
    return Loaded(agents, broken)


def _built_in() -> Iterator[Agent]:
    package = importlib.import_module("workers.agents")
    for module in pkgutil.iter_modules(package.__path__):
        values = vars(importlib.import_module(f"workers.agents.{module.name}")).values()
        yield from (value for value in values if isinstance(value, Agent))


def _load(entry_point: EntryPoint) -> Agent:
    """:raises TypeError: it names something else than an agent. And whatever the module raises."""
    value = entry_point.load()
    if not isinstance(value, Agent):
        raise TypeError(f"It is a {type(value).__name__}, not a function declared with @agent(…).")
    return value


def input_schema(schema: type[Schema]) -> dict[str, Any]:
    """JSON Schema (2020-12) of an input; unknown fields are refused as marshmallow refuses them."""
    converted = schema_json(schema)
    return {**converted, "type": "object", "additionalProperties": schema().unknown != RAISE}


def load_input(agent: Agent, input: dict[str, Any]) -> dict[str, Any]:
    """The input of a run with defaults filled in.

    :raises InvalidInput: it does not fit the agent's schema.
    """
    try:
        loaded: dict[str, Any] = agent.input().load(input)
    except ValidationError as error:
        raise InvalidInput(f"The input does not fit {agent.name!r}: {error.messages}") from error
    return loaded


def record_of(agent: Agent) -> AgentRecord:
    """What the API validates inputs with."""
    return AgentRecord(agent.name, input_schema(agent.input), agent.isolation, agent.version)


def queue_of_agent(agent: Agent) -> str:
    """The queue whose workers execute it."""
    return queue_of(agent.isolation)
