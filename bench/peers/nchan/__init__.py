"""nchan: nginx keeps and delivers the messages; an agent beside it publishes them over HTTP."""

import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from app.dev.services.servers import free_port
from bench.peers.environments import NotInstalled
from bench.peers.peer import ANSWER_SECONDS, JSON, SSE, Peer, Program, Run, Work
from bench.peers.wire import Frame, Request, Stream, ask
from bench.servers import nchan_module, nginx

HERE = Path(__file__).parent


class NchanServer(Peer):
    """One nginx worker, its messages in shared memory for an hour, and `agent.py`, a thread for each run."""

    name = "nchan"
    as_run = "nginx with nchan, one worker, messages in shared memory; a Python process as the agent"
    not_for = "executing anything: it delivers messages"
    resumes = "Last-Event-ID"
    keeps_in_memory = True

    @classmethod
    def versions(cls) -> dict[str, str]:
        """nginx says its own; the module's is the package's."""
        said = subprocess.run([nginx() or "false", "-v"], capture_output=True, text=True, check=False).stderr
        show = ["dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan"]
        try:
            module = subprocess.run(show, capture_output=True, text=True, check=False).stdout
        except OSError:
            module = ""
        return {"nginx": said.strip().rpartition("/")[2] or "?", "libnginx-mod-nchan": module or "?"}

    def environment(self) -> None:
        """Its packages are the machine's."""
        if not (nginx() and nchan_module()):
            raise NotInstalled("the Debian packages nginx and libnginx-mod-nchan, or their like, are not there")

    def clear(self) -> None:
        """The configuration, filled in."""
        super().clear()
        self.folder.chmod(0o711)
        user = "user root;" if os.geteuid() == 0 else ""
        values = {"module": nchan_module(), "folder": self.folder, "port": self.port, "user": user}
        filled = (HERE / "nginx.conf").read_text()
        for name, value in {**values, "agent_port": free_port()}.items():
            filled = filled.replace(f"{{{name}}}", str(value))
        (self.folder / "nginx.conf").write_text(filled)

    def programs(self) -> Sequence[Program]:
        """nginx, and the agent, which is told both ports by the same file."""
        conf = self.folder / "nginx.conf"
        server = Program("nginx", (nginx() or "nginx", "-p", self.folder, "-e", "stderr", "-c", conf))
        return Program("agent", (sys.executable, HERE / "agent.py", conf)), server

    def ready_path(self) -> str:
        """The agent's, by way of nginx."""
        return "/runs"

    def start(self, work: Work) -> tuple[Run, Stream]:
        """The client names the channel; nchan keeps what comes before it reads."""
        run = Run(uuid.uuid4().hex)
        ask(self.port, Request("POST", f"/runs/{run.id}", JSON, work.json()), ANSWER_SECONDS)
        return run, self.open(self.back(run))

    def back(self, run: Run) -> Request:
        """As an EventSource does."""
        cursor = {"Last-Event-ID": run.cursor} if run.cursor else {}
        return Request("GET", f"/sub/{run.id}", {**SSE, **cursor})

    def is_delta(self, frame: Frame) -> bool:
        """Everything but the end."""
        return frame.event != "end"

    def is_end(self, frame: Frame) -> bool:
        """The agent says it."""
        return frame.event == "end"
