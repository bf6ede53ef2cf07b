"""Baseline (b): flask-sse, Redis pub/sub per client. `gunicorn -k gevent`, one process."""

import os

from flask import Flask
from flask_sse import sse  # type: ignore[import-untyped]

IDLE_SECONDS = 86_400

app = Flask(__name__)
# redis-py 8 cuts a quiet subscription after 5 s unless it is told otherwise.
app.config["REDIS_URL"] = f"{os.environ['REDIS_URL']}?socket_timeout={IDLE_SECONDS}"
app.register_blueprint(sse, url_prefix="/stream")
