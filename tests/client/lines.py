"""A line to the server that can be told to lose answers, or to be dead."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ARRIVES, ANSWER_LOST, REQUEST_LOST = "arrives", "answer lost", "request lost"
BUSY, PAGE, TOO_LARGE = "busy", "a page", "too large"
INSTEAD: dict[str, tuple[int, dict[str, str], bytes]] = {
    BUSY: (503, {"Content-Length": "0"}, b""),
    PAGE: (200, {"Content-Type": "text/html", "Content-Length": "16"}, b"<p>\n\nWelcome</p>"),
    TOO_LARGE: (413, {"Content-Type": "text/html", "Content-Length": "16"}, b"<p>Too large</p>"),
}
"""What a proxy answers by itself."""


@dataclass
class Line:
    """What becomes of each request."""

    port: int = 0
    fate: Callable[[str, str], str] = lambda path, producer_seq: ARRIVES
    """Of a request with that path and Producer-Seq, which may be empty: one of the constants above."""
    dead: bool = False
    coming: bytes = b""
    """The body of the request whose fate is asked for. (Of one at a time: a writer makes no more.)"""
    seen: list[tuple[str, str, bytes, str]] = field(default_factory=list)
    """Path, Producer-Seq, body and fate of each POST."""

    @property
    def url(self) -> str:
        """Of this end."""
        return f"http://127.0.0.1:{self.port}"


def _handler(line: Line, target: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            number = self.headers.get("Producer-Seq", "")
            line.coming = body
            fate = REQUEST_LOST if line.dead else line.fate(self.path, number)
            if self.command == "POST":
                line.seen.append((self.path, number, body, fate))
            answer = INSTEAD.get(fate)
            if answer is None and fate != REQUEST_LOST:
                answer = self._ask(body)
            if answer is None or fate == ANSWER_LOST:
                self.close_connection = True
                return
            status, headers, content = answer
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            server = http.client.HTTPConnection("127.0.0.1", target, timeout=30)
            try:
                server.request(self.command, self.path, body, dict(self.headers.items()))
                answer = server.getresponse()
                content = answer.read()
                headers = {"Content-Type": answer.headers.get("Content-Type", "")}
                if answer.status != 204:
                    headers["Content-Length"] = str(len(content))
                return answer.status, headers, content
            finally:
                server.close()

        do_GET = do_POST = _pass_on

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def line_to(target: int) -> Iterator[Line]:
    """A line to that port."""
    line = Line()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(line, target))
    server.daemon_threads = True
    line.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield line
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
