"""`langgraph dev`: LangGraph's server with everything in memory, as it comes from pip."""

import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from bench.peers.peer import JSON, SSE, Program, PythonPeer, Run, Work
from bench.peers.wire import Frame, Request, Stream

HERE = Path(__file__).parent
GRAPH = "numbers"
STREAM = {"stream_mode": ["custom"], "stream_resumable": True, "on_disconnect": "continue", "if_not_exists": "create"}
OPTIONS = ("--no-browser", "--no-reload", "--n-jobs-per-worker", "10")
OFFLINE = {"LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1"}


class LangGraphDev(PythonPeer):
    """One process. Streams are asked to be resumable, and runs to go on when their client leaves."""

    name = "langgraph-dev"
    as_run = "langgraph dev, one process, in memory and in files that it writes now and then"
    not_for = "production: it says itself that it is for development and testing"
    resumes = "Last-Event-ID, at the run's stream"
    keeps_in_memory = True

    def clear(self) -> None:
        """It writes into the folder in which its configuration is."""
        super().clear()
        for name in ("langgraph.json", "graph.py"):
            shutil.copy(HERE / name, self.folder)

    def programs(self) -> Sequence[Program]:
        """One. Without --n-jobs-per-worker it executes one run at a time."""
        bind = ("--host", "127.0.0.1", "--port", str(self.port))
        command = (self.environment().python.parent / "langgraph", "dev", *bind, *OPTIONS)
        return (Program("langgraph", command, OFFLINE),)

    def ready_path(self) -> str:
        """Its own."""
        return "/ok"

    def start(self, work: Work) -> tuple[Run, Stream]:
        """One POST, which makes the thread, too. Its answer is the stream."""
        thread = str(uuid.uuid4())
        body = json.dumps({"assistant_id": GRAPH, "input": json.loads(work.json()), **STREAM}).encode()
        request = Request("POST", f"/threads/{thread}/runs/stream", {**JSON, **SSE}, body)
        return Run("", session=thread), self.open(request)

    def learn(self, run: Run, frame: Frame) -> None:
        """The first event has the run's id."""
        super().learn(run, frame)
        if frame.event == "metadata":
            run.id = run.id or json.loads(frame.data)["run_id"]

    def back(self, run: Run) -> Request:
        """As its SDK's `join_stream` does; -1 is the start."""
        path = f"/threads/{run.session}/runs/{run.id}/stream"
        return Request("GET", path, {**SSE, "Last-Event-ID": run.cursor or "-1"})

    def is_delta(self, frame: Frame) -> bool:
        """What the graph's writer has written."""
        return frame.event == "custom"

    def is_end(self, frame: Frame) -> bool:
        """The graph says it: the server ends its streams without a word."""
        return frame.event == "custom" and '"end"' in frame.data
