"""How a run ends whose agent has returned."""

from app.errors import InvalidEvent, InvalidJson, InvalidOutput, TooDeep
from app.hooks import Hooks
from app.pace import paced
from app.protocol.ending import Ending, reconcile, said_output
from app.turns import give_way
from runtail import Run
from runtail.journaled import Journaled
from runtail.values import clean
from workers.execution.runner import Outlet


def conclude(run: Run, calls: Journaled, outlet: Outlet, hooks: Hooks, output: object) -> Ending:
    """The end of the run, given what its agent has returned.

    A text that was not streamed is streamed now, so that there is one answer; for nothing see `reconcile`.

    :raises InvalidOutput: it is not JSON, or too large.
    :raises HookFailed: a hook refuses it.
    :raises ReconciliationFailed: a text was returned that is not the one that was streamed.
    :raises NondeterministicAgent: a recorded call was not made.
    """
    calls.check()  # an agent may have caught what was to stop it
    if isinstance(output, str) and not run.answered:
        output = run.stream([output])
    calls.journal.check_used_up()
    outlet.settle()
    state = outlet.writer.state
    try:
        said = said_output(state, reconcile(state, clean(output, give_way)), paced)
        payload = {**said, "usage": state["usage"], "digest": ""}
        return Ending.of(state, hooks("run.completed", payload))
    except (InvalidJson, TooDeep, InvalidEvent) as error:
        raise InvalidOutput(f"The agent's output is not valid: {error.detail}") from error
