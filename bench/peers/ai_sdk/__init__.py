"""The AI SDK with `resumable-stream`, as "Chatbot Resume Streams" of its documentation has it, on plain Node.js."""

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

from bench.peers.environments import NodeModules
from bench.peers.peer import JSON, Peer, Program, Run, Work
from bench.peers.wire import Frame, Request, Stream

HERE = Path(__file__).parent
WANTED = HERE / "package.json"


class AiSdk(Peer):
    """One Node.js process. The client comes back with the number of characters that it has, as `resumable-stream`'s
    README says; `useChat` itself sends none and is given everything from the start again.
    """

    name = "ai-sdk"
    as_run = "one Node.js process, streamText with a model that is a program, resumable-stream, Redis"
    not_for = "keeping a stream: the app stores messages, and a stream lives as long as the process that makes it"
    resumes = "GET with resumeAt, the number of characters"

    @classmethod
    def versions(cls) -> dict[str, str]:
        """From the list."""
        found: dict[str, str] = json.loads(WANTED.read_text())["dependencies"]
        return found

    def environment(self) -> NodeModules:
        """A folder with node_modules."""
        return NodeModules(self.environments / self.name, WANTED)

    def clear(self) -> None:
        """Node.js looks for packages beside the program's file."""
        super().clear()
        (self.folder / "server.mjs").write_text((HERE / "server.mjs").read_text())
        (self.folder / "node_modules").symlink_to(self.environment().folder / "node_modules")

    def programs(self) -> Sequence[Program]:
        """One."""
        env = {"REDIS_URL": self.redis_url, "PORT": str(self.port), "NODE_ENV": "production"}
        return (Program("node", (self.environment().node, "server.mjs"), env),)

    def ready_path(self) -> str:
        """Any answer will do."""
        return "/"

    def start(self, work: Work) -> tuple[Run, Stream]:
        """The client names the chat. The answer is the stream."""
        run = Run(uuid.uuid4().hex)
        text = {"role": "user", "id": "m1", "parts": [{"type": "text", "text": work.json().decode()}]}
        body = json.dumps({"id": run.id, "message": text}).encode()
        return run, self.open(Request("POST", "/api/chat", JSON, body))

    def back(self, run: Run) -> Request:
        """By characters."""
        return Request("GET", f"/api/chat/{run.id}/stream?resumeAt={run.characters}")

    def is_delta(self, frame: Frame) -> bool:
        """A piece of text."""
        return '"type":"text-delta"' in frame.data

    def is_end(self, frame: Frame) -> bool:
        """As OpenAI's streams end."""
        return frame.data == "[DONE]"
