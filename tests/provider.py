"""A model provider that keeps its clients waiting, over a real socket."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CHUNK = b"data: word \n\n"
NEVER_ANSWERS, NEVER_BEGINS, STALLS, STALLS_IN_A_CHUNK = "/never-answers", "/never-begins", "/stalls", "/half-a-chunk"
WAYS = [NEVER_ANSWERS, NEVER_BEGINS, STALLS, STALLS_IN_A_CHUNK]
"""Not even a status; a head without a body; some chunks; a chunk that breaks off."""
BEFORE = {
    NEVER_ANSWERS: b"",
    NEVER_BEGINS: b"",
    STALLS: (f"{len(CHUNK):x}\r\n".encode() + CHUNK + b"\r\n") * 3,
    STALLS_IN_A_CHUNK: f"{len(CHUNK):x}\r\n".encode() + CHUNK + b"\r\n" + b"400\r\nhalf",
}


class Provider:
    """Answers each request by its way, and then waits for its client to go."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        """Released whenever a request has been answered as far as it ever will be."""
        self.left: list[float] = []
        """When each client has gone, by the monotonic clock."""
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                provider._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    def url(self, way: str) -> str:
        """Where it answers in that way."""
        return f"http://127.0.0.1:{self._server.server_port}{way}"

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        if request.path != NEVER_ANSWERS:
            request.send_response(200)
            request.send_header("Content-Type", "text/event-stream")
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
        request.wfile.write(BEFORE[request.path])
        self.asked.release()
        with suppress(ConnectionError):  # gone all the same
            assert request.connection.recv(1) == b""
        self.left.append(time.monotonic())
        request.close_connection = True

    @contextmanager
    def serving(self) -> Iterator["Provider"]:
        """For the block."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield self
        self._server.shutdown()
        self._server.server_close()
