"""RQ and flask-sse: a job in the queue publishes to Redis' pub/sub, a Flask app passes it on."""

import uuid
from collections.abc import Sequence
from pathlib import Path

from bench.peers.peer import ANSWER_SECONDS, JSON, SSE, Program, PythonPeer, Run, Work
from bench.peers.wire import Frame, Request, Stream, ask

HERE = Path(__file__).parent
WORKERS = 4
GUNICORN = ("-k", "gevent", "--worker-connections", "20000", "--no-control-socket")


class RqFlaskSse(PythonPeer):
    """One web process of gunicorn with gevent, as flask-sse's documentation starts it, and four RQ workers.

    The workers import the job before they fork, as RQ's documentation advises; jobs have `Retry(max=2)`.
    """

    name = "rq-flask-sse"
    as_run = "gunicorn with gevent, four forking RQ workers, Redis"
    not_for = "keeping what was published"
    resumes = "nothing: it subscribes again"

    def programs(self) -> Sequence[Program]:
        """The web, and workers, of which each does one job at a time."""
        python, env = self.environment().python, {"REDIS_URL": self.redis_url, "PYTHONPATH": str(HERE)}
        bind = ("--bind", f"127.0.0.1:{self.port}")
        web = Program("web", (python, "-m", "gunicorn", *GUNICORN, *bind, "web:app"), env)
        return web, *(Program(f"worker-{n}", (python, HERE / "worker.py"), env) for n in range(WORKERS))

    def ready_path(self) -> str:
        """Any answer will do."""
        return "/"

    def ready(self) -> bool:
        """The workers listen, too."""
        return super().ready() and all(
            "Listening on" in child.out.read_text() + child.err.read_text() for child in self.children[1:]
        )

    def start(self, work: Work) -> tuple[Run, Stream]:
        """The window is there first, on a channel that the client names: what comes before it would be lost."""
        run = Run(uuid.uuid4().hex)
        stream = self.open(self.back(run))
        ask(self.port, Request("POST", f"/runs/{run.id}", JSON, work.json()), ANSWER_SECONDS)
        return run, stream

    def back(self, run: Run) -> Request:
        """There is no cursor."""
        return Request("GET", f"/stream?channel={run.id}", SSE)

    def is_delta(self, frame: Frame) -> bool:
        """By the type that the job has given it."""
        return frame.event == "delta"

    def is_end(self, frame: Frame) -> bool:
        """The job says it."""
        return frame.event == "end"
