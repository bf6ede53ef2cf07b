"""Executes runs: claims, calls the agent in a greenlet of its own, and writes the end down.

The agent's greenlet may be stopped at any line; everything that must not be (claim, commits, the end) happens in
the greenlet around it.
"""

import logging
import time
from contextvars import ContextVar
from typing import Any

import gevent
from gevent.event import Event as Flag

from app import errors
from app.config import Config
from app.errors import Fenced, RuntailError, StoreUnavailable
from app.hooks import Hooks
from app.protocol.ending import Ending
from app.storage.log_writer import LogWriter
from app.storage.ownership import Ownership
from app.storage.run_queue import RunQueue
from app.storage.run_store import OwnedRun, RunRecord
from workers.context import RunContext
from workers.emission import Emission
from workers.emitter import Emitter
from workers.interrupts import Cancelled, Drained, Interrupted, Lost, TimedOut
from workers.registry import Agent
from workers.retry import until_reachable

STRAY_SECONDS = 6.0
"""A run that names this worker for so long without being executed by it goes back to pending."""
STOP_SECONDS = 1.0
"""Time that an agent gets for its `finally` blocks once it has been stopped."""

log = logging.getLogger(__name__)
current: ContextVar["Executor"] = ContextVar("runtail_executor")
"""The executor of the process, for the job function that RQ finds by its dotted path."""


def execute(run_id: str) -> None:
    """The RQ job: a hint that the run is pending."""
    current.get().execute(run_id)


class Execution:
    """A run under way in this process, as seen by those who may stop it."""

    def __init__(self, run: RunRecord) -> None:
        self.run = run
        self.interruption: Interrupted | None = None
        self.done = Flag()
        self._stirred = Flag()

    def interrupt(self, interruption: Interrupted) -> None:
        """Stop the agent, now; only the first call counts."""
        if self.interruption is None:
            self.interruption = interruption
            self._stirred.set()

    def check(self) -> None:
        """The cancel point. An agent that caught its interruption meets it here again."""
        if self.interruption is not None:
            raise self.interruption

    def wait(self, greenlet: "gevent.Greenlet[..., Any]", seconds: float | None) -> None:
        """Wait until the agent has ended, or was interrupted and has stopped or let STOP_SECONDS pass."""
        greenlet.rawlink(lambda _: self._stirred.set())
        if not self._stirred.wait(seconds):
            self.interrupt(TimedOut())
        if self.interruption is not None and not greenlet.ready():
            greenlet.kill(self.interruption, timeout=STOP_SECONDS)
            if not greenlet.ready():
                log.warning("The agent of %s goes on although it was stopped; nothing it emits counts.", self.run.id)


class Executor:
    """Runs any number of agents side by side, for one worker process."""

    def __init__(
        self,
        config: Config,
        ownership: Ownership,
        queue: RunQueue,
        emitter: Emitter,
        agents: dict[str, Agent],
        hooks: Hooks,
        worker_id: str,
    ) -> None:
        self._config = config
        self._ownership = ownership
        self._queue = queue
        self._emitter = emitter
        self._agents = agents
        self._hooks = hooks
        self._worker_id = worker_id
        self._executions: dict[str, Execution] = {}
        self._strays: dict[str, float] = {}
        self._draining = False

    def execute(self, run_id: str) -> None:
        """Execute a pending run to its end. Does nothing if it is not pending.

        :raises StoreUnavailable: it could not be claimed; the janitor will have it tried again.
        """
        run = self._ownership.store.claim(run_id, self._worker_id, start=True)
        if run is None:
            return
        while earlier := self._executions.get(run.id):
            # This worker was called lost while it executes the run. One attempt at a time: nothing of ours overlaps.
            earlier.interrupt(Lost())
            earlier.done.wait()
        execution = self._executions[run.id] = Execution(run)
        if self._draining:
            execution.interrupt(Drained())
        try:
            self._attempt(execution)
        except Fenced as fenced:
            log.info("%s goes on elsewhere: %s", run.id, fenced.detail)
        finally:
            del self._executions[run.id]
            execution.done.set()

    def heed_commands(self) -> None:
        """Stop the runs whose cancel was requested, and give up rows that name us without being executed here.

        :raises StoreUnavailable: Postgres cannot be reached.
        """
        rows = self._ownership.store.owned_by(self._worker_id)
        strays = [run for run in rows if run.id not in self._executions]
        self._strays = {run.id: self._strays[run.id] for run in strays if run.id in self._strays}
        for run in strays:
            self._give_up_stray(run)
        for run in rows:
            if run.cancel_requested and run.id in self._executions:
                self._executions[run.id].interrupt(Cancelled())

    def drain(self, seconds: float) -> None:
        """Let the agents finish for so long, then hand the rest of the runs back, also those claimed later on."""
        gevent.wait([execution.done for execution in self._executions.values()], timeout=seconds)
        self._draining = True
        for execution in list(self._executions.values()):
            execution.interrupt(Drained())
        gevent.wait([execution.done for execution in self._executions.values()])

    def _give_up_stray(self, run: OwnedRun) -> None:
        """The row names this worker, which does not execute it: the answer of a claim was lost, or is on its way."""
        seen = self._strays.setdefault(run.id, time.monotonic())
        if time.monotonic() - seen > STRAY_SECONDS:
            self._strays.pop(run.id)
            self._hand_back(run, "retry")

    def _attempt(self, execution: Execution) -> None:
        writer = until_reachable(lambda: self._ownership.adopt(execution.run))
        emission = self._emitter.open(writer, execution.interrupt)
        try:
            ending = self._ending(execution, emission)
        finally:
            self._emitter.close(emission)
        if ending is None:
            self._hand_back(execution.run, "deploy")
        else:
            self._finish(writer, ending)

    def _ending(self, execution: Execution, emission: Emission) -> Ending | None:
        """How the run ends; None: it does not, it goes back to pending.

        :raises Fenced: another worker owns the run.
        """
        run = execution.run
        # Read after the claim is complete: from here on a cancel rings this worker.
        if until_reachable(lambda: self._ownership.confirm(run.id, run.epoch)):
            return self._cancelled(run)
        if run.attempt > self._config.run_max_attempts:
            return Ending.failed(errors.WorkerLost(f"The run lost its worker {run.attempt - 1} times."))
        self._announce(run, emission)
        outcome = self._call_agent(execution, emission)
        match execution.interruption:
            case None:
                return outcome
            case Cancelled():
                return self._cancelled(run)
            case TimedOut():
                return Ending.failed(errors.RunTimeout(f"The run took longer than {self._timeout(run)} s."))
            case Drained():
                return None
            case _:
                raise Fenced(f"{run.id} has another owner.")

    def _cancelled(self, run: RunRecord) -> Ending:
        row = until_reachable(lambda: self._ownership.store.get(run.id))
        return Ending.cancelled((row and row.cancel_reason) or "requested")

    def _announce(self, run: RunRecord, emission: Emission) -> None:
        if run.requeue_reason is None:
            emission.emit("run.started", {"attempt": run.attempt, "worker": self._worker_id}, "")
        else:
            payload = {"attempt": run.attempt, "reason": run.requeue_reason, "restart": True}
            emission.emit("run.step", payload, "")

    def _call_agent(self, execution: Execution, emission: Emission) -> Ending | None:
        """Call the agent and wait for it; what comes back counts only if nothing has interrupted it."""
        greenlet: gevent.Greenlet[..., Ending | None] = gevent.Greenlet(self._perform, execution, emission)
        greenlet.start()
        execution.wait(greenlet, self._timeout(execution.run) or None)
        return greenlet.value

    def _timeout(self, run: RunRecord) -> int:
        return self._config.run_timeout_seconds if run.timeout_s is None else run.timeout_s

    def _perform(self, execution: Execution, emission: Emission) -> Ending | None:
        """In the agent's greenlet: from the input to an ending."""
        run = execution.run
        try:
            agent, input = self._prepare(run)
            context = RunContext(run.id, input, emission, self._hooks, execution.check)
            with context.active():
                output = context.conclude(agent.function(context))
            return Ending.completed(output)
        except Interrupted:
            if execution.interruption is None:
                log.exception("The agent of %s raised an interruption of its own.", run.id)
                return Ending.failed(errors.AgentError())
            return None  # whoever interrupted knows the ending
        except RuntailError as error:
            log.warning("%s failed: %s: %s", run.id, error.code, error.detail, exc_info=True)
            return Ending.failed(error if isinstance(error, _PUBLIC) else errors.AgentError())
        except BaseException:  # SystemExit among them: an agent must not end its worker
            log.exception("The agent of %s raised.", run.id)
            return Ending.failed(errors.AgentError())

    def _prepare(self, run: RunRecord) -> tuple[Agent, dict[str, Any]]:
        agent = self._agents.get(run.agent)
        if agent is None:
            raise errors.AgentUnavailable(f"This worker has no agent {run.agent!r}.")
        try:
            return agent, agent.load(run.input)
        except errors.InvalidInput as error:
            raise errors.AgentUnavailable(error.detail) from error

    def _finish(self, writer: LogWriter, ending: Ending) -> None:
        self._ownership.end(writer, ending)
        until_reachable(lambda: self._ownership.commit_end(writer))
        try:
            self._ownership.publish(writer.run_id, writer.epoch)
        except StoreUnavailable as error:
            log.warning("The end of %s is committed; the janitor will publish it. %s", writer.run_id, error.detail)

    def _hand_back(self, run: RunRecord | OwnedRun, reason: str) -> None:
        released = until_reachable(lambda: self._ownership.store.release(run.id, run.epoch, reason))
        if released is None:
            return
        try:
            self._queue.enqueue(run.id, released.epoch, released.queue)
        except StoreUnavailable as error:
            log.warning("%s is pending again; a janitor will enqueue it. %s", run.id, error.detail)


_PUBLIC = (errors.AgentUnavailable, errors.InvalidOutput, errors.ReconciliationFailed)
"""What may be told of a failure; anything else is an agent_error whose details are in the log."""
