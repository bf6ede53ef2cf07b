"""What a shared worker does before it imports gevent or asyncio, which keep what they find, and agents, which may too.

Its gate stands before all that Python code can ask for and that would reach the whole process. It is open until
`workers.seal` closes it.
"""

import ctypes
import faulthandler
import functools
import os
import posix
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

SIGNAL_FUNCTIONS = (
    "alarm",
    "pause",
    "pthread_sigmask",
    "set_wakeup_fd",
    "setitimer",
    "siginterrupt",
    "signal",
    "sigtimedwait",
    "sigwait",
    "sigwaitinfo",
)
"""They change what a signal does to the process, send it one later, or take one that is meant for the worker."""
FAULT_FUNCTIONS = ("cancel_dump_traceback_later", "disable", "dump_traceback_later", "enable", "register", "unregister")
SYMBOLS = frozenset(
    {"_Fork", "alarm", "daemon", "fork", "forkpty", "raise", "setitimer", "sigaction", "signal", "sigprocmask", "vfork"}
)
"""Functions of the C library that ctypes does not find."""
CRASHES = frozenset({signal.SIGKILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV})
"""Let through: like a crash in C they end the process at once, and the runs of a lost worker go on elsewhere."""
TRUSTED = ("signal", "multiprocessing.resource_tracker")
"""Modules that get through. What `signal` calls has passed the gate already. The tracker of shared memory blocks
signals for the moment in which it starts its process, so that the process has them blocked."""

Refuse = Callable[[str], None]
"""Given what is asked for, for humans: returns or raises."""


def _let_through(what: str) -> None:
    """An open gate."""


class Gate:
    """The gate of this process.

    :ivar fork: the original, which does not pass the gate.
    :ivar refuse: called before what is not to be done any more.
    """

    def __init__(self) -> None:
        self.fork = os.fork
        self.refuse: Refuse = _let_through

    def install(self) -> None:
        """Put the gate in place."""
        own_signal = sys.modules["_signal"]  # what `signal` wraps, or hands out as it is
        for module in (os, posix):
            self._stop(module, ("fork", "forkpty"), "A fork")
            self._stop(module, ("execv", "execve"))
            self._check(module, "kill", lambda pid, _: pid in _own_pids())
            self._check(module, "killpg", lambda pgid, _: pgid in (0, os.getpgrp()))
        for module in (signal, own_signal):
            self._stop(module, SIGNAL_FUNCTIONS)
            self._check(module, "pthread_kill", lambda *_: True)
            self._check(module, "raise_signal", lambda *_: True, number=0)
            self._check(module, "pidfd_send_signal", lambda pidfd, *_: _is_own(pidfd))
        self._check(sys.modules["_thread"], "interrupt_main", lambda *_: True, number=0)
        self._stop(faulthandler, FAULT_FUNCTIONS)
        self._stop(resource, ("setrlimit",))
        self._check(resource, "prlimit", lambda pid, _, *limits: bool(limits) and pid in _own_pids(), number=2)
        self._check_symbols()

    def _stop(self, module: ModuleType, names: Iterable[str], what: str | None = None) -> None:
        """None of these is called once the gate is closed."""
        for name in names:
            if hasattr(module, name):
                setattr(module, name, self._stopped(getattr(module, name), what or f"{module.__name__}.{name}"))

    def _stopped(self, function: Callable[..., Any], what: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if sys._getframe(1).f_globals.get("__name__") not in TRUSTED:
                self.refuse(what.removeprefix("_"))
            return function(*args, **kwargs)

        return call

    def _check(self, module: ModuleType, name: str, reaches_us: Callable[..., bool], number: int = 1) -> None:
        """This is not called once the gate is closed, where it reaches this process.

        :param number: the argument that is the signal's.
        """
        if not hasattr(module, name):
            return
        function = getattr(module, name)

        @functools.wraps(function)
        def call(*args: Any) -> Any:
            sent = args[number] if len(args) > number else signal.SIGINT
            if sent not in CRASHES and sent != 0 and reaches_us(*args):
                self.refuse(f"{name} of the worker")
            return function(*args)

        setattr(module, name, call)

    def _check_symbols(self) -> None:
        find = ctypes.CDLL.__getitem__

        @functools.wraps(find)
        def call(library: ctypes.CDLL, name: Any) -> Any:
            if name in SYMBOLS:
                self.refuse(f"{name} of the C library")
            return find(library, name)

        ctypes.CDLL.__getitem__ = call  # type: ignore[method-assign]


def _own_pids() -> tuple[int, ...]:
    """What `os.kill` takes for this process, its group, or its parent."""
    return os.getpid(), os.getppid(), 0, -1, -os.getpgrp()


def _is_own(pidfd: int) -> bool:
    with suppress(OSError):
        return f"\nPid:\t{os.getpid()}\n" in Path(f"/proc/self/fdinfo/{pidfd}").read_text()
    return False


gate = Gate()


def prepare() -> None:
    """Put the gate in place, and asyncio in pure Python.

    asyncio in C keeps the running loop and the current task for each thread of the system, and all greenlets share one.
    In Python it keeps them in a `threading.local`, which gevent makes one of each greenlet, and for each loop.
    """
    assert "gevent" not in sys.modules, "gevent has kept the original fork."
    gate.install()
    for name in [name for name in sys.modules if name.partition(".")[0] == "asyncio"]:
        del sys.modules[name]  # what was imported with the interpreter is imported anew
    sys.modules["_asyncio"] = None  # type: ignore[assignment]  # so that its import fails
