"""Keeps the work child of an isolated worker: watches its time, kills it, and settles what it leaves behind.

The parent is the owner of the run, by the id that both share; the child writes while it lives. Once it is dead, what it
had sent may still arrive, so whoever goes on takes the run under a new epoch first.
"""

import json
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock

from app.errors import Fenced, RunTimeout
from app.protocol.ending import Ending
from app.storage.run_store import OwnedRun
from app.wiring import Services
from runtail.interrupts import Interrupted, TimedOut
from runtail.lifetime import end_children
from workers.execution.executor import STRAY_SECONDS
from workers.execution.interrupts import Cancelled, Drained, Lost
from workers.execution.settlement import Settlement

WATCH_SECONDS = 0.25
"""How long an alarm, or the end of the child where its pipe outlives it, may go unnoticed."""
LINGER_SECONDS = 0.002
"""How long it is waited at a time for the end of a child that has closed its pipe, as it does by ending."""
LOST_SECONDS = 1.0
"""A child that has ended its run is gone within that time. One that is still there has lost it."""
START_SECONDS = 30.0
"""A child that has not claimed its run after so long, with Postgres reachable, never will."""

log = logging.getLogger(__name__)


class Parent:
    """One child after the other. `check_commands` belongs to another thread than the rest."""

    def __init__(self, services: Services, worker_id: str) -> None:
        self._store = services.store
        self._ownership = services.ownership
        self._settlement = Settlement(services, time.sleep)
        self._worker_id = worker_id
        self._child: _Child | None = None
        self._drain_at: float | None = None
        self._unclaimed: dict[str, float] = {}

    def begin(self, run_id: str, pid: int, words: int, bell: int, older: Sequence[int]) -> None:
        """A child was forked for the run.

        :param words: where it says what it wants, see `workers.isolated.child.Words`.
        :param bell: where it is told that the run's commands may have changed.
        :param older: the pids of this process's children from before, which outlive it.
        """
        self._child = _Child(run_id, pid, words, bell, older)

    def drain(self, seconds: float) -> None:
        """Let the child go on for so long, then hand its run back. For a signal handler."""
        self._drain_at = time.monotonic() + seconds

    def watch(self, meanwhile: Callable[[], None]) -> int:
        """Wait for the end of the child; returns its exit code. The run is settled by then.

        :param meanwhile: called now and then.
        """
        child = self._child
        assert child is not None
        while not child.ended():
            child.listen(WATCH_SECONDS)
            if (timed_out := child.due()) is not None:
                child.kill(timed_out)
            if self._drain_at is not None and time.monotonic() >= self._drain_at:
                child.kill(Drained())
            meanwhile()
        self._child = None
        code = child.bury()
        try:
            self._settle(child, code)
        except Fenced as fenced:
            log.info("%s goes on elsewhere: %s", child.run_id, fenced.detail)
        return code

    def check_commands(self) -> None:
        """Kill the child of a run whose cancel was requested, ring for the rest; give up rows that name us in vain.

        :raises StoreUnavailable: Postgres cannot be reached.
        """
        child = self._child
        rows = {run.id: run for run in self._store.owned_by(self._worker_id)}
        if child is not None:
            run = rows.pop(child.run_id, None)
            if run is not None and run.cancel_requested:
                child.kill(Cancelled())
            elif run is not None:
                child.found()
            elif child.missed():
                child.kill(Lost())
        self._give_up_strays(rows)

    def _give_up_strays(self, rows: dict[str, OwnedRun]) -> None:
        """A child was killed before its claim was answered."""
        now = time.monotonic()
        self._unclaimed = {run_id: self._unclaimed.get(run_id, now) for run_id in rows}
        for run_id, since in self._unclaimed.items():
            if now - since > STRAY_SECONDS:
                self._settlement.hand_back(rows[run_id], "retry")

    def _settle(self, child: "_Child", code: int) -> None:
        """See to the run of a child that is dead.

        :raises Fenced: another worker has the run.
        """
        rows = self._settlement.reach(lambda: self._store.owned_by(self._worker_id))
        run = next((run for run in rows if run.id == child.run_id), None)
        why = child.interruption
        if run is None:
            self._publish(child.run_id)
        elif run.cancel_requested:
            self._end(run, None)
        elif isinstance(why, TimedOut):
            self._end(run, Ending.failed(RunTimeout(why.limit)))
        elif isinstance(why, Drained):
            self._settlement.hand_back(run, "deploy")
        else:
            log.warning("The process of %s ended with %d while it executed the run.", run.id, code)
            self._call_lost(run)

    def _publish(self, run_id: str) -> None:
        """The child may have been killed between the commit of the end and its publication."""
        run = self._settlement.reach(lambda: self._store.get(run_id))
        if run is not None and run.terminal and not run.published:
            self._settlement.publish(run.id, run.epoch)

    def _end(self, run: OwnedRun, ending: Ending | None) -> None:
        """Take the run under a new epoch and end it: as cancelled where there is no other ending."""
        reach = self._settlement.reach
        reach(lambda: self._store.release(run.id, run.epoch, "retry", owner=run.owner))
        claimed = reach(lambda: self._store.claim(run.id, self._worker_id, start=False))
        if claimed is None:
            return self._publish(run.id)  # the child had ended it
        _, writer = reach(lambda: self._ownership.reopen(claimed))
        self._settlement.finish(writer, ending or Ending.cancelled(claimed.cancel_reason or "requested"))

    def _call_lost(self, run: OwnedRun) -> None:
        """Put the run back at once. Nobody else was in the process that has ended: the run is charged with it."""
        released = self._settlement.reach(lambda: self._store.release_culprit(self._worker_id, run.id, run.epoch))
        if released is not None:
            self._settlement.enqueue(released)


class _Child:
    """A child process, its two pipes, and the alarms that it has set."""

    def __init__(self, run_id: str, pid: int, words: int, bell: int, older: Sequence[int]) -> None:
        self.run_id = run_id
        self.interruption: Interrupted | None = None
        """Why it was killed; None: it was not."""
        self.has_run = False
        """It has claimed its run."""
        self._pid = pid
        self._words, self._bell = words, bell
        self._older = older
        self._heard = b""
        self._open = True
        self._alarms: dict[int, tuple[float, str]] = {}
        self._missed_since: float | None = None
        self._buried = False
        self._lock = Lock()
        """Its pid and its pipes are its own until it is buried, then somebody else's."""

    def kill(self, interruption: Interrupted) -> None:
        """Kill it, and what it has forked, which would keep its pipe open. Only the first reason counts."""
        with self._lock:
            if self.interruption is None and not self._buried:
                self.interruption = interruption
                try:
                    os.killpg(self._pid, signal.SIGKILL)
                except ProcessLookupError:  # it leads no group yet
                    os.kill(self._pid, signal.SIGKILL)

    def ended(self) -> bool:
        """It is dead, but not buried: its pid is still its own."""
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def bury(self) -> int:
        """Kill what it has forked, and return its exit code: negative for a signal."""
        with self._lock:
            self._buried = True
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._pid, signal.SIGKILL)  # it led a group of its own
            _, status = os.waitpid(self._pid, 0)
            # One child at a time: what is left is what it has left, in groups of its own; or was here before it, as
            # what a module of an agent has started when it was loaded.
            end_children(spare=self._older)
            os.close(self._words)
            os.close(self._bell)
        return os.waitstatus_to_exitcode(status)

    def ring(self) -> None:
        """Tell it that the run's commands may have changed."""
        with self._lock, suppress(BlockingIOError, BrokenPipeError):  # it has not listened for long, or is dead
            if not self._buried:
                os.write(self._bell, b"\n")

    def found(self) -> None:
        """Its run is ours."""
        self._missed_since = None
        self.ring()

    def missed(self) -> bool:
        """Its run is not ours. True if that is so for too long.

        Then it is another worker's, or the child does not come to claim it: a fork of a process with threads may come
        to a stop at once, on a lock that one of them held.
        """
        now = time.monotonic()
        self._missed_since = self._missed_since or now
        return now - self._missed_since > (LOST_SECONDS if self.has_run else START_SECONDS)

    def listen(self, seconds: float) -> None:
        """Hear what it says, for so long, or until it is dead or an alarm falls due."""
        if not self._open:
            time.sleep(LINGER_SECONDS)
            return
        nearest = min((at for at, _ in self._alarms.values()), default=time.monotonic() + seconds)
        ready, _, _ = select.select([self._words], [], [], max(0.0, min(seconds, nearest - time.monotonic())))
        if ready:
            said = os.read(self._words, 65_536)
            self._open = said != b""
            *lines, self._heard = (self._heard + said).split(b"\n")
            for line in lines:
                self._heed(json.loads(line))

    def _heed(self, word: dict[str, object]) -> None:
        if "has_run" in word:
            self.has_run = True
        elif "clear" in word:
            self._alarms.pop(int(str(word["clear"])), None)
        else:
            self._alarms[int(str(word["set"]))] = float(str(word["at"])), str(word["limit"])

    def due(self) -> TimedOut | None:
        """The alarm that is due, if one is."""
        limits = [limit for at, limit in self._alarms.values() if at <= time.monotonic()]
        return TimedOut(limits[0]) if limits else None
