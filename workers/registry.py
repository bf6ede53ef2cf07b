"""Agents by name: how one is declared, and which ones this worker has."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from marshmallow import RAISE, Schema, ValidationError

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


def load_agents() -> dict[str, Agent]:
    """The built-in agents, then those of the entry-point group `runtail.agents`, which win over a built-in's name."""
    package = importlib.import_module("workers.agents")
    modules = [importlib.import_module(f"workers.agents.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    found: list[Any] = [value for module in modules for value in vars(module).values()]
    found += [entry_point.load() for entry_point in entry_points(group=ENTRY_POINTS)]
    return {value.name: value for value in found if isinstance(value, Agent)}


def input_schema(schema: type[Schema]) -> dict[str, Any]:
    """JSON Schema (2020-12) of an input; unknown fields are refused as marshmallow refuses them."""
    converted = schema_json(schema)
    return {**converted, "type": "object", "additionalProperties": schema().unknown != RAISE}
