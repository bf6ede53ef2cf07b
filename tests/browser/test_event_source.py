"""A page's own EventSource, without any code of ours around it, through everything that ends a window."""

import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from playwright.sync_api import Page, Response

from tests.conftest import StackMaker
from tests.harness import Process, Stack, eventually

OPEN, CLOSED = 1, 2
LONGER_THAN_A_RETRY_MS = 2_500
ENDLESS = {"count": 100_000, "interval_ms": 30, "type": "custom.tick"}
ROTATIONS = 3

FOLLOW = """(url) => {
  window.messages = [];
  const keep = ({ lastEventId, data }) => messages.push({ lastEventId, ...JSON.parse(data) });
  new EventSource(url).onmessage = keep;
}"""


class Follower:
    """A page from the server's own origin that follows one run."""

    def __init__(self, page: Page, server: Stack, run_id: str) -> None:
        self._page = page
        self.statuses: list[int] = []
        """Of its windows, one by one."""
        self.asked = 0
        path = f"/runs/{run_id}/events?named=0"
        page.on("response", lambda response: self._note(response, path))
        page.goto(f"{server.url}/healthz")
        page.on("request", lambda _: self._count())
        page.evaluate(FOLLOW, path)

    def _note(self, response: Response, path: str) -> None:
        if response.url.endswith(path):
            self.statuses.append(response.status)

    def _count(self) -> None:
        self.asked += 1

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Everything that `onmessage` got: events and control frames."""
        messages: list[dict[str, Any]] = self._page.evaluate("messages")
        return messages

    @property
    def seqs(self) -> list[int]:
        """Of the events, as they came. Each is also the EventSource's cursor at that moment."""
        events = [message for message in self.messages if "seq" in message]
        assert [int(event["lastEventId"]) for event in events] == [event["seq"] for event in events]
        return [event["seq"] for event in events]

    @property
    def ready_state(self) -> int:
        """As the EventSource says it."""
        state: int = self._page.evaluate("sources[0].readyState")
        return state

    def sees_more(self, events: int = 5) -> None:
        """Wait until so many more events have come."""
        before = len(self.seqs)
        eventually(lambda: len(self.seqs) >= before + events, 20, "more events")

    def has_all_of(self, run: dict[str, Any]) -> None:
        """Wait until the EventSource has closed for good; every event came once, in order."""
        eventually(lambda: self.ready_state == CLOSED and self.statuses[-1] == 204, what="its end")
        assert self.seqs == list(range(1, run["state_seq"] + 1))
        assert set(self.statuses[:-1]) == {200}


@pytest.fixture
def server(stack: StackMaker) -> Stack:
    """A worker and Redis that stay while the web process comes and goes."""
    server = stack()
    server.start_worker()
    return server


@pytest.fixture
def rotating(stack: StackMaker) -> Stack:
    """A stack whose windows live for a second."""
    server = stack(STREAM_MAX_SECONDS="1")
    server.start_worker()
    server.start_web()
    return server


def cancelled(server: Stack, run_id: str) -> dict[str, Any]:
    """The run, ended now."""
    server.http.post(f"/runs/{run_id}/cancel")
    return server.ended(run_id)


def kill(web: Process) -> None:
    """kill -9 of gunicorn and its workers."""
    parent = psutil.Process(web.pid)
    family = [parent, *parent.children()]
    for process in family:
        process.kill()
    web.kill()
    psutil.wait_procs(family, 10)


def terminate(web: Process) -> None:
    """What a deploy does."""
    assert web.stop(signal.SIGTERM) == 0


def test_a_run_is_followed_to_its_end_and_then_nothing_is_asked_any_more(page: Page, live: Stack) -> None:
    run_id = live.start("emit", {"count": 20, "interval_ms": 50, "type": "custom.tick"})
    follower = Follower(page, live, run_id)
    follower.has_all_of(live.ended(run_id))
    assert follower.messages[-1]["type"] == "run.completed"
    page.wait_for_timeout(LONGER_THAN_A_RETRY_MS)
    assert follower.statuses == [200, 204]
    assert follower.asked == 2
    assert follower.ready_state == CLOSED


def test_rotation_takes_nothing_from_it(page: Page, rotating: Stack) -> None:
    run_id = rotating.start("emit", ENDLESS)
    follower = Follower(page, rotating, run_id)
    eventually(lambda: follower.messages and len(follower.statuses) > ROTATIONS, what="some rotations")
    follower.has_all_of(cancelled(rotating, run_id))
    expired = [message for message in follower.messages if message["type"] == "stream.expired"]
    assert len(expired) >= ROTATIONS


@pytest.mark.parametrize("stop", [kill, terminate])
def test_it_rides_through_a_restart_of_the_server_while_the_run_goes_on(
    page: Page, server: Stack, stop: Callable[[Process], None]
) -> None:
    web = server.start_web()
    run_id = server.start("emit", ENDLESS)
    follower = Follower(page, server, run_id)
    follower.sees_more()
    stop(web)
    missed = len(follower.seqs)
    server.start_web()
    assert server.read(run_id)["state"]["last_seq"] > missed, "the run went on"
    follower.sees_more()
    assert follower.ready_state == OPEN
    follower.has_all_of(cancelled(server, run_id))
    assert follower.statuses == [200, 200, 204]
