"""`runtail dev`: a whole installation on this machine, from one command until Ctrl-C.

Responsible for the order of starting and stopping, and for what the terminal says. Not responsible for
preparing the servers (`app.dev.services`) or for keeping processes up (`app.dev.supervisor`).
"""

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import watchfiles

from app.config import ALIASES, Config
from app.dev.authors_log import AuthorsLog
from app.dev.services import DevError, postgres_server, redis_server
from app.dev.services.folder import (
    OWNER_VARIABLE,
    POLL_SECONDS,
    announced,
    log_path,
    owned,
    prepare_folder,
    stop_orphans,
)
from app.dev.services.servers import LOOPBACK, READY_SECONDS, Server, explain_exit, is_ready
from app.dev.supervisor import Child, Supervisor
from app.storage.run_store import migrate

STOP_APP_SECONDS = 3.0
STOP_SERVER_SECONDS = 1.5
"""How long either stage of stopping may take before what is left is killed: below 5 s together."""
APP_READY_SECONDS = 60.0
MAX_EARLY_EXITS = 3
"""How often web or worker may die before the first readiness until that is the answer."""
DRAIN_SECONDS = "1"
"""Default of DRAIN_SECONDS here: whoever pressed Ctrl-C is waiting."""
BACKLOG = 2048
ROOT = Path(__file__).resolve().parents[2]
"""The checkout, or where the wheel is installed: `app` and `workers` are looked up here."""
WORKERS = ("worker", "isolated")
LOG_POLL_SECONDS = 0.2
SETTINGS = "python:app.gunicorn_settings"

GREETING = """
Runtail is ready at {url}. Ctrl-C stops it; logs are in {data}/logs,
and `. {data}/env` tells a shell where the servers are: psql "$RUNTAIL_DATABASE_URL".
Start a run, watch it, read what came of it:

RUN=$(curl -s {url}/runs -H 'Content-Type: application/json' \\
  -d '{{"agent": "{agent}", "input": {{"message": "Where is order 48291?"}}}}' \\
  | sed -n 's/.*"run_id": *"\\([^"]*\\)".*/\\1/p')
curl -N {url}/runs/$RUN/events
curl -s {url}/runs/$RUN
"""


def dev(port: int, data: Path, reload: Path | None = None) -> None:
    """Run PostgreSQL, Redis, web and workers on loopback until SIGINT, SIGTERM or SIGHUP.

    A server that DATABASE_URL or REDIS_URL names already is used instead of an embedded one.

    :param reload: the workers start again when a Python file in this folder changes; None: they do not.

    :raises DevError: it could not start, or not stay up until it was ready; nothing is left running.
    :raises ConfigError: a setting is wrong.
    """
    # Until the event loop has handlers of its own, a SIGTERM unwinds as a Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    data = prepare_folder(data)
    with owned(data):
        if left := stop_orphans(data):
            _say(f"Stopped {left} processes that a killed `runtail dev` had left running.")
        with _listen(port) as web_socket:
            servers = _embedded_servers(data)
            urls = {server.url_variable: server.url for server in servers}
            env = _child_environment(data, port, urls)
            with announced(data, urls):
                asyncio.run(_Installation(data, servers, env, web_socket, reload).run())


def _listen(port: int) -> socket.socket:
    """The web's socket. Bound here and inherited, it outlives a restarted web: connections wait for it."""
    try:
        sock = socket.create_server((LOOPBACK, port), backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "taken" if taken else f"not usable ({error})"
        raise DevError(f"Port {port} is {reason}: choose another with --port.") from error
    sock.set_inheritable(True)
    return sock


def _embedded_servers(data: Path) -> list[Server]:
    """The servers that the environment does not name already, prepared but not running."""
    prepare = {"DATABASE_URL": postgres_server.prepare, "REDIS_URL": redis_server.prepare}
    return [make(data) for variable, make in prepare.items() if not os.environ.get(variable)]


def _child_environment(data: Path, port: int, urls: dict[str, str]) -> dict[str, str]:
    """What the children are told: the caller's environment, where the servers are, development mode."""
    ours = {"PORT": str(port), "RUNTAIL_DEV": "1", "PYTHONUNBUFFERED": "1", OWNER_VARIABLE: str(data)}
    callers = {name: value for name, value in os.environ.items() if name not in ALIASES}  # of an `env` file
    return {"DRAIN_SECONDS": DRAIN_SECONDS, **callers, **urls, **ours}


def _say(text: str) -> None:
    """Tell the person at the terminal, who may have closed it."""
    with suppress(OSError):
        print(text, flush=True)


class _Installation:
    def __init__(
        self, data: Path, servers: list[Server], env: dict[str, str], web_socket: socket.socket, reload: Path | None
    ) -> None:
        self._config = Config.from_env(env)
        self._reload = reload
        self._data = data
        self._servers = servers
        self._env = env
        self._web_socket = web_socket
        self._url = f"http://{LOOPBACK}:{self._config.port}"

    async def run(self) -> None:
        """Start, stay up until a signal, stop. Stops in any case, also in the middle of starting."""
        supervisor = Supervisor(self._data, self._restarted)
        await supervisor.open()
        told_to_stop = self._stop_signals()
        starting = asyncio.create_task(self._start(supervisor))
        beside = [asyncio.create_task(self._show_authors_log())]
        if self._reload:
            beside.append(asyncio.create_task(self._restart_on_change(supervisor, self._reload)))
        try:
            waiting: set[asyncio.Future[Any]] = {starting, told_to_stop}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                _say(starting.result())
                await told_to_stop
            _say("Stopping.")
        finally:
            for task in (starting, *beside):
                task.cancel()
            await supervisor.stop(["web", *WORKERS])
            await supervisor.close()

    def _stop_signals(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()

        def tell() -> None:
            if not told.done():  # a second Ctrl-C changes nothing
                told.set_result(None)

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            loop.add_signal_handler(number, tell)
        return told

    async def _show_authors_log(self) -> None:
        """Show what agents raise, and why an agent could not be loaded."""
        logs = [AuthorsLog(log_path(self._data, name)) for name in WORKERS]
        while True:
            for log in logs:
                if news := await asyncio.to_thread(log.news):
                    _say(news.rstrip("\n"))
            await asyncio.sleep(LOG_POLL_SECONDS)

    async def _restart_on_change(self, supervisor: Supervisor, folder: Path) -> None:
        async for changes in watchfiles.awatch(folder, watch_filter=watchfiles.PythonFilter()):
            changed = sorted(os.path.relpath(path, folder) for _, path in changes)
            _say(f"{', '.join(changed)} changed: the workers start again.")
            supervisor.end(WORKERS)

    def _restarted(self, name: str, pid: int, how: str) -> None:
        _say(f"{name} ended ({how}) and was started again as pid {pid}.")

    async def _start(self, supervisor: Supervisor) -> str:
        """Start everything in order; returns the greeting."""
        await supervisor.start([self._server_child(server) for server in self._servers])
        for server in self._servers:
            await self._wait_for_server(supervisor, server)
        await self._migrate()
        await supervisor.start([self._web(), self._worker("worker", self._config.workers)])
        agents = await self._wait_for_app(supervisor)
        # Last, and not waited for: the runs that it takes wait for it instead.
        await supervisor.start([self._worker("isolated", self._config.isolated_workers, "--isolated")])
        agent = "support" if "support" in agents else agents[0]
        return GREETING.format(url=self._url, data=self._data, agent=agent)

    def _server_child(self, server: Server) -> Child:
        return Child(
            name=server.name,
            argv=server.argv,
            env={**os.environ, OWNER_VARIABLE: str(self._data)},
            folder=server.folder.parent,
            stop_seconds=STOP_SERVER_SECONDS,
            stop_signal=server.stop_signal,
            account=server.account,
            is_private=True,
        )

    def _web(self) -> Child:
        bind = f"fd://{self._web_socket.fileno()}"
        return Child(
            name="web",
            argv=(sys.executable, "-m", "gunicorn", "-c", SETTINGS, "--bind", bind, "app.wsgi:app"),
            env=self._env,
            folder=ROOT,
            stop_seconds=STOP_APP_SECONDS,
            inherits_sockets=True,
        )

    def _worker(self, name: str, count: int, *arguments: str) -> Child:
        return Child(
            name=name,
            argv=(sys.executable, "-m", "workers", *arguments),
            env=self._env,
            folder=ROOT,
            stop_seconds=STOP_APP_SECONDS,
            count=count,
        )

    async def _migrate(self) -> None:
        try:
            await asyncio.to_thread(migrate, self._config.database_url)
        except Exception as error:  # whatever a database of the caller's own may refuse
            reason = str(error).strip().partition("\n")[0]
            raise DevError(f"The database could not be brought to the current schema: {reason}") from error

    async def _wait_for_server(self, supervisor: Supervisor, server: Server) -> None:
        async with self._within(READY_SECONDS, server.name):
            while not await asyncio.to_thread(is_ready, server):
                if supervisor.ends(server.name):
                    raise explain_exit(server.name, self._data)
                await asyncio.sleep(POLL_SECONDS)

    async def _wait_for_app(self, supervisor: Supervisor) -> list[str]:
        """Wait until the web is ready and a worker has registered its agents; returns their names."""
        async with (
            self._within(APP_READY_SECONDS, "web"),
            httpx.AsyncClient(base_url=self._url, trust_env=False, timeout=5) as client,
        ):
            while not (agents := await _agents(client)):
                for name in ("web", "worker"):
                    if len(supervisor.ends(name)) >= MAX_EARLY_EXITS:
                        raise explain_exit(name, self._data)
                await asyncio.sleep(POLL_SECONDS)
            return agents

    @asynccontextmanager
    async def _within(self, seconds: float, name: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            log = log_path(self._data, name)
            raise DevError(f"{name} was not ready within {seconds:.0f} s (its log: {log})") from None


async def _agents(client: httpx.AsyncClient) -> list[str]:
    """The names of the registered agents; none while the web is not ready."""
    try:
        if (await client.get("/readyz")).status_code != httpx.codes.OK:
            return []
        answer = await client.get("/agents")
        return [agent["name"] for agent in answer.raise_for_status().json()]
    except httpx.HTTPError:  # the web is still starting
        return []
