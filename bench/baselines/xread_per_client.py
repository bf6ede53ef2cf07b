"""Baseline (a): one blocking XREAD per client, over the same streams. `gunicorn -k gevent`, one process.

What most people write first. It checks no access, replays without a bound and never ends a window.
"""

import os
from collections.abc import Iterator
from typing import Any

import redis
from flask import Flask, Response, request

BLOCK_MS = 15_000
COUNT = 200
HEARTBEAT = b":\n"

# A pool without a bound: each window holds a connection. The read must outlast its own BLOCK.
client = redis.Redis.from_url(os.environ["REDIS_URL"], max_connections=100_000, socket_timeout=BLOCK_MS / 1_000 + 5)
app = Flask(__name__)


@app.route("/runs/<run_id>/events")
def events(run_id: str) -> Response:
    """The run's events from the client's cursor on."""
    cursor = f"{int(request.headers.get('Last-Event-ID', 0))}-0"
    return Response(follow(f"rt:{{{run_id}}}:events", cursor), mimetype="text/event-stream")


def follow(key: str, cursor: Any) -> Iterator[bytes]:
    """SSE frames until the client goes away."""
    yield b"retry: 1000\n"
    while True:
        reply: Any = client.xread({key: cursor}, count=COUNT, block=BLOCK_MS)
        if not reply:
            yield HEARTBEAT
        for _, entries in reply:
            for cursor, fields in entries:
                seq = cursor.partition(b"-")[0]
                yield b"id: %b\nevent: %b\ndata: %b\n\n" % (seq, fields[b"t"], fields[b"e"])
