"""Seals the process of a shared worker: what would reach all its runs is refused to its agents.

From `close` on the process is not forked, its signals and limits stay as they are, and nothing in it signals or
replaces it: the call raises NeedsIsolation. An exit in a greenlet ends the run that started it. Programs can be started
as ever.

Not responsible for what ends a process at once (`os._exit`, SIGKILL, a crash in C), nor for agents with a process each.
"""

import asyncio
import functools
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

import gevent
import gevent.hub
import gevent.os
import gevent.signal
import gevent.subprocess
import gevent.thread  # type: ignore[import-not-found]
from gevent._hub_local import set_hub
from greenlet import getcurrent, greenlet

from app.errors import NeedsIsolation
from runtail.lifetime import live_no_longer_than
from workers.execution.active_run import active_run_of, in_thread, mark_thread
from workers.execution.interrupts import Exited
from workers.first import gate

log = logging.getLogger(__name__)


def close() -> None:
    """Seal this process. To be called in the main thread, once the worker has its own signal handlers."""
    pid = os.getpid()
    gate.refuse = functools.partial(_refuse, pid)
    _reset_loop_policy()
    _refuse_what_has_no_gate()
    gevent.subprocess.fork = functools.partial(_fork_for_program, pid)  # type: ignore[attr-defined]  # its own name
    gevent.os._watch_child = functools.partial(_watch_child, gevent.os._watch_child)  # type: ignore[attr-defined]
    gevent.thread._start_new_greenlet = functools.partial(_start_thread, gevent.thread._start_new_greenlet)
    gevent.Greenlet.add_spawn_callback(_note_greenlet)
    hub = gevent.get_hub()
    hub.handle_error = functools.partial(_handle_error, hub.handle_error)  # type: ignore[method-assign]


def _refuse(pid: int, what: str) -> None:
    if os.getpid() == pid:  # not in what was forked to become a program
        raise NeedsIsolation(
            f"{what} would reach every run of a shared worker, and is refused there. "
            'Register the agent with isolation="process".'
        )


def _refuse_what_has_no_gate() -> None:
    """What can only be imported, and so refused, once gevent has patched what it uses."""

    def handle_signal(*_: object, **__: object) -> None:
        gate.refuse("gevent.signal_handler")

    def get_handler_of_children(_: object) -> None:
        # gevent's `signal` calls it for SIGCHLD, which it handles itself, and for no other signal.
        gate.refuse("signal.signal")

    def start_process(_: object) -> None:
        # Also where it would not fork: its pipes, locks and `join` block the thread that all runs have in common.
        gate.refuse("A process of multiprocessing")

    def set_policy(_: object) -> None:
        gate.refuse("asyncio.set_event_loop_policy")

    gevent.hub.signal.__init__ = handle_signal  # type: ignore[method-assign]
    gevent.signal.getsignal = get_handler_of_children  # type: ignore[assignment]
    BaseProcess.start = start_process  # type: ignore[method-assign,assignment]
    asyncio.set_event_loop_policy = asyncio.events.set_event_loop_policy = set_policy  # type: ignore[assignment]


def _reset_loop_policy() -> None:
    """A module of an agent may have put loops in C in the place of all others, as `uvloop.install` does."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        asyncio.set_event_loop_policy(None)


def _fork_for_program(parent: int) -> int:
    """The fork of gevent's subprocess. The child executes nothing of this process on its way to the program."""
    pid = gate.fork()
    if pid == 0:
        live_no_longer_than(parent)
        # What the caller wants done before the program starts may sleep or wait: not in the loop of the parent, which
        # has the greenlets of all runs.
        set_hub(gevent.hub.Hub(default=False))
    return pid


def _watch_child(otherwise: Callable[..., None], pid: int, *args: Any) -> None:
    """gevent's, for whatever process is started."""
    otherwise(pid, *args)
    execution = active_run_of(getcurrent())
    if execution is not None and not in_thread(getcurrent()):
        execution.leftovers.add_program(pid)


def _start_thread(otherwise: Callable[..., Any], *args: Any) -> Any:
    """gevent's, for whatever thread is started."""
    thread = otherwise(*args)
    mark_thread(thread)
    return thread


def _note_greenlet(greenlet: Any) -> None:
    execution = active_run_of(greenlet)
    if execution is not None:
        execution.leftovers.add_greenlet(greenlet)


def _handle_error(
    otherwise: Callable[..., None],
    context: object,
    type: type[BaseException],
    value: BaseException | None,
    traceback: TracebackType | None,
) -> None:
    """What nobody has caught in a greenlet, or in a callback of the loop. gevent would end the process by an exit.

    A greenlet of ours has no way of raising one: signals do not raise here.
    """
    if context is None or not issubclass(type, gevent.hub.Hub.SYSTEM_ERROR):
        return otherwise(context, type, value, traceback)
    execution = next(filter(None, map(active_run_of, _greenlets(context))), None)
    log.error(
        "%s in what %s has started; the worker goes on.",
        type.__name__,
        execution.run.id if execution else "some agent",
        exc_info=(type, value, traceback) if value is not None else None,
    )
    if execution is not None:
        execution.interrupt(Exited(f"{type.__name__} in a greenlet that the agent has started."))


def _greenlets(context: object) -> Iterator[greenlet]:
    """Those that the context of an error is about: a greenlet, what is linked to one, or a callback that switches."""
    items: tuple[Any, ...] = context if isinstance(context, tuple) else (context,)
    for item in items:
        owner = getattr(getattr(item, "callback", None), "__self__", None)
        yield from (one for one in (item, owner) if isinstance(one, greenlet))
