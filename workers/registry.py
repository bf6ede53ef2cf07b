"""Agents by name: how one is declared, and which ones this worker has."""

import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from marshmallow import RAISE, Schema, ValidationError

from app.dev.authors_log import LOGGER
from app.errors import InvalidInput
from app.protocol.payloads import schema_json
from app.storage.run_queue import queue_of
from app.storage.run_store import EXTERNAL, AgentRecord

if TYPE_CHECKING:
    from workers.context import RunContext

ENTRY_POINTS = "runtail.agents"
GEVENT, PROCESS = "gevent", "process"
"""Isolations: many runs share a process and take turns, or each has a process to itself."""
RESUME, RESTART, FAIL = "resume", "restart", "fail"
"""What a run does that another version of its agent began."""

authors_log = logging.getLogger(LOGGER)
"""What the author of an agent should see: what the agent raised, and why it could not be loaded."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A plain synchronous function and what the server needs to know about it."""

    name: str
    function: Callable[["RunContext"], object]
    input: type[Schema]
    version: str
    isolation: str = GEVENT
    on_version_change: str = RESUME

    @property
    def queue(self) -> str:
        """The queue whose workers execute it."""
        return queue_of(self.isolation)

    def load(self, input: dict[str, Any]) -> dict[str, Any]:
        """The input with defaults filled in.

        :raises InvalidInput: it does not fit the schema.
        """
        try:
            loaded: dict[str, Any] = self.input().load(input)
        except ValidationError as error:
            raise InvalidInput(f"The input does not fit {self.name!r}: {error.messages}") from error
        return loaded

    def __call__(self, run: "RunContext") -> object:
        """Call the function itself, as one agent does that builds on another. No run is started."""
        return self.function(run)

    def record(self) -> AgentRecord:
        """What the API validates inputs with."""
        return AgentRecord(self.name, input_schema(self.input), self.isolation, self.version)


def agent(
    name: str,
    *,
    input: type[Schema],
    version: str = "1",
    isolation: str = GEVENT,
    on_version_change: str = RESUME,
) -> Callable[[Callable[["RunContext"], object]], Agent]:
    """Declare a function as the agent `name`.

    :param input: marshmallow schema of the run's input; validated at POST and loaded before the function is called.
    :param version: change it when the function makes other calls than before.
    :param isolation: `process` for an agent that computes for long or blocks: it gets a process for each run.
    :param on_version_change: what becomes of a run that another version began: `resume` goes on with its recorded
        calls, which the new code must repeat; `restart` begins again from the top, calling every tool anew; `fail`
        ends it as `agent_changed`.
    """
    if isolation not in (GEVENT, PROCESS) or on_version_change not in (RESUME, RESTART, FAIL):
        raise ValueError(f"The agent {name!r} has no valid isolation or on_version_change.")
    if name == EXTERNAL:
        raise ValueError(f"{name!r} is the agent of runs that no worker executes; give yours another name.")

    def declare(function: Callable[["RunContext"], object]) -> Agent:
        return Agent(name, function, input, version, isolation, on_version_change)

    return declare


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
