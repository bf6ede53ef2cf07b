"""Runtail, measured by the same code as its peers: one web process and one worker with the repository's settings.

Limits per user and per address are off, because all windows of a benchmark are one user's.
"""

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from bench.peers.environments import Environment
from bench.peers.peer import JSON, SSE, Peer, Program, Run, Work
from bench.peers.wire import Frame, Request, Stream
from bench.processes import ROOT
from bench.stage import AGENTS, WORKER

CONCURRENCY = 100
ENDS = ("run.completed", "run.failed", "run.cancelled")


class Runtail(Peer):
    """Each delta is an event of its own (`run.emit`)."""

    name = "runtail"
    as_run = "web and worker as deployed, PostgreSQL and Valkey"
    not_for = "work that is not a run"
    resumes = "Last-Event-ID"
    has_database = True
    as_text: ClassVar[bool] = False

    @classmethod
    def files(cls) -> tuple[Path, ...]:
        """The deployment's settings, and the agent."""
        return (ROOT / "gunicorn.conf.py", AGENTS / "bench_agents.py")

    @classmethod
    def versions(cls) -> dict[str, str]:
        """This checkout."""
        return {"runtail-server": importlib.metadata.version("runtail-server")}

    def environment(self) -> Environment | None:
        """The one that this runs in."""
        return None

    @property
    def where(self) -> Path:
        """gunicorn takes its settings from the folder that it starts in."""
        return ROOT

    @property
    def redis_url(self) -> str:
        """The stage's own."""
        return self.stage.embedded.redis_url

    @property
    def database_url(self) -> str:
        """The stage's own."""
        return self.stage.embedded.database_url

    def programs(self) -> Sequence[Program]:
        """A web and a worker."""
        web = self.stage.web()
        web.port = self.port
        env = {**self.stage.worker_environment(CONCURRENCY), "PORT": str(self.port)}
        return Program("web", web.command(), env), Program("worker", WORKER, env)

    def ready_path(self) -> str:
        """Ready means that the web reaches both stores."""
        return "/readyz"

    def ready(self) -> bool:
        """And that the worker has said so."""
        return super().ready() and " is ready: " in self.children[-1].err.read_text()

    def clear(self) -> None:
        """Its stores are the stage's."""

    def start(self, work: Work) -> tuple[Run, Stream]:
        """The answer to the POST is the window."""
        input = {"count": work.count, "interval_ms": work.interval_ms, "text": self.as_text}
        body = json.dumps({"agent": "bench_numbers", "input": input}).encode()
        return Run(""), self.open(Request("POST", "/runs", {**JSON, **SSE}, body))

    def learn(self, run: Run, frame: Frame) -> None:
        """The first event has the id."""
        super().learn(run, frame)
        run.id = run.id or json.loads(frame.data)["run_id"]

    def back(self, run: Run) -> Request:
        """As an EventSource does."""
        return Request("GET", f"/runs/{run.id}/events", {**SSE, "Last-Event-ID": run.cursor or "0"})

    def is_delta(self, frame: Frame) -> bool:
        """Of either kind."""
        return frame.event in ("custom.delta", "message.delta")

    def is_end(self, frame: Frame) -> bool:
        """The terminal event."""
        return frame.event in ENDS


class RuntailText(Runtail):
    """The deltas are the text of one message (`run.message`), as a model's answer is: fast ones leave together."""

    name = "runtail-text"
    as_text = True
