"""The web side: starts jobs, and serves what they publish."""

import os
from typing import Any

from flask import Flask, request
from flask_sse import sse
from redis import Redis
from rq import Queue, Retry

IDLE_SECONDS = 86_400
JOB_SECONDS = 7_200

app = Flask(__name__)
# redis-py 8 cuts a quiet subscription after 5 s unless it is told otherwise.
app.config["REDIS_URL"] = f"{os.environ['REDIS_URL']}?socket_timeout={IDLE_SECONDS}"
app.register_blueprint(sse, url_prefix="/stream")
queue = Queue(connection=Redis.from_url(os.environ["REDIS_URL"]), default_timeout=JOB_SECONDS)


@app.post("/runs/<channel>")
def start(channel: str) -> tuple[dict[str, Any], int]:
    """Enqueue a job that publishes to this channel."""
    queue.enqueue("jobs.say", channel, **request.get_json(), retry=Retry(max=2))
    return {"channel": channel}, 202
