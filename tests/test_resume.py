"""A client that loses its connection and comes back with its cursor gets every event exactly once."""

import json
import random
from collections.abc import Callable, Iterator

import httpx
import pytest
from httpx_sse import EventSource

from app.protocol.digest import digest
from app.protocol.reducer import fold, initial
from tests.harness import Stack

TICKS = 3_000
RECONNECTS = 12

Window = Callable[[httpx.Response], Iterator[tuple[int, str]]]


def sse_by_hand(response: httpx.Response) -> Iterator[tuple[int, str]]:
    """(id, data) of each message, by the lines of the specification."""
    seq, data = 0, ""
    for line in response.iter_lines():
        if line.startswith("id: "):
            seq = int(line[4:])
        elif line.startswith("data: "):
            data = line[6:]
        elif not line and data:
            yield seq, data
            data = ""


def sse_by_httpx_sse(response: httpx.Response) -> Iterator[tuple[int, str]]:
    """(id, data) as httpx-sse hands them to its users."""
    for message in EventSource(response).iter_sse():
        yield int(message.id), message.data


def ndjson(response: httpx.Response) -> Iterator[tuple[int, str]]:
    """(seq, line) of each line that is not a heartbeat."""
    for line in response.iter_lines():
        if line:
            yield json.loads(line)["seq"], line


def take(live: Stack, run_id: str, window: Window, accept: str, cursor: int, count: int) -> list[tuple[int, str]]:
    """What one connection delivers, dropped after `count` events or at its end."""
    headers = {"Accept": accept, "Last-Event-ID": str(cursor)}
    taken: list[tuple[int, str]] = []
    with live.http.stream("GET", f"/runs/{run_id}/events", headers=headers) as response:
        if response.status_code == 200:
            for event in window(response):
                taken.append(event)
                if len(taken) == count:
                    break
    return taken


@pytest.mark.parametrize(
    ("window", "accept"),
    [
        (sse_by_hand, "text/event-stream"),
        (sse_by_httpx_sse, "text/event-stream"),
        (ndjson, "application/x-ndjson"),
    ],
)
def test_a_client_that_reconnects_twelve_times_gets_every_event_once(live: Stack, window: Window, accept: str) -> None:
    randomly = random.Random(f"{window.__name__} of a seeded run")
    cuts = [randomly.randint(1, 2 * TICKS // RECONNECTS) for _ in range(RECONNECTS)]
    run_id = live.start("emit", {"count": TICKS, "type": "custom.tick"})
    received: list[tuple[int, str]] = []
    for count in [*cuts, TICKS * 2]:
        cursor = received[-1][0] if received else 0
        received += take(live, run_id, window, accept, cursor, count)
    envelopes = [json.loads(data) for _, data in received]
    assert [seq for seq, _ in received] == list(range(1, len(received) + 1))
    assert [envelope["seq"] for envelope in envelopes] == [seq for seq, _ in received]
    assert sum(envelope["type"] == "custom.tick" for envelope in envelopes) == TICKS
    state = fold(envelopes[:-1], initial(run_id))
    assert digest(state, envelopes[-1]["payload"]["output"]) == live.read(run_id)["digest"]
