"""`first-event`: from a POST whose answer is the window to its first event, and to the worker's first."""

import json
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.report import Figures, Result
from bench.stage import Stage

HOST = "127.0.0.1"
TIMEOUT_SECONDS = 15
LAST = b"event: run.started\n"
BODY = {"agent": "emit", "input": {"count": 1}}


@dataclass(frozen=True, slots=True)
class FirstEvent:
    """POST to first event, one run after the other."""

    posts: int = 200
    warm_up: int = 20

    def run(self, stage: Stage) -> Result:
        """Play it. `run.created` comes from the web process, `run.started` by way of the queue and a worker."""
        with stage.web() as web, stage.worker():
            for _ in range(self.warm_up):
                post(web.port)
            times = [post(web.port) for _ in range(self.posts)]
        created, started = (list(column) for column in zip(*times, strict=True))
        figures = {**_quantiles("created", created), **_quantiles("started", started)}
        return Result({"runtail": {"posts": self.posts, **figures}})


def post(port: int) -> tuple[float, float]:
    """Milliseconds from before the connection until run.created, and until run.started, is there."""
    body = json.dumps(BODY).encode()
    head = f"POST /runs HTTP/1.1\r\nHost: {HOST}:{port}\r\nAccept: text/event-stream\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    begun = time.perf_counter()
    with socket.create_connection((HOST, port), TIMEOUT_SECONDS) as sock:
        sock.sendall(head.encode() + body)
        text, created = b"", 0.0
        while LAST not in text:
            received = sock.recv(65_536)
            assert received, text
            text += received
            if not created and b"event: run.created\n" in text:
                created = time.perf_counter() - begun
        return created * 1_000, (time.perf_counter() - begun) * 1_000


def _quantiles(name: str, times: Sequence[float]) -> Figures:
    cuts = statistics.quantiles(times, n=100)
    return {f"{name}_p50_ms": cuts[49], f"{name}_p95_ms": cuts[94], f"{name}_p99_ms": cuts[98]}
