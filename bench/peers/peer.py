"""The one contract of all servers that do the same work: Runtail and its peers.

Responsible for what the measurements need to know of a server, and for its processes. Not responsible for the
measurements (`bench.peers.measures`) nor for how one particular server does it (the folders beside this).
"""

import json
import os
import re
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Self

import psutil
import psycopg2
import redis
from psycopg2.sql import SQL, Identifier

from app.dev.services.servers import free_port
from bench.peers.account import numbers
from bench.peers.environments import Environment, Venv
from bench.peers.wire import Frame, Refused, Request, Stream, ask
from bench.processes import Child, eventually
from bench.stage import Stage

READY_SECONDS = 60.0
SILENCE_SECONDS = 20.0
"""After so long without a byte a client takes its connection for dead."""
ANSWER_SECONDS = 5.0
WAITING_MS = 3_600_000.0
HIDDEN = ("RUNTAIL", "PYTHONPATH", "DATABASE_URL", "REDIS_URL", "STREAM_", "REPLAY_")
JSON = MappingProxyType({"Content-Type": "application/json"})
SSE = MappingProxyType({"Accept": "text/event-stream"})


@dataclass(frozen=True, slots=True)
class Work:
    """What the agent of every server does: deltas "#0# …", "#1# …", so many milliseconds apart."""

    count: int
    interval_ms: float = 0.0

    def json(self) -> bytes:
        """As most of them are told it."""
        return json.dumps({"count": self.count, "interval_ms": self.interval_ms}).encode()


WAITING = Work(2, WAITING_MS)
"""A run that says one delta, and waits."""


@dataclass(slots=True)
class Run:
    """A run as its client knows it."""

    id: str
    session: str = ""
    """What else names it, where its id is not enough."""
    cursor: str = ""
    """How far it was read, as the server wants to hear it."""
    characters: int = 0
    """… in characters of its stream."""


class Program(NamedTuple):
    """A process of a server."""

    name: str
    command: Sequence[str | Path]
    environment: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class Peer(ABC):
    """One server. Its `with` block begins with empty stores and ends with its processes gone."""

    stage: Stage
    environments: Path
    """The folder in which each peer has one of its own."""
    redis_number: int
    """Its database in the stage's Redis."""
    port: int = field(default_factory=free_port)
    children: list[Child] = field(default_factory=list)

    name: ClassVar[str]
    as_run: ClassVar[str]
    """How it is run here."""
    not_for: ClassVar[str]
    """What it is not made for."""
    resumes: ClassVar[str]
    """How a client comes back."""
    keeps_in_memory: ClassVar[bool] = False
    """Whether what its processes hold in memory is its store."""
    has_database: ClassVar[bool] = False
    """Whether it has a database in the stage's PostgreSQL."""

    # Where everything of it is.

    @classmethod
    def files(cls) -> tuple[Path, ...]:
        """Its whole configuration."""
        folder = Path(__file__).parent / cls.__module__.rpartition(".")[2]
        return tuple(sorted(path for path in folder.iterdir() if path.is_file()))

    @classmethod
    @abstractmethod
    def versions(cls) -> dict[str, str]:
        """What it consists of."""

    @abstractmethod
    def environment(self) -> Environment | None:
        """What is to be installed for it.

        :raises NotInstalled: it is of the kind that the machine has or has not.
        """

    @property
    def folder(self) -> Path:
        """The working folder of its processes."""
        return self.stage.folder / f"peer-{self.name}"

    @property
    def where(self) -> Path:
        """In which folder its processes are started."""
        return self.folder

    @property
    def redis_url(self) -> str:
        """Its database in the stage's Redis."""
        return f"{self.stage.embedded.redis_url.rpartition('/')[0]}/{self.redis_number}"

    @property
    def database(self) -> str:
        """Its database in the stage's PostgreSQL."""
        return f"peer_{re.sub('[^a-z]', '_', self.name)}"

    @property
    def database_url(self) -> str:
        """… as a URL."""
        return f"{self.stage.embedded.database_url.rpartition('/')[0]}/{self.database}"

    # Its processes.

    @abstractmethod
    def programs(self) -> Sequence[Program]:
        """What is started, in this order."""

    @abstractmethod
    def ready_path(self) -> str:
        """What is asked to find out whether it serves."""

    def ready(self) -> bool:
        """Whether it serves now."""
        if ended := next((child for child in self.children if child.ended), None):
            raise ended.trouble("ended")
        with suppress(OSError):
            try:
                ask(self.port, Request("GET", self.ready_path()), ANSWER_SECONDS)
            except Refused as error:
                return error.status < 500
            return True
        return False

    def launch(self) -> None:
        """Start it on the stores as they are, and wait until it serves."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(HIDDEN)}
        for program in self.programs():
            command, env = [str(part) for part in program.command], {**kept, **program.environment}
            self.children.append(Child(program.name, command, self.stage.folder, env, self.where))
        eventually(self.ready, READY_SECONDS, f"The first answer of {self.name}")

    def pids(self) -> list[int]:
        """All its processes; PostgreSQL and Redis are none of them."""
        roots = [psutil.Process(child.pid) for child in self.children if not child.ended]
        return [process.pid for root in roots for process in (root, *root.children(recursive=True))]

    def kill(self) -> None:
        """kill -9 of all of them, as near to at once as can be."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self.children:
            self.children.pop().__exit__()

    def clear(self) -> None:
        """Empty its stores."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushdb()
        if self.has_database:
            self._make_database()

    def _make_database(self) -> None:
        connection = psycopg2.connect(self.stage.embedded.database_url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(self.database)))
            cursor.execute(SQL("CREATE DATABASE {}").format(Identifier(self.database)))
        connection.close()

    def __enter__(self) -> Self:
        self.clear()
        try:
            self.launch()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    # Its runs.

    @abstractmethod
    def start(self, work: Work) -> tuple[Run, Stream]:
        """Start a run. A stream that has it from the first event on, as far as there is such a stream."""

    @abstractmethod
    def back(self, run: Run) -> Request:
        """How a client that has read up to the cursor comes back."""

    def follow(self, run: Run) -> Request:
        """How another client comes to a run, to read it from its start if it can."""
        return self.back(Run(run.id, run.session))

    def learn(self, run: Run, frame: Frame) -> None:
        """What a frame says of its run: above all the new cursor."""
        run.characters += frame.characters
        run.cursor = frame.id or run.cursor

    @abstractmethod
    def is_delta(self, frame: Frame) -> bool:
        """Whether it has deltas of the agent."""

    @abstractmethod
    def is_end(self, frame: Frame) -> bool:
        """Whether it says that the run has ended."""

    def deltas(self, frame: Frame) -> list[int]:
        """The numbers of the deltas in a frame."""
        return numbers(frame.data) if self.is_delta(frame) else []

    def open(self, request: Request) -> Stream:
        """A stream of it.

        :raises OSError: it does not listen.
        """
        return Stream(self.port, request, SILENCE_SECONDS)


class PythonPeer(Peer):
    """One that pip installs: its folder has a requirements.txt, with its versions."""

    @classmethod
    def versions(cls) -> dict[str, str]:
        """From the list."""
        return pinned(cls._requirements())

    def environment(self) -> Venv:
        """A virtual environment."""
        return Venv(self.environments / self.name, self._requirements())

    @classmethod
    def _requirements(cls) -> Path:
        return next(file for file in cls.files() if file.name == "requirements.txt")


def pinned(requirements: Path) -> dict[str, str]:
    """The versions that a requirements.txt names."""
    lines = [line.partition("#")[0].strip() for line in requirements.read_text().splitlines()]
    return dict(re.sub(r"\[.*?\]", "", line).split("==") for line in lines if line)
