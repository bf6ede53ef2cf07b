"""One invocation of the agent function, until it returns, raises, suspends or is interrupted.

A run has one invocation where nothing happens to it, and another one after each crash, hand-over and wait. The results
of earlier ones are in the journal: their calls are not made again.
"""

import logging
import traceback
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gevent

from app import errors
from app.errors import Fenced, RuntailError
from app.protocol.ending import Ending
from app.storage.log_writer import LogWriter
from app.storage.run_store import Recorded, RunRecord
from app.wiring import Services
from runtail import Run, ToolError
from runtail.agent import FAIL, RESTART, Agent
from runtail.interrupts import Interrupted, Suspended, TimedOut
from runtail.journal import Journal
from runtail.journaled import Journaled
from workers.execution.active_run import ActiveRun
from workers.execution.agent_log import AgentLog
from workers.execution.conclusion import conclude
from workers.execution.flusher import Flusher
from workers.execution.interrupts import Cancelled, Drained, Exited, Unstorable
from workers.execution.named import call_named
from workers.execution.outbox import Outbox
from workers.execution.retry import until_reachable
from workers.execution.runner import Outlet, Runner
from workers.loading import authors_log, load_input

RESUMED = "resumed"
"""Why there is another invocation when a run was waiting."""

INPUTS = 100
"""Inputs of one run that are read at a time."""

Outcome = Ending | Suspended | Drained
"""The run ends, is to wait, or is to be handed back."""

log = logging.getLogger(__name__)


class Invocations:
    """Executes invocations of runs, for one worker process."""

    def __init__(
        self, services: Services, flusher: Flusher, agents: dict[str, Agent], worker_id: str, runner: Runner
    ) -> None:
        self._services = services
        self._ownership = services.ownership
        self._flusher = flusher
        self._agents = agents
        self._worker_id = worker_id
        self._runner = runner

    def execute(self, active: ActiveRun, writer: LogWriter, reason: str | None) -> Outcome:
        """Execute the next invocation of a run.

        :param reason: why there is another one; None: this is the first.
        :raises Fenced: another worker owns the run.
        """
        journal = self._journal(active.run, writer, reason)
        outbox = active.outbox = self._flusher.open(writer, active.interrupt)
        try:
            return self._outcome(active, outbox, journal, reason)
        finally:
            self._flusher.close(outbox)
            active.outbox = None  # the two know each other: what the run holds is free as soon as it has ended

    def bring_inputs(self, outbox: Outbox, sent: int | None = None) -> None:
        """Write down the inputs that the log does not hold yet. May be done at any time, by several at once.

        :param sent: how many there are; None: that is not known.
        :raises StoreUnavailable: Postgres cannot be reached.
        """
        run_id, held = outbox.writer.run_id, outbox.writer.state["inputs"]
        while not outbox.closed and (sent is None or len(held) < sent):
            inputs = self._services.waits.inputs(run_id, len(held), INPUTS)
            for input in inputs:
                about = {"input_id": f"inp_{input.n}", "text": input.text}
                outbox.hear(input.n, input.text, self._services.hooks.fact("input.received", about))
            if len(inputs) < INPUTS:
                return

    def _recall_inputs(self, outbox: Outbox, after: int) -> None:
        """Read the inputs again that the log holds and the agent has not taken: it gets them as they were sent."""
        held = len(outbox.writer.state["inputs"])
        while after < held and (inputs := self._services.waits.inputs(outbox.writer.run_id, after, INPUTS)):
            outbox.inputs.update((input.n, input.text) for input in inputs)
            after = inputs[-1].n

    def _journal(self, run: RunRecord, writer: LogWriter, reason: str | None) -> Journal:
        if reason is None:
            assert run.started_at is not None
            return Journal(Recorded((), (), {}, run.started_at))
        while True:
            recorded = until_reachable(lambda: self._services.journal.recorded(run.id))
            if recorded.head >= writer.archived:
                return Journal(recorded, run.generation)
            # Postgres has just lost what the writer has written: the journal is not to be read from less than that.
            until_reachable(partial(self._ownership.refill, writer, recorded.head))

    def _outcome(self, active: ActiveRun, outbox: Outbox, journal: Journal, reason: str | None) -> Outcome:
        run = active.run
        # Read after the claim is complete: from here on a cancel rings this worker.
        if until_reachable(lambda: self._ownership.confirm(run.id, run.epoch, run.owner)):
            return self._cancelled(run)
        if run.attempt > self._services.config.run_max_attempts:
            return Ending.failed(errors.WorkerLost(f"The run ended its worker {run.attempt - 1} times in a row."))
        try:
            journal = self._check_version(active, journal)
            run = active.run
        except errors.AgentChanged as changed:
            return Ending.failed(changed)
        self._announce(run, outbox, journal, reason)
        if reason is not None:  # what is sent to a run that has not begun comes with the first look at its commands
            until_reachable(lambda: self._recall_inputs(outbox, journal.inputs_taken))
            until_reachable(lambda: self.bring_inputs(outbox))
        found = self._call_agent(active, outbox, journal)
        match active.interruption:
            case None:
                assert found is not None
                return found
            case Cancelled():
                return self._cancelled(run)
            case TimedOut() as timed_out:
                return Ending.failed(errors.RunTimeout(timed_out.limit))
            case Unstorable() as unstorable:
                return Ending.failed(errors.InvalidCall(unstorable.why))
            case Exited() as exited:
                return Ending.failed(errors.AgentError(exited.detail))
            case Drained() as drained:
                return found if isinstance(found, Suspended) else drained
            case _:
                raise Fenced(f"{run.id} has another owner.")

    def _cancelled(self, run: RunRecord) -> Ending:
        row = until_reachable(lambda: self._ownership.store.get(run.id))
        return Ending.cancelled((row and row.cancel_reason) or "requested")

    def _check_version(self, active: ActiveRun, journal: Journal) -> Journal:
        """The journal to go on with, where the agent is not of the version that the run was last executed with.

        :raises AgentChanged: it does not go on with such a run.
        :raises Fenced: another worker owns the run.
        """
        run = active.run
        agent = self._agents.get(run.agent)
        if agent is None or agent.version == run.agent_version:
            return journal
        generation = run.generation
        if journal and agent.on_version_change == FAIL:
            raise errors.AgentChanged(f"The run began with version {run.agent_version} of {agent.name!r}.")
        if journal and agent.on_version_change == RESTART:
            generation += 1
            journal = journal.given_up()
        store, version = self._ownership.store, agent.version
        until_reachable(lambda: store.set_version(run.id, run.epoch, version, generation, owner=run.owner))
        active.run = replace(run, agent_version=agent.version, generation=generation)
        return journal

    def _announce(self, run: RunRecord, outbox: Outbox, journal: Journal, reason: str | None) -> None:
        restart = journal.generation > 1 and not journal
        about: dict[str, Any] = {"attempt": run.attempt}
        if reason is None:
            type, about = "run.started", {**about, "worker": self._worker_id}
        elif reason == RESUMED and not restart:
            type = "run.resumed"
        else:
            type, about = "run.step", {**about, "reason": "deploy" if reason == RESUMED else reason, "restart": restart}
        outbox.emit(type, self._services.hooks.fact(type, about), "")

    def _call_agent(self, active: ActiveRun, outbox: Outbox, journal: Journal) -> Ending | Suspended | None:
        """Call the agent and wait for it; what comes back counts only if nothing has interrupted it."""
        outlet, run = self._runner.outlet(outbox), active.run
        limit = self._services.config.run_timeout_seconds if run.timeout_s is None else run.timeout_s
        greenlet: gevent.Greenlet[..., Ending | Suspended | None]
        greenlet = gevent.Greenlet(self._runner.perform, partial(self.perform, active, outlet, journal))
        active.own(greenlet)
        greenlet.start()
        stop = outlet.alarm(limit, TimedOut(f"The run took longer than {limit} s.")) if limit else None
        active.wait(greenlet)
        active.leftovers.end_programs()
        if stop:
            stop()
        # One that was killed before it began has none.
        return greenlet.value if isinstance(greenlet.value, Ending | Suspended) else None

    def perform(self, active: ActiveRun, outlet: Outlet, journal: Journal) -> Ending | Suspended | None:
        """Where the agent runs: from the input to an ending."""
        run, hooks = active.run, self._services.hooks
        try:
            agent, input = self._prepare(run)
            calls = Journaled(AgentLog(outlet, hooks), active.check, journal)
            context = Run(calls, input)
            with context.active():
                output = call_named(run.id, lambda: agent.function(context))
                return conclude(context, calls, outlet, hooks, output, strict=agent.strict_output)
        except BaseException as error:  # SystemExit among them: an agent must not end its worker
            outcome = self._raised(active, error)
            _let_go(error)
            return outcome

    def _raised(self, active: ActiveRun, error: BaseException) -> Ending | Suspended | None:
        """What becomes of a run whose agent has raised this. Called while it is handled."""
        run = active.run
        if isinstance(error, Suspended):
            return error
        if isinstance(error, Interrupted):
            if active.interruption is not None:
                return None  # whoever interrupted knows the ending
            authors_log.exception("The agent of %s raised an interruption of its own.", run.id)
            return Ending.failed(errors.AgentError())
        if isinstance(error, RuntailError):
            authors_log.warning("%s failed: %s: %s", run.id, error.code, error.detail, exc_info=True)
        else:
            authors_log.exception("The agent of %s raised.", run.id)
        return Ending.failed(_shown(error))

    def _prepare(self, run: RunRecord) -> tuple[Agent, dict[str, Any]]:
        agent = self._agents.get(run.agent)
        if agent is None:
            raise errors.AgentUnavailable(f"This worker has no agent {run.agent!r}.")
        try:
            return agent, load_input(agent, run.input)
        except errors.InvalidInput as error:
            raise errors.AgentUnavailable(error.detail) from error


def _shown(error: BaseException) -> RuntailError:
    """What is told to everybody of that which an agent has raised."""
    if isinstance(error, _PUBLIC):
        return error
    if isinstance(error, errors.InvalidEvent | errors.InvalidJson | errors.TooDeep):
        return errors.InvalidCall(error.detail)
    if not isinstance(error, Exception):
        return errors.AgentError(f"The agent raised {type(error).__name__}.")
    # A tool or a library may have wrapped it.
    return next((cause for cause in _causes(error) if isinstance(cause, errors.NeedsIsolation)), errors.AgentError())


def _let_go(error: BaseException) -> None:
    """Of all that the frames hold which the error has left: it may be megabytes, and would wait for the collector."""
    for one in _causes(error):
        traceback.clear_frames(one.__traceback__)
        one.__traceback__ = None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, each once."""
    found: dict[int, BaseException] = {}
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in found:
            found[id(one)] = one
            yield one
            left += [one.__context__, one.__cause__]
            left += one.exceptions if isinstance(one, BaseExceptionGroup) else []


_PUBLIC = (
    errors.AgentUnavailable,
    errors.HookFailed,
    errors.InvalidCall,
    errors.InvalidOutput,
    errors.NeedsIsolation,
    errors.NondeterministicAgent,
    errors.ReconciliationFailed,
    ToolError,
)
"""Anything else is an agent_error."""
