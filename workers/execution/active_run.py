"""A run under way in this process, as seen by those who may stop it."""

import logging
from typing import Any

import gevent
from gevent.event import Event as Flag
from greenlet import greenlet as AnyGreenlet

from app.storage.run_store import RunRecord
from runtail.interrupts import Interrupted
from workers.execution.leftovers import Leftovers
from workers.execution.outbox import Outbox

STOP_SECONDS = 1.0
"""Time that an agent gets for its `finally` blocks once it has been stopped."""

_OF_TREE = "runtail_active_run"
_IN_THREAD = "runtail_thread"
"""In the locals that gevent hands on from a greenlet to all that it spawns."""

log = logging.getLogger(__name__)


class ActiveRun:
    """One run, from its claim until it ends, waits or goes elsewhere.

    :ivar outbox: of the invocation that is under way.
    :ivar leftovers: what its agent has started.
    """

    def __init__(self, run: RunRecord) -> None:
        self.run = run
        self.outbox: Outbox | None = None
        self.interruption: Interrupted | None = None
        self.leftovers = Leftovers()
        self.done = Flag()
        self._woken = Flag()

    def interrupt(self, interruption: Interrupted) -> None:
        """Stop the agent, now; only the first call counts."""
        if self.interruption is None:
            self.interruption = interruption
            self._woken.set()

    def check(self) -> None:
        """The cancel point. An agent that caught its interruption meets it here again."""
        if self.interruption is not None:
            raise self.interruption

    def own(self, greenlet: "gevent.Greenlet[..., Any]") -> None:
        """Make a greenlet that has not begun, and all that it will start, known as this run's."""
        greenlet.spawn_tree_locals = {_OF_TREE: self}

    def wait(self, greenlet: "gevent.Greenlet[..., Any]") -> None:
        """Wait until the agent has ended, or was interrupted and has stopped or let STOP_SECONDS pass."""
        if self.interruption is None:
            self._woken.clear()  # it was set by the end of an earlier invocation
        greenlet.rawlink(lambda _: self._woken.set())
        self._woken.wait()
        if self.interruption is not None and not greenlet.ready():
            greenlet.kill(self.interruption, timeout=STOP_SECONDS)
            if not greenlet.ready():
                log.warning("The agent of %s goes on although it was stopped; nothing it emits counts.", self.run.id)


def active_run_of(greenlet: AnyGreenlet | None) -> ActiveRun | None:
    """The run whose agent has started the greenlet, at whatever remove; None: no agent has."""
    active: ActiveRun | None = _tree_of(greenlet).get(_OF_TREE)
    return active


def mark_thread(greenlet: AnyGreenlet) -> None:
    """Say that a greenlet which has not begun is a thread."""
    greenlet.spawn_tree_locals = {**_tree_of(greenlet), _IN_THREAD: True}  # type: ignore[attr-defined]


def in_thread(greenlet: AnyGreenlet | None) -> bool:
    """The greenlet is a thread, or was started in one."""
    return _IN_THREAD in _tree_of(greenlet)


def _tree_of(greenlet: AnyGreenlet | None) -> dict[str, Any]:
    while greenlet is not None:
        tree: dict[str, Any] | None = getattr(greenlet, "spawn_tree_locals", None)
        if tree is not None:
            return tree
        greenlet = greenlet.parent  # a bare greenlet, which runs on behalf of its parent
    return {}
