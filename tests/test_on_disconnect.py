"""`on_disconnect`: a run that is cancelled once nobody follows it, and everything that must not cancel it."""

from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from redis import Redis

from app.errors import StoreUnavailable
from app.storage import leases as leases_module
from app.storage.breaker import Breaker
from app.storage.leases import Claim, Leases
from app.storage.run_store import RunRecord
from app.wiring import Services
from tests.conftest import StackMaker
from tests.harness import Stack, eventually, pending_run, problem
from tests.test_worker import check_log
from workers.janitor import abandoned as module
from workers.janitor.abandoned import SETTLE_SECONDS, STOOD_STILL_SECONDS, Abandoned

GRACE = 30
PASS = 1.0


@dataclass
class Window:
    """The window of a web process on one run, as the janitor sees it: a lease."""

    leases: Leases
    run_id: str

    def open(self) -> None:
        self.leases.write([Claim(self.run_id, 1, 0, 1)])

    def close(self) -> None:
        self.leases.write([Claim(self.run_id, 0)])


class Clock:
    """The janitors' clock, which the test turns."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


class Observer:
    """One janitor's look at the runs."""

    def __init__(self, services: Services, clock: Clock, grace_seconds: float = GRACE) -> None:
        self.clock = clock
        self.leases = Leases(services.config.events_redis_url, Breaker())
        self.unwatched = Abandoned(services.ownership, self.leases, grace_seconds)

    def look(self, seconds: float = PASS) -> None:
        """One pass, so many seconds after the last."""
        self.clock.now += seconds
        self.unwatched.cancel()

    def watch(self, seconds: float) -> None:
        """Passes for so long."""
        for _ in range(round(seconds / PASS)):
            self.look()

    def lose_connection(self, services: Services) -> None:
        """As a restart of Redis does."""
        (number,) = self.leases._ask([("CLIENT", "ID")])
        with Redis.from_url(services.config.events_redis_url) as redis:
            redis.client_kill_filter(_id=str(number))
        with pytest.raises(StoreUnavailable):
            self.look()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def observer(apart: Services, clock: Clock) -> Iterator[Observer]:
    """A janitor that has been looking for a while."""
    observer = Observer(apart, clock)
    pending_run(apart, on_disconnect="cancel")  # so that there is something to look at
    observer.watch(SETTLE_SECONDS + 2 * PASS)
    yield observer
    observer.leases.close()


@pytest.fixture
def run(apart: Services) -> RunRecord:
    return pending_run(apart, on_disconnect="cancel")


@pytest.fixture
def window(apart: Services, run: RunRecord) -> Iterator[Window]:
    leases = Leases(apart.config.events_redis_url, Breaker())
    yield Window(leases, run.id)
    leases.close()


def _row(services: Services, run_id: str) -> RunRecord:
    run = services.store.get(run_id)
    assert run is not None
    return run


def _is_cancelled(services: Services, run_id: str) -> bool:
    return _row(services, run_id).status == "cancelled"


# The grace period.


def test_a_run_is_cancelled_once_it_was_without_a_window_for_the_grace_period(
    apart: Services, observer: Observer, run: RunRecord, window: Window
) -> None:
    window.open()
    observer.watch(2 * GRACE)
    window.close()
    observer.watch(GRACE)
    assert not _is_cancelled(apart, run.id)
    observer.look()
    row, end = _row(apart, run.id), apart.store.events(run.id, 0, 10)[-1].envelope()
    assert (row.status, row.cancel_reason) == ("cancelled", "disconnected")
    assert (end["type"], end["payload"]["reason"]) == ("run.cancelled", "disconnected")
    assert apart.log.head(run.id) == end["seq"]


def test_the_period_does_not_start_before_the_first_window(
    apart: Services, observer: Observer, run: RunRecord, window: Window
) -> None:
    observer.watch(3 * GRACE)
    assert not _row(apart, run.id).cancel_requested
    window.open()
    window.close()
    observer.watch(GRACE)
    assert not _row(apart, run.id).cancel_requested
    observer.look()
    assert _is_cancelled(apart, run.id)


def test_a_client_that_comes_back_ends_the_period(
    apart: Services, observer: Observer, run: RunRecord, window: Window
) -> None:
    window.open()
    window.close()
    observer.watch(GRACE - 1)
    window.open()
    observer.look()
    window.close()
    observer.watch(GRACE - 1)
    assert not _row(apart, run.id).cancel_requested


def test_a_client_that_came_and_went_between_two_looks_ends_the_period_too(
    apart: Services, observer: Observer, run: RunRecord, window: Window
) -> None:
    window.open()
    window.close()
    observer.watch(GRACE - 1)
    window.open()
    window.close()
    observer.watch(GRACE - 1)
    assert not _row(apart, run.id).cancel_requested


def test_one_of_two_windows_is_enough(apart: Services, observer: Observer, run: RunRecord, window: Window) -> None:
    other = Leases(apart.config.events_redis_url, Breaker())
    window.open()
    Window(other, run.id).open()
    window.close()
    observer.watch(2 * GRACE)
    assert not _row(apart, run.id).cancel_requested
    other.close()


def test_a_run_that_is_to_continue_continues(apart: Services, observer: Observer, window: Window) -> None:
    run = pending_run(apart, on_disconnect="continue")
    window.run_id = run.id
    window.open()
    window.close()
    observer.watch(2 * GRACE)
    assert not _row(apart, run.id).cancel_requested


def test_the_windows_of_a_killed_web_process_are_gone_when_its_leases_have_run_out(
    apart: Services, observer: Observer, run: RunRecord, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(leases_module, "LEASE_SECONDS", 2)
        window.open()
    observer.watch(GRACE)
    eventually(lambda: not window.leases.look([run.id])[run.id].windows, 5, "the end of the lease")
    observer.watch(GRACE)
    assert not _row(apart, run.id).cancel_requested
    observer.look()
    assert _is_cancelled(apart, run.id)


# What starts the period again.


def _left(observer: Observer, window: Window) -> None:
    """The client has left, and the grace period is all but over."""
    window.open()
    window.close()
    observer.watch(GRACE)


def test_a_janitor_that_stood_still_has_seen_nothing(
    apart: Services, observer: Observer, run: RunRecord, window: Window
) -> None:
    _left(observer, window)
    observer.look(STOOD_STILL_SECONDS + 1)
    observer.watch(GRACE - 1)
    assert not _row(apart, run.id).cancel_requested


def test_a_janitor_that_just_started_has_seen_nothing(
    apart: Services, observer: Observer, run: RunRecord, window: Window
) -> None:
    _left(observer, window)
    fresh = Observer(apart, observer.clock)
    fresh.look()
    assert not _row(apart, run.id).cancel_requested
    fresh.leases.close()


def test_a_lost_connection_starts_the_period_again(
    apart: Services, observer: Observer, run: RunRecord, window: Window
) -> None:
    _left(observer, window)
    observer.lose_connection(apart)
    observer.watch(SETTLE_SECONDS + GRACE)
    assert not _row(apart, run.id).cancel_requested
    observer.watch(2 * PASS)
    assert _is_cancelled(apart, run.id)


def test_after_a_restart_of_redis_windows_have_time_to_be_written_again(
    apart: Services, clock: Clock, run: RunRecord, window: Window
) -> None:
    impatient = Observer(apart, clock, grace_seconds=1)
    window.open()
    impatient.watch(2 * SETTLE_SECONDS)
    window.close()  # the lease was in the second that Redis has lost
    impatient.lose_connection(apart)
    impatient.watch(SETTLE_SECONDS)
    window.open()
    impatient.watch(10)
    assert not _row(apart, run.id).cancel_requested
    impatient.leases.close()


# Cancelling.


def test_a_run_is_cancelled_once_however_many_janitors_there_are(
    apart: Services, observer: Observer, run: RunRecord, window: Window
) -> None:
    window.open()
    window.close()
    other = Observer(apart, observer.clock)
    for _ in range(GRACE + round(SETTLE_SECONDS) + 3):
        observer.look()
        other.look(0)
    assert [event.type for event in apart.store.events(run.id, 0, 10)] == ["run.created", "run.cancelled"]
    other.leases.close()


def test_a_cancel_that_was_requested_keeps_its_reason(
    apart: Services, observer: Observer, run: RunRecord, window: Window
) -> None:
    apart.store.request_cancel(run.id)
    row = apart.store.request_cancel(run.id, "disconnected")
    assert row is not None
    assert row.cancel_reason == "requested"


def test_a_worker_with_nothing_to_look_at_holds_no_connection(apart: Services, observer: Observer) -> None:
    observer.unwatched._due([])
    assert not observer.leases._connection.is_connected


# Through the API.


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    server = module_stack(ON_DISCONNECT_GRACE_SECONDS="1")
    server.start_web()
    server.start_worker()
    return server


def _follow(server: Stack, run_id: str, until: str) -> None:
    """Open a window, and leave once an event of that type has come."""
    with server.http.stream("GET", f"/runs/{run_id}/events") as window:
        assert any(until in line for line in window.iter_lines())


def _disconnected(server: Stack, run_id: str) -> None:
    run, events = server.ended(run_id), server.events(run_id)
    check_log(run, events)
    assert (run["status"], events[-1]["payload"]["reason"]) == ("cancelled", "disconnected")


def test_a_running_agent_is_stopped_when_its_client_has_left(server: Stack) -> None:
    run_id = server.start("block", {"seconds": 60}, on_disconnect="cancel")
    _follow(server, run_id, "tool.started")
    _disconnected(server, run_id)


def test_a_client_that_leaves_the_stream_of_its_post_has_left(server: Stack) -> None:
    body = {"agent": "block", "input": {"seconds": 60}, "on_disconnect": "cancel"}
    with server.http.stream("POST", "/runs", json=body, headers={"Accept": "text/event-stream"}) as window:
        run_id = window.headers["X-Run-Id"]
        assert any("tool.started" in line for line in window.iter_lines())
    _disconnected(server, run_id)


def test_a_client_that_left_for_a_moment_changes_nothing(server: Stack) -> None:
    run_id = server.start("block", {"seconds": 6}, on_disconnect="cancel")
    _follow(server, run_id, "tool.started")
    _follow(server, run_id, "run.completed")
    assert server.ended(run_id)["status"] == "completed"


def test_a_run_that_nobody_ever_followed_completes(server: Stack) -> None:
    run_id = server.start("block", {"seconds": 6}, on_disconnect="cancel")
    assert server.ended(run_id)["status"] == "completed"


def test_by_default_a_client_that_leaves_changes_nothing(server: Stack) -> None:
    run_id = server.start("block", {"seconds": 6})
    _follow(server, run_id, "tool.started")
    assert server.ended(run_id)["status"] == "completed"


def test_another_policy_is_refused(server: Stack) -> None:
    answer: httpx.Response = server.http.post("/runs", json={"agent": "block", "on_disconnect": "pause"})
    problem(answer, 422, "invalid_request")
