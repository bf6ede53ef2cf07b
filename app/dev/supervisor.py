"""Child processes that stay up: started in stages, restarted when they die, stopped in stages.

Responsible for the processes, their logs and `pids.json`. Not responsible for what they are (`app.dev.installation`).

The work is done by circus as a library: it respawns, stops with the right signal and a time limit, runs
PostgreSQL under another account. supervisord would be a second daemon with a configuration file of its own, and
honcho restarts nothing.
"""

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circus.arbiter import Arbiter
from circus.exc import ConflictError
from circus.process import DEAD_OR_ZOMBIE, UNEXISTING
from circus.watcher import Watcher
from psutil import NoSuchProcess
from tornado.ioloop import IOLoop

from app.dev.services.folder import POLL_SECONDS, log_path, open_log, remove_pids, write_pids

CHECK_SECONDS = 0.2
"""How often circus looks for dead children; it restarts them at once."""
EXEC_INTO_LOG = 'exec "$@" >>"$0" 2>&1'
PRIVATELY = "umask 077; "
"""The shell's part in starting a child. circus' own redirection loses its pipes when children are restarted
("fd added twice"), and would leave the children without a reader if this process were killed."""
IGNORE_ITS_FAILURE = True
"""A pids.json that cannot be written (full disk) is no reason to end a child."""
CONTROL, EVENTS = "inproc://circus-control", "inproc://circus-events"
"""circus' own endpoints, reachable from inside this process only."""


@dataclass(frozen=True, slots=True)
class Child:
    """One kind of process: what to run, how many, and how to stop it."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path
    """Its working directory."""
    stop_seconds: float
    """How long it may take to stop before it is killed."""
    stop_signal: signal.Signals = signal.SIGTERM
    account: str | None = None
    count: int = 1
    inherits_sockets: bool = False
    is_private: bool = False
    """What it writes is for nobody else."""


class _Watcher(Watcher):
    """circus' own drops a child that dies in the middle of its look-around, without saying how it ended."""

    def manage_processes(self) -> Any:
        for process in list(self.processes.values()):
            if process.status in (DEAD_OR_ZOMBIE, UNEXISTING):
                self.reap_process(process.pid)
        return super().manage_processes()


class Supervisor:
    """Runs children of one data folder. All methods belong to the event loop that built it."""

    def __init__(self, data: Path, on_restart: Callable[[str, int, str], None]) -> None:
        """`on_restart(name, pid, how)` hears of every child that was started again, and how it had ended."""
        self._data = data
        self._on_restart = on_restart
        self._watchers: dict[str, Watcher] = {}
        self._ends: dict[str, list[str]] = {}
        self._log_to(log_path(data, "supervisor"))
        self._arbiter = Arbiter([], CONTROL, EVENTS, check_delay=CHECK_SECONDS, loop=IOLoop.current())

    async def open(self) -> None:
        """Begin to supervise. Takes over the signal handlers: set your own afterwards."""
        await self._arbiter.start()

    async def start(self, children: Sequence[Child]) -> None:
        """Start these, and from now on restart them."""
        for child in children:
            watcher = self._watcher(child)
            watcher.initialize(self._arbiter.evpub_socket, self._arbiter.sockets, self._arbiter)
            self._arbiter.watchers.append(watcher)
            self._watchers[child.name] = watcher
        await self._command(self._arbiter.start_watchers, [child.name for child in children])

    async def stop(self, names: Iterable[str]) -> None:
        """Stop these together and return when they are gone. From here on nothing is restarted any more."""
        if self._arbiter.ctrl.caller:
            self._arbiter.ctrl.caller.stop()
        await self._command(self._arbiter.stop_watchers, [name for name in names if name in self._watchers])

    async def close(self) -> None:
        """Stop what still runs and release everything."""
        await self.stop(list(self._watchers))
        await self._arbiter.stop()
        remove_pids(self._data)

    def end(self, names: Iterable[str]) -> None:
        """Ask the processes of these to end, in order. They are started again, as after any other end."""
        for watcher in [self._watchers[name] for name in names if name in self._watchers]:
            for process in list(watcher.processes.values()):
                with suppress(NoSuchProcess):  # it has just ended by itself
                    process.send_signal(watcher.stop_signal)

    def ends(self, name: str) -> list[str]:
        """How this child's processes have ended so far ("exit status 1", "signal 9")."""
        return self._ends.get(name, [])

    def _watcher(self, child: Child) -> Watcher:
        hooks: dict[str, Callable[..., bool]] = {"after_spawn": self._spawned, "after_reap": self._reaped}
        return _Watcher(
            child.name,
            "/bin/sh",
            args=["-c", PRIVATELY * child.is_private + EXEC_INTO_LOG, str(self._open_log(child)), *child.argv],
            env=dict(child.env),
            working_dir=str(child.folder),
            numprocesses=child.count,
            uid=child.account,
            stop_signal=child.stop_signal,
            graceful_timeout=child.stop_seconds,
            use_sockets=child.inherits_sockets,
            hooks={name: (hook, IGNORE_ITS_FAILURE) for name, hook in hooks.items()},
            loop=IOLoop.current(),
        )

    def _open_log(self, child: Child) -> Path:
        """Make the child's log, writable for whoever it runs as. That of the time before stays as NAME.log.1."""
        log = log_path(self._data, child.name)
        if log.exists():
            log.replace(log.with_suffix(".log.1"))
        open_log(self._data, child.name).close()
        if child.account:
            shutil.chown(log, child.account)
        return log

    async def _command(self, command: Callable[..., Any], names: list[str]) -> None:
        """Give circus a command for some watchers. It refuses while its own look-around is in progress."""

        def chosen(reverse: bool = True) -> list[Watcher]:
            return [self._watchers[name] for name in names]

        while True:
            try:
                return await command(watcher_iter_func=chosen)
            except ConflictError:
                await asyncio.sleep(POLL_SECONDS)

    def _spawned(self, watcher: Watcher, pid: int, **_: Any) -> bool:
        write_pids(self._data, {name: sorted(other.processes) for name, other in self._watchers.items()})
        if ends := self._ends.get(watcher.name):
            self._on_restart(watcher.name, pid, ends[-1])
        return True

    def _reaped(self, watcher: Watcher, exit_code: int, **_: Any) -> bool:
        how = f"signal {-exit_code}" if exit_code < 0 else f"exit status {exit_code}"
        self._ends.setdefault(watcher.name, []).append(how)
        return True

    @staticmethod
    def _log_to(path: Path) -> None:
        """What circus has to say is for whoever looks for it, not for the terminal."""
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        handler = logging.FileHandler(path)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        for name in ("circus", "tornado.application"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [handler], False
