"""The writer of baseline (c): the same events, over HTTP to nchan's publisher location, one kept connection."""

import http.client
from collections.abc import Sequence
from contextlib import closing
from urllib.parse import urlsplit

from app.protocol.events import Event
from bench.pacing import Due, arguments, write
from bench.ticks import end, tick


class NchanSink:
    """Publishes to the channel named like the run."""

    def __init__(self, connection: http.client.HTTPConnection, payload_bytes: int) -> None:
        self._connection = connection
        self._payload_bytes = payload_bytes

    def write(self, events: Sequence[Due]) -> None:
        """Publish them."""
        for run, seq in events:
            self._publish(run, tick(run, seq, self._payload_bytes))

    def end(self, ends: Sequence[Due]) -> None:
        """Publish the terminal events."""
        for run, seq in ends:
            self._publish(run, end(run, seq))

    def _publish(self, run: str, event: Event) -> None:
        headers = {"X-EventSource-Event": event.type, "Content-Type": "text/plain"}
        self._connection.request("POST", f"/pub/{run}", event.text.encode(), headers)
        answer = self._connection.getresponse()
        answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"nchan answered {answer.status}")


def main() -> None:
    """Write as the arguments say."""
    options = arguments().parse_args()
    with closing(http.client.HTTPConnection(urlsplit(options.url).netloc)) as connection:
        write(NchanSink(connection, options.payload_bytes), options)


if __name__ == "__main__":
    main()
