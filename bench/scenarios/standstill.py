"""`standstill`: how long the loops of web and worker stand still while a run as large as may be ends, and is read.

The runs are filled by an external writer, while somebody follows; then their writer ends them, or falls silent, so that
a janitor does. One is an agent's.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from bench.client import HOST, Api
from bench.processes import BenchError, eventually
from bench.report import Figures, Result
from bench.servers import RuntailWeb
from bench.shapes import SHAPES, batches
from bench.stage import UNLIMITED, Stage
from bench.standing import VARIABLE, longest

TIMEOUT_SECONDS = 600
LEASE_SECONDS = 20
LIMITS = {"web_max_ms": 100, "worker_max_ms": 100}
PIECE_BYTES = 1_000_000
ALL = "all"
AGENT = "agent"
"""In place of a shape: a run that a worker executes."""
ROUTES: dict[str, tuple[str, str]] = {
    "run": ("/runs/{run}", "application/json"),
    "list": ("/runs?limit=200", "application/json"),
    "page": ("/runs/{run}/events?limit=1000", "application/json"),
    "sse": ("/runs/{run}/events?since_seq=0", "text/event-stream"),
    "snapshot": ("/runs/{run}/events?since_seq=latest", "text/event-stream"),
    "ndjson": ("/runs/{run}/events?since_seq=0", "application/x-ndjson"),
}
"""What is asked for, by the name of its figure: the path, and what is accepted."""


class StandingWeb(RuntailWeb):
    """Runtail's web, which looks how long its loop stands still."""

    application = "bench.standing_web:app"


@dataclass(frozen=True, slots=True)
class Standstills:
    """Where what each process has seen of its own loop is written."""

    web: Path
    worker: Path

    @contextmanager
    def during(self, figures: Figures, name: str) -> Iterator[None]:
        """The longest of both processes meanwhile, in ms of processor time, under that name."""
        begun = time.monotonic()
        yield
        time.sleep(0.05)  # the tick after it
        for process, path in (("web", self.web), ("worker", self.worker)):
            figures[f"{process}_{name}_ms"] = longest(path, begun).cpu_ms


@dataclass(frozen=True, slots=True)
class Standstill:
    """The longest standstills of web and worker while runs that are as large as may be are ended and read."""

    shapes: str = ALL
    share: float = 1

    def run(self, stage: Stage) -> Result:
        """Play it."""
        known = [*SHAPES, AGENT]
        names = known if self.shapes == ALL else self.shapes.split(",")
        if unknown := set(names) - set(known):
            raise BenchError(f"There is no shape {', '.join(sorted(unknown))}; there are {', '.join(known)}.")
        stands = Standstills(stage.folder / "web.standstill", stage.folder / "worker.standstill")
        figures: Figures = {}
        with ExitStack() as processes:
            web = processes.enter_context(_web(stage, stands))
            processes.enter_context(stage.worker(environment=_settings(stands.worker)))
            for name in names:
                play = self._play_agent if name == AGENT else self._play
                play(web.port, stands, name, figures)
        for process in ("web", "worker"):
            figures[f"{process}_max_ms"] = max(ms for name, ms in figures.items() if name.startswith(process))
        return Result({"runtail": figures}, limits=LIMITS)

    def _play_agent(self, port: int, stands: Standstills, name: str, figures: Figures) -> None:
        with stands.during(figures, f"{name}_fill_and_end"), Api(port) as api:
            run_id = api.start("bench_fill", {"share": self.share})
            _wait_ended(port, run_id)
        self._read(Reader(port, run_id), stands, name, figures)

    def _read(self, reader: "Reader", stands: Standstills, name: str, figures: Figures) -> None:
        for route in ROUTES:
            with stands.during(figures, f"{name}_{route}"):
                reader.read(route)

    def _play(self, port: int, stands: Standstills, shape: str, figures: Figures) -> None:
        writer = Writer(port)
        reader = Reader(port, writer.run_id)
        follower = threading.Thread(target=reader.read, args=("ndjson",), daemon=True)
        follower.start()
        with stands.during(figures, f"{shape}_fill"):
            writer.fill(shape, self.share)
        with stands.during(figures, f"{shape}_run_live"):
            reader.read("run")
        with stands.during(figures, f"{shape}_end"):
            writer.finish()
            follower.join(TIMEOUT_SECONDS)
        self._read(reader, stands, shape, figures)
        silent = Writer(port)
        silent.fill(shape, self.share)
        with stands.during(figures, f"{shape}_lost"):
            silent.wait_ended()


def _settings(file: Path) -> Mapping[str, str]:
    return {**UNLIMITED, VARIABLE: str(file), "EXTERNAL_LEASE_SECONDS": str(LEASE_SECONDS)}


def _web(stage: Stage, stands: Standstills) -> RuntailWeb:
    return stage.web(_settings(stands.web), kind=StandingWeb)


class Writer:
    """Of an external run."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._seq = 0
        with Api(port) as api:
            said = api.post("/runs", {"agent": "external", "input": {}})
        self.run_id: str = said["run_id"]
        self._headers = {"Authorization": f"Bearer {said['writer_token']}", "Producer-Epoch": str(said["epoch"])}

    def fill(self, shape: str, share: float) -> None:
        """Send all events of that shape."""
        for body in batches(shape, share):
            self._post("events", body, "application/x-ndjson")

    def finish(self) -> None:
        """The end. Where it takes long, a janitor may be at it, too."""
        with suppress(BenchError):
            self._post("finish", b'{"status": "completed"}', "application/json")
        self.wait_ended()

    def wait_ended(self) -> None:
        """Until the run has ended, if need be because nothing is heard of its writer any more."""
        _wait_ended(self._port, self.run_id)

    def _post(self, what: str, body: bytes, media_type: str) -> None:
        self._seq += 1
        headers = {**self._headers, "Producer-Seq": str(self._seq), "Content-Type": media_type}
        _ask(self._port, "POST", f"/runs/{self.run_id}/{what}", body, headers)


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads a run in every way."""

    port: int
    run_id: str

    def read(self, route: str) -> None:
        """Ask once, and read the answer to its end."""
        path, accept = ROUTES[route]
        _ask(self.port, "GET", path.format(run=self.run_id), None, {"Accept": accept})


def _wait_ended(port: int, run_id: str) -> None:
    with Api(port) as api:
        path = f"/runs/{run_id}/events?since_seq=0&limit=1"
        eventually(lambda: api.get(path)["terminal"], TIMEOUT_SECONDS, "The end of the run", pause=0.2)


def _ask(port: int, method: str, path: str, body: bytes | None, headers: Mapping[str, Any]) -> None:
    connection = HTTPConnection(HOST, port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request(method, path, body, dict(headers))
        answer = connection.getresponse()
        said = answer.read(PIECE_BYTES)
        while answer.read(PIECE_BYTES):
            pass
    finally:
        connection.close()
    if answer.status >= 400:
        raise BenchError(f"Runtail answered {answer.status}: {said[:300].decode(errors='replace')}")
