"""Executes runs: claims, has their invocations executed, and writes down what comes of them.

The agent's greenlet may be stopped at any line; everything that must not be (claim, commits, the end) happens in
the greenlet around it.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import gevent

from app.errors import Fenced, InvalidCall, Refused, StoreUnavailable
from app.protocol.ending import Ending
from app.storage.log_writer import LogWriter
from app.storage.run_queue import ISOLATED_QUEUE, QUEUE
from app.storage.run_store import Checkpoint, OwnedRun, RunRecord
from app.wiring import Services
from runtail.agent import Agent
from runtail.interrupts import Suspended, Wait
from workers.execution.active_run import ActiveRun
from workers.execution.blame import refused_call, sentence
from workers.execution.flusher import Flusher
from workers.execution.interrupts import Cancelled, Drained, Lost
from workers.execution.invocation import RESUMED, Invocations
from workers.execution.retry import until_reachable
from workers.execution.runner import InGreenlet, Runner
from workers.execution.settlement import Settlement
from workers.heartbeat import always
from workers.loading import queue_of_agent

STRAY_SECONDS = 6.0
"""A run that names this worker for so long without being executed by it goes back to pending."""
STARTED = "retry"
"""Why there is another invocation of a run whose log has begun and whose row says that it has not."""

UNSTORABLE = (Refused, TypeError, ValueError, RecursionError)
"""What comes of a record, or of an end, that Postgres refuses, or that has no JSON form."""
UNSTORABLE_SECONDS = 10.0
"""Between two tries to end a run whose very end is refused."""

log = logging.getLogger(__name__)


class Executor:
    """Runs any number of agents side by side, for one worker process."""

    def __init__(
        self,
        services: Services,
        flusher: Flusher,
        agents: dict[str, Agent],
        worker_id: str,
        *,
        runner: Runner | None = None,
        queue: str = QUEUE,
        gets_through: Callable[[], bool] = always,
    ) -> None:
        """
        :param runner: None: agents run in the greenlet of `execute`.
        :param queue: whose agents are executed; the others are handed over.
        :param gets_through: whether this worker's heartbeat does; nothing is claimed while it does not.
        """
        self._ownership = services.ownership
        self._settlement = Settlement(services)
        self._invocations = Invocations(services, flusher, agents, worker_id, runner or InGreenlet())
        self._agents = agents
        self._queue = queue
        self._most_attempts = services.config.run_max_attempts
        self.gets_through = gets_through
        self._worker_id = worker_id
        self._active: dict[str, ActiveRun] = {}
        self._strays: dict[str, float] = {}
        self._draining = False

    def execute(self, run_id: str) -> None:
        """Execute a pending run until it ends, waits or goes elsewhere. Does nothing if it is not pending.

        :raises StoreUnavailable: the worker ends and cannot claim it; a janitor will have it tried again.
        """
        run = until_reachable(lambda: self._claim(run_id), self._pause)
        if run is None:
            return
        queue = self._queue_of(run)
        if queue != self._queue:
            # What was to be done here is still to be done, for the same reason.
            self._settlement.hand_back(run, run.requeue_reason, queue)
            return
        while earlier := self._active.get(run.id):
            # This worker was called lost while it executes the run. One attempt at a time: nothing of ours overlaps.
            earlier.interrupt(Lost())
            earlier.done.wait()
        active = self._active[run.id] = ActiveRun(run)
        if self._draining:
            active.interrupt(Drained())
        try:
            self._attempt(active)
        except Fenced as fenced:
            log.info("%s goes on elsewhere: %s", run.id, fenced.detail)
        finally:
            del self._active[run.id]
            active.done.set()
            if left := active.leftovers.count():
                log.warning("%s has ended here, but %d threads or greenlets that it started go on.", run.id, left)

    def check_commands(self) -> None:
        """Stop the runs whose cancel was requested, bring inputs, and give up rows that name us in vain.

        :raises StoreUnavailable: Postgres cannot be reached.
        """
        rows = self._ownership.store.owned_by(self._worker_id)
        strays = [run for run in rows if run.id not in self._active]
        self._strays = {run.id: self._strays[run.id] for run in strays if run.id in self._strays}
        for run in strays:
            self._give_up_stray(run)
        for run in rows:
            active = self._active.get(run.id)
            if active is not None and run.cancel_requested:
                active.interrupt(Cancelled())
            elif active is not None and active.outbox is not None:
                self._invocations.bring_inputs(active.outbox, run.inputs)

    def drain(self, seconds: float) -> None:
        """Let the agents finish for so long, then hand the rest of the runs back, also those claimed later on."""
        gevent.wait([active.done for active in self._active.values()], timeout=seconds)
        self._draining = True
        for active in list(self._active.values()):
            active.interrupt(Drained())
        gevent.wait([active.done for active in self._active.values()])

    def _claim(self, run_id: str) -> RunRecord | None:
        """Others would call this worker lost, and the run with it, while its heartbeat does not get through."""
        if not self.gets_through():
            raise StoreUnavailable("The heartbeat of this worker does not get through.")
        return self._ownership.store.claim(run_id, self._worker_id, start=True)

    def _queue_of(self, run: RunRecord) -> str:
        """Where the run is to be executed. Its agent's isolation may have changed since it was started."""
        agent = self._agents.get(run.agent)
        if agent is None or run.cancel_requested or run.attempt > self._most_attempts:
            return self._queue  # it is only to be ended
        if run.alone and queue_of_agent(agent) != ISOLATED_QUEUE:
            log.warning("%s has lost %d workers in a row: it goes on in a process of its own.", run.id, run.losses)
        return ISOLATED_QUEUE if run.alone else queue_of_agent(agent)

    def _pause(self, seconds: float) -> None:
        if self._draining:
            raise StoreUnavailable("Postgres cannot be reached, and the worker is to end.")
        gevent.sleep(seconds)

    def _give_up_stray(self, run: OwnedRun) -> None:
        """The row names this worker, which does not execute it: the answer of a claim was lost, or is on its way."""
        seen = self._strays.setdefault(run.id, time.monotonic())
        if time.monotonic() - seen > STRAY_SECONDS:
            self._strays.pop(run.id)
            self._settlement.hand_back(run, "retry")

    def _attempt(self, active: ActiveRun) -> None:
        run = active.run
        writer = None
        try:
            run, writer = until_reachable(lambda: self._ownership.adopt(run))
            active.run = run
            ending = self._play(active, writer)
            if ending is not None:
                self._settlement.finish(writer, ending)
        except UNSTORABLE as error:
            log.exception("%s has recorded what cannot be stored.", run.id)
            self._finish_without(active.run, writer, error)

    def _play(self, active: ActiveRun, writer: LogWriter) -> Ending | None:
        """Invocation after invocation until the run is to end; None: it waits, or goes on elsewhere."""
        reason = active.run.requeue_reason
        if reason is None and writer.state["attempt"]:
            reason = STARTED  # Postgres has lost that the run was claimed before
        while True:
            outcome = self._invocations.execute(active, writer, reason)
            match outcome:
                case Suspended():
                    if self._suspend(writer, outcome.waits):
                        return None
                    reason = RESUMED  # what it was to wait for has arrived meanwhile
                case Drained():
                    until_reachable(lambda: self._ownership.archive(writer))
                    self._settlement.hand_back(active.run, "deploy")
                    return None
                case _:
                    return outcome

    def _finish_without(self, run: RunRecord, writer: LogWriter | None, error: Exception) -> None:
        """End the run as far as it is archived. Tried until it is done: handed back, it would be done all over again.

        :param error: why the rest of it cannot be stored.
        """
        failed = Ending.failed(InvalidCall(sentence(self._refused_call(writer), error)))
        while True:
            try:
                run, writer = until_reachable(partial(self._ownership.reopen, run), self._pause)
                return self._settlement.finish(writer, failed)
            except UNSTORABLE:
                log.exception("%s cannot be ended.", run.id)
            self._pause(UNSTORABLE_SECONDS)

    def _refused_call(self, writer: LogWriter | None) -> str:
        if writer is None:
            return "An event of the run"
        rest = Checkpoint(writer.run_id, writer.epoch, writer.unarchived())
        return until_reachable(lambda: refused_call(self._ownership.store, rest), self._pause)

    def _suspend(self, writer: LogWriter, waits: Sequence[Wait]) -> bool:
        """Let the run wait; False: it goes on at once.

        :raises Fenced: another worker owns the run.
        """
        kinds = {wait.on for wait in waits}
        on = kinds.pop() if len(kinds) == 1 else "several"
        about = {"on": on, "ids": [wait.id for wait in waits]}
        writer.add("run.waiting", self._ownership.hooks.fact("run.waiting", about), commit_first=True)
        approvals = [wait.id for wait in waits if wait.on == "approval"]
        awaited = [int(wait.id.removeprefix("inp_")) - 1 for wait in waits if wait.on == "input"]
        inputs = min(awaited, default=len(writer.state["inputs"]))  # those that the agent has looked at
        wake_at = min((wait.until for wait in waits if wait.until is not None), default=None)
        waiting = until_reachable(lambda: self._ownership.suspend(writer, approvals, inputs, wake_at))
        if waiting:
            self._publish_wait(writer)
        return waiting

    def _publish_wait(self, writer: LogWriter) -> None:
        try:
            self._ownership.sync(writer.run_id, writer.epoch)
        except Fenced:
            return  # what it waited for has come, and whoever goes on with it has appended what was left
        except StoreUnavailable as error:
            log.warning("Windows will find in the archive that %s waits. %s", writer.run_id, error.detail)
