"""How an agent is declared."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runtail.run import Run

if TYPE_CHECKING:
    from marshmallow import Schema

GEVENT, PROCESS = "gevent", "process"
"""Isolations: many runs share a process and take turns, or each has a process to itself."""
RESUME, RESTART, FAIL = "resume", "restart", "fail"
"""What a run does that another version of its agent began."""
EXTERNAL = "external"
"""The agent, by name, of runs that no worker executes."""


@dataclass(frozen=True, slots=True)
class Agent:
    """A plain synchronous function and what the server needs to know about it."""

    name: str
    function: Callable[[Run], object]
    input: "type[Schema]"
    version: str
    isolation: str = GEVENT
    on_version_change: str = RESUME
    strict_output: bool = False

    def __call__(self, run: Run) -> object:
        """Call the function itself, as one agent does that builds on another. No run is started."""
        return self.function(run)


def agent(
    name: str,
    *,
    input: "type[Schema]",
    version: str = "1",
    isolation: str = GEVENT,
    on_version_change: str = RESUME,
    strict_output: bool = False,
) -> Callable[[Callable[[Run], object]], Agent]:
    """Declare a function as the agent `name`.

    :param input: marshmallow schema of the run's input; validated at POST and loaded before the function is called.
    :param version: change it when the function makes other calls than before.
    :param isolation: `process` for an agent that computes for long or blocks: it gets a process for each run.
    :param on_version_change: what becomes of a run that another version began: `resume` goes on with its recorded
        calls, which the new code must repeat; `restart` begins again from the top, calling every tool anew; `fail`
        ends it as `agent_changed`.
    :param strict_output: a text that is returned has to be the text of the run's answer, or the run fails, as
        `reconciliation_failed`. Otherwise what was not said yet is said at the end, in place of what was.
    """
    if isolation not in (GEVENT, PROCESS) or on_version_change not in (RESUME, RESTART, FAIL):
        raise ValueError(f"The agent {name!r} has no valid isolation or on_version_change.")
    if name == EXTERNAL:
        raise ValueError(f"{name!r} is the agent of runs that no worker executes; give yours another name.")

    def declare(function: Callable[[Run], object]) -> Agent:
        return Agent(name, function, input, version, isolation, on_version_change, strict_output)

    return declare
