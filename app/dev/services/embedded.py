"""PostgreSQL and Redis for as long as a `with` block lasts: what the tests run on.

Responsible for starting and stopping just the two servers. Not responsible for supervising a whole
installation (`app.dev.installation`).
"""

import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from app.dev.services import postgres_server, redis_server
from app.dev.services.folder import (
    OWNER_VARIABLE,
    POLL_SECONDS,
    PRIVATE_UMASK,
    DevError,
    log_path,
    open_log,
    prepare_folder,
    wait_until_gone,
)
from app.dev.services.servers import READY_SECONDS, explain_exit, is_ready

STOP_SECONDS = 5.0
"""How long a server may take to stop before it is killed."""


class EmbeddedServices:
    """PostgreSQL and Redis for as long as a `with` block lasts; `kill` and `start` are for tests of crashes.

    A killed server comes back under the same URL, with all that it had made durable.
    """

    def __init__(self, data: Path) -> None:
        self.data = prepare_folder(data)
        prepared = postgres_server.prepare(self.data), redis_server.prepare(self.data)
        self.servers = {server.name: server for server in prepared}
        self._processes: dict[str, psutil.Popen] = {}

    @property
    def database_url(self) -> str:
        return self.servers["postgres"].url

    @property
    def redis_url(self) -> str:
        return self.servers["redis"].url

    def __enter__(self) -> Self:
        try:
            for name in self.servers:
                self._spawn(name)
            for name in self.servers:
                self._wait_until_ready(name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def pid(self, name: str) -> int:
        """The pid of "postgres" or "redis", for signals of your own."""
        pid: int = self._processes[name].pid
        return pid

    def kill(self, name: str) -> None:
        """kill -9, as a crash would; returns when the server and its backends are gone."""
        process = self._processes.pop(name)
        backends = process.children()
        process.kill()
        process.wait()
        wait_until_gone(backends, STOP_SECONDS)

    def start(self, name: str) -> None:
        """Start a server that was killed, and wait until it answers."""
        self._spawn(name)
        self._wait_until_ready(name)

    def stop(self) -> None:
        """Stop both in their own orderly way; one that does not obey is killed."""
        for name, process in self._processes.items():
            process.send_signal(self.servers[name].stop_signal)
        for process in self._processes.values():
            try:
                process.wait(STOP_SECONDS)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _spawn(self, name: str) -> None:
        server = self.servers[name]
        with open_log(self.data, name) as log:
            self._processes[name] = psutil.Popen(
                server.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=server.account,
                group=server.account,
                extra_groups=[] if server.account else None,
                env={**os.environ, OWNER_VARIABLE: str(self.data)},
                umask=PRIVATE_UMASK,
                start_new_session=True,  # Ctrl-C at the terminal is for pytest, which then stops us in order
            )

    def _wait_until_ready(self, name: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not is_ready(self.servers[name]):
            if self._processes[name].poll() is not None:
                raise explain_exit(name, self.data)
            if time.monotonic() > deadline:
                log = log_path(self.data, name)
                raise DevError(f"{name} did not answer within {READY_SECONDS:.0f} s (its log: {log})")
            time.sleep(POLL_SECONDS)
