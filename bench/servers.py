"""The servers under test: Runtail's web process and the baselines, each with its paths, its writer, its processes.

Responsible for starting and ending them on loopback. Not responsible for what is measured.
"""

import importlib.util
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import urlsplit

import httpx
import psutil
import redis

from app.dev.services.servers import free_port
from bench.load import build
from bench.processes import ROOT, Child, eventually, ports_to, python

APPEND = "app/storage/append.lua"
READY_SECONDS = 30
WAKE_SECONDS = 0.2
GUNICORN = ("-m", "gunicorn", "--bind", "127.0.0.1:{port}")
PLAIN_GEVENT = ("-k", "gevent", "--worker-connections", "20000", "--backlog", "2048", "--no-control-socket")
NCHAN_MODULES = (
    Path("/usr/lib/nginx/modules/ngx_nchan_module.so"),
    Path("/usr/lib64/nginx/modules/ngx_nchan_module.so"),
)
NGINX_PATHS = ("/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx")
LIMITS = ("RUNTAIL", "STREAM_", "REPLAY_", "RUN_", "WEB_CONCURRENCY", "DRAIN_")


@dataclass(slots=True)
class Server:
    """One server, running while its `with` block lasts."""

    folder: Path
    environment: Mapping[str, str]
    """DATABASE_URL, REDIS_URL and the settings of the test."""
    port: int = field(default_factory=free_port)
    child: Child | None = None
    woken: float = 0

    name: ClassVar[str]
    writer_module: ClassVar[str]
    seq: ClassVar[str] = "id"
    """Where the load client finds an event's seq."""
    since: ClassVar[int | None] = 1
    """The cursor to open with; None: the server knows none."""

    def command(self) -> list[str]:
        """What starts it."""
        raise NotImplementedError

    def path(self, run_id: str) -> str:
        """The request path of a run's window."""
        return f"/runs/{run_id}/events"

    def writer_command(self) -> list[str]:
        """What starts its writer."""
        return python("-m", self.writer_module)

    def writer_url(self) -> str:
        """What its writer is told to write to."""
        return self.environment["REDIS_URL"]

    def wake(self, run_ids: Sequence[str]) -> None:
        """Have every window of the runs get something, where windows are answered only then."""

    def settled(self, windows: int) -> bool:
        """Whether its windows, all of which are open to their clients, are set up behind that too."""
        return True

    def answers(self) -> bool:
        """Whether it serves requests now."""
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.port}{self.ready_path()}", timeout=5).status_code < 500
        return False

    def ready_path(self) -> str:
        """What is asked to find out whether it serves."""
        return "/"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start it, in place of the one that has ended."""
        self.__exit__()
        self.child = Child(self.name, self.command(), self.folder, {**clean_environment(), **self.environment})

    def wait_ready(self) -> None:
        """Wait until it answers."""
        eventually(lambda: self._alive() and self.answers(), READY_SECONDS, f"The first answer of {self.name}")

    def _alive(self) -> bool:
        """:raises BenchError: it has ended."""
        if self.process.ended:
            raise self.process.trouble("ended before it answered")
        return True

    @property
    def process(self) -> Child:
        """Its master process."""
        assert self.child
        return self.child

    def workers(self) -> list[int]:
        """The pids of the processes that serve windows."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.child:
            self.child.__exit__()


class RuntailWeb(Server):
    """Runtail as it is deployed: gunicorn with the repository's settings."""

    name = "runtail"
    writer_module = "bench.writer"
    application: ClassVar[str] = "wsgi:app"

    def command(self) -> list[str]:
        """gunicorn takes its settings from the folder it starts in; only the address is given, for keys' sake."""
        return python(*_gunicorn(self.port), self.application)

    def ready_path(self) -> str:
        """Ready means that it reaches both stores."""
        return "/readyz"


class WrittenInC(RuntailWeb):
    """Runtail with `writer.c`, which leaves the processor to the server."""

    def writer_command(self) -> list[str]:
        """Compiles it first."""
        return [str(build(ROOT / "bench" / "writer.c", self.folder)), f"--script={ROOT / APPEND}"]


class WrittenInPython(RuntailWeb):
    """Runtail with the writer in Python, to be shown beside the one in C."""

    name = "python-writer"


class ConnectionPerWindow(Server):
    """A server each of whose windows holds a Redis connection."""

    def settled(self, windows: int) -> bool:
        """Each has it."""
        port = urlsplit(self.environment["REDIS_URL"]).port or 0
        return len(ports_to(self.workers(), port)) >= windows


class XreadPerClient(ConnectionPerWindow):
    """Baseline (a)."""

    name = "xread-per-client"
    writer_module = "bench.writer"

    def command(self) -> list[str]:
        """One process."""
        return python(*_gunicorn(self.port), "-c", "/dev/null", *PLAIN_GEVENT, "bench.baselines.xread_per_client:app")


class FlaskSse(ConnectionPerWindow):
    """Baseline (b)."""

    name = "flask-sse"
    writer_module = "bench.baselines.flask_sse_writer"
    since = None

    def command(self) -> list[str]:
        """One process."""
        return python(*_gunicorn(self.port), "-c", "/dev/null", *PLAIN_GEVENT, "bench.baselines.flask_sse_app:app")

    def path(self, run_id: str) -> str:
        """A channel is named like its run."""
        return f"/stream?channel={run_id}"

    def wake(self, run_ids: Sequence[str]) -> None:
        """gunicorn sends the head of an answer with its first byte; a message without id is that."""
        if time.monotonic() - self.woken < WAKE_SECONDS:
            return
        with redis.Redis.from_url(self.environment["REDIS_URL"]) as client, client.pipeline(transaction=False) as all:
            for run_id in run_ids:
                all.publish(run_id, '{"data": "wake"}')
            all.execute()
        self.woken = time.monotonic()


class Nchan(Server):
    """Baseline (c): nginx with one worker process."""

    name = "nchan"
    writer_module = "bench.baselines.nchan_writer"
    seq = "data"
    since = None

    def command(self) -> list[str]:
        """nginx in the foreground, with a configuration and folders of its own."""
        folder = self.folder / f"nchan-{secrets.token_hex(3)}"
        folder.mkdir()
        filled = (Path(__file__).parent / "baselines" / "nchan.conf").read_text()
        user = "user root;" if os.geteuid() == 0 else ""
        values = {"module": str(nchan_module()), "folder": str(folder), "port": str(self.port), "user": user}
        for name, value in values.items():
            filled = filled.replace(f"{{{name}}}", value)
        (folder / "nginx.conf").write_text(filled)
        return [nginx() or "nginx", "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]

    def path(self, run_id: str) -> str:
        """A channel is named like its run."""
        return f"/sub/{run_id}"

    def writer_url(self) -> str:
        """Its publisher location is beside it."""
        return f"http://127.0.0.1:{self.port}"

    @staticmethod
    def installed() -> bool:
        """Whether the Debian packages nginx and libnginx-mod-nchan, or their like, are there."""
        return bool(nginx() and nchan_module())


BASELINES: dict[str, tuple[type[Server], Callable[[], bool]]] = {
    "xread-per-client": (XreadPerClient, lambda: True),
    "flask-sse": (FlaskSse, lambda: importlib.util.find_spec("flask_sse") is not None),
    "nchan": (Nchan, Nchan.installed),
}
"""Each with whether this machine has it."""


def _gunicorn(port: int) -> list[str]:
    return [part.format(port=port) for part in GUNICORN]


def clean_environment() -> dict[str, str]:
    """The shell's, without settings of Runtail that somebody may have left in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LIMITS)}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def nginx() -> str | None:
    """The program, where it is installed."""
    return next((path for path in NGINX_PATHS if os.access(path, os.X_OK)), None)


def nchan_module() -> Path | None:
    """nginx' module, where it is installed."""
    return next((path for path in NCHAN_MODULES if path.exists()), None)
