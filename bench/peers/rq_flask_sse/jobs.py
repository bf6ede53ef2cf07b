"""The job: numbered deltas at a pace."""

import time

from flask_sse import sse
from web import app


def say(channel: str, count: int, interval_ms: float) -> None:
    """Publish them, and then the end."""
    with app.app_context():
        for number in range(count):
            sse.publish({"text": f"#{number}# and some words "}, type="delta", channel=channel)
            if interval_ms:
                time.sleep(interval_ms / 1_000)
        sse.publish({}, type="end", channel=channel)
