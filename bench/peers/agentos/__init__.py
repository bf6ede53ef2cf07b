"""Agno's AgentOS with its durable queue in PostgreSQL and its event stream in Redis."""

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode

from bench.peers.peer import Program, PythonPeer, Run, Work
from bench.peers.wire import Frame, Request, Stream

HERE = Path(__file__).parent
AGENT = "/agents/numbers/runs"
ENDS = ("RunCompleted", "RunError", "RunCancelled")


class AgentOS(PythonPeer):
    """One process of uvicorn; runs are asked for in the background and as a stream, which makes them resumable."""

    name = "agentos"
    as_run = "one uvicorn process, durable queue with three attempts in PostgreSQL, event stream in Redis"
    not_for = "exactly once: a run whose process dies is executed again from its start"
    resumes = "POST …/resume with last_event_index"
    has_database = True

    def programs(self) -> Sequence[Program]:
        """One."""
        env = {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url, "AGNO_TELEMETRY": "false"}
        options = ("--app-dir", HERE, "--host", "127.0.0.1", "--port", str(self.port), "--log-level", "warning")
        return (Program("agentos", (self.environment().python, "-m", "uvicorn", *options, "app:app"), env),)

    def ready_path(self) -> str:
        """Its own."""
        return "/health"

    def start(self, work: Work) -> tuple[Run, Stream]:
        """The answer to the POST is the stream."""
        run = Run("", session=uuid.uuid4().hex)
        asked = {"message": work.json().decode(), "stream": "true", "background": "true", "session_id": run.session}
        return run, self.open(_form(AGENT, asked))

    def learn(self, run: Run, frame: Frame) -> None:
        """Each event has the run's id and its index."""
        said = json.loads(frame.data)
        run.id = run.id or said.get("run_id", "")
        if said.get("event_index") is not None:
            run.cursor = str(said["event_index"])

    def back(self, run: Run) -> Request:
        """Without an index it is from the start."""
        cursor = {"last_event_index": run.cursor} if run.cursor else {}
        return _form(f"{AGENT}/{run.id}/resume", {"session_id": run.session, **cursor})

    def is_delta(self, frame: Frame) -> bool:
        """A piece of the content."""
        return frame.event == "RunContent"

    def is_end(self, frame: Frame) -> bool:
        """Whatever the end is."""
        return frame.event in ENDS


def _form(path: str, fields: Mapping[str, str]) -> Request:
    return Request("POST", path, {"Content-Type": "application/x-www-form-urlencoded"}, urlencode(fields).encode())
