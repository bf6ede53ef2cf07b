"""How a run ends whose agent has returned."""

from app.errors import InvalidEvent, InvalidJson, InvalidOutput, TooDeep
from app.hooks import Hooks
from app.pace import paced
from app.protocol.ending import Ending, check_strict, given_output, is_said, said_output
from app.turns import give_way
from runtail import Run
from runtail.journaled import Journaled
from runtail.texts import clean_text
from runtail.values import clean
from workers.execution.runner import Outlet


def conclude(run: Run, calls: Journaled, outlet: Outlet, hooks: Hooks, output: object, *, strict: bool) -> Ending:
    """The end of the run, given what its agent has returned.

    :raises InvalidOutput: it is not JSON, or too large.
    :raises HookFailed: a hook refuses it.
    :raises ReconciliationFailed: it is strict, and a text was returned that is not the one that was streamed.
    :raises NondeterministicAgent: a recorded call was not made.
    """
    calls.check()  # an agent may have caught what was to stop it
    if isinstance(output, str):
        output = _said(run, calls, outlet, clean_text(str.__str__(output)), strict)
    calls.journal.check_used_up()
    outlet.settle()
    state = outlet.writer.state
    try:
        said = said_output(state, given_output(state, clean(output, give_way)), paced)
        payload = {**said, "usage": state["usage"], "digest": ""}
        return Ending.of(state, hooks("run.completed", payload))
    except (InvalidJson, TooDeep, InvalidEvent) as error:
        raise InvalidOutput(f"The agent's output is not valid: {error.detail}") from error


def _said(run: Run, calls: Journaled, outlet: Outlet, text: str, strict: bool) -> str:
    """The text, which the log has then: one that was not said is said now, in place of what was."""
    if not run.answered:
        return run.stream([text])
    if not calls.journal.is_known(calls.upcoming):  # else an earlier invocation has come as far as the last line
        outlet.settle()
        if strict:
            check_strict(outlet.writer.state, text)
        if is_said(outlet.writer.state, text, paced):
            return text
    return run.replace_answer(text)
