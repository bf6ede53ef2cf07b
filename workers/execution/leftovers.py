"""What an agent of a shared worker has started and not ended: its programs are killed, its threads are counted.

A thread cannot be stopped, and may be one of a pool that other runs use, too. So what a thread has started is not ended
either.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import gevent
import gevent.os

from runtail.lifetime import children_of


class Leftovers:
    """Of one run."""

    def __init__(self) -> None:
        self._programs: list[tuple[int, object]] = []
        self._greenlets: WeakSet[gevent.Greenlet[..., Any]] = WeakSet()

    def add_program(self, pid: int) -> None:
        """A child process that gevent watches."""
        self._programs = self._running()  # a run may start any number: those that have ended are forgotten
        watcher = _watched().get(pid)
        if watcher is not None:  # else it has ended already
            self._programs.append((pid, watcher))

    def add_greenlet(self, greenlet: "gevent.Greenlet[..., Any]") -> None:
        """A thread or a greenlet."""
        self._greenlets.add(greenlet)

    def end_programs(self) -> None:
        """Kill those that have not ended, with the children that they have at this moment."""
        for pid, _ in self._running():
            for each in list(_tree(pid)):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(each, signal.SIGKILL)
        self._programs.clear()

    def _running(self) -> list[tuple[int, object]]:
        """Those that have not ended. The number of one that has may be another one's."""
        watched = _watched()
        return [(pid, watcher) for pid, watcher in self._programs if watched.get(pid) is watcher]

    def count(self) -> int:
        """The threads and greenlets that go on."""
        return sum(not greenlet.ready() for greenlet in self._greenlets)


def _watched() -> dict[int, object]:
    """The watchers of gevent's child processes that have not ended, by number."""
    known: dict[int, object] = gevent.os._watched_children  # type: ignore[attr-defined]
    # Of one that has ended gevent keeps what its end was, a tuple, for a while.
    return {pid: watcher for pid, watcher in known.items() if not isinstance(watcher, tuple)}


def _tree(pid: int) -> Iterator[int]:
    """A process and its descendants."""
    yield pid
    for child in children_of(pid):
        yield from _tree(child)
