"""The writer of baseline (b): the same events, published with flask-sse. The app's Redis is that of REDIS_URL."""

from collections.abc import Sequence

from bench.baselines.flask_sse_app import app, sse
from bench.pacing import Due, arguments, write
from bench.ticks import end, tick


class FlaskSseSink:
    """Publishes to the channel named like the run."""

    def __init__(self, payload_bytes: int) -> None:
        self._payload_bytes = payload_bytes

    def write(self, events: Sequence[Due]) -> None:
        """Publish them."""
        for run, seq in events:
            event = tick(run, seq, self._payload_bytes)
            sse.publish(event.text, type=event.type, id=seq, channel=run)

    def end(self, ends: Sequence[Due]) -> None:
        """Publish the terminal events."""
        for run, seq in ends:
            event = end(run, seq)
            sse.publish(event.text, type=event.type, id=seq, channel=run)


def main() -> None:
    """Write as the arguments say."""
    options = arguments().parse_args()
    with app.app_context():
        write(FlaskSseSink(options.payload_bytes), options)


if __name__ == "__main__":
    main()
