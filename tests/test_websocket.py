"""Windows as WebSockets, over real sockets."""

from tests.harness import Stack
from tests.socket_client import SocketClient

TICKS = {"count": 3, "type": "custom.tick"}


def test_smoke(live: Stack) -> None:
    run_id = live.start("emit", TICKS)
    with SocketClient(live.port) as client:
        client.open(run_id).to_the_end()
        assert [e["seq"] for e in client.envelopes] == [1, 2, 3, 4, 5, 6]
        assert client.code == 1000
