"""The agent beside nchan: a thread for each run, which publishes numbered deltas at a pace over one connection."""

import json
import re
import sys
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CONFIGURATION = Path(sys.argv[1]).read_text()
PORT = int(re.search(r"listen 127\.0\.0\.1:(\d+)", CONFIGURATION)[1])  # type: ignore[index]
AGENT_PORT = int(re.search(r"proxy_pass http://127\.0\.0\.1:(\d+)", CONFIGURATION)[1])  # type: ignore[index]


def say(channel: str, count: int, interval_ms: float) -> None:
    """Publish them, and then the end."""
    connection = HTTPConnection("127.0.0.1", PORT)
    for number in range(count):
        _publish(connection, channel, {"text": f"#{number}# and some words "}, "delta")
        if interval_ms:
            time.sleep(interval_ms / 1_000)
    _publish(connection, channel, {}, "end")
    connection.close()


def _publish(connection: HTTPConnection, channel: str, data: dict[str, str], event: str) -> None:
    connection.request("POST", f"/pub/{channel}", json.dumps(data), {"X-EventSource-Event": event})
    connection.getresponse().read()


class Handler(BaseHTTPRequestHandler):
    """POST /runs/{channel} starts a run."""

    def do_POST(self) -> None:
        """Start it."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        threading.Thread(target=say, args=(self.path.rpartition("/")[2],), kwargs=body, daemon=True).start()
        self._answer(202)

    def do_GET(self) -> None:
        """Say that it is there."""
        self._answer(200)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


ThreadingHTTPServer(("127.0.0.1", AGENT_PORT), Handler).serve_forever()
