"""Who may open a window: limits over all processes, what a lost process or a lost Redis does to them."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask
from redis import Redis

from app import metrics
from app.api.problems import problem
from app.dev.services import EmbeddedServices
from app.errors import StoreUnavailable, TooManyStreams
from app.identifiers import new_id
from app.storage import leases as leases_module
from app.storage.breaker import Breaker
from app.storage.leases import Lease, Leases
from app.storage.run_store import Principal
from app.streaming import admission as module
from app.streaming import departures
from app.streaming.admission import Admission, Ticket
from tests.conftest import own_databases
from tests.harness import eventually, free_port

ADDRESS = "192.0.2.1"

Web = Callable[..., Admission]


@pytest.fixture
def url(environment: dict[str, str]) -> Iterator[str]:
    """A Redis database of the test's own."""
    with own_databases(environment, migrated=False) as urls:
        yield urls["REDIS_URL"]


@pytest.fixture
def web(url: str) -> Iterator[Web]:
    """Makes the admission of one more web process."""
    with ExitStack() as opened:

        def make(url: str = url, *, max_per_user: int = 0, max_per_address: int = 0, max_windows: int = 0) -> Admission:
            leases = Leases(url, Breaker())
            admission = Admission(
                leases, max_per_user=max_per_user, max_per_address=max_per_address, max_windows=max_windows
            )
            opened.callback(admission.close)
            return admission

        yield make


@pytest.fixture
def seen(url: str) -> Iterator[Callable[[str], Lease]]:
    """What Redis knows of a subject."""
    leases = Leases(url, Breaker())
    yield lambda subject: leases.look([subject])[subject]
    leases.close()


def _user(name: str = "ann") -> Principal:
    return Principal("acme", name)


def _admit(web: Admission, user: str = "ann", address: str = ADDRESS, run_id: str = "run_1") -> Ticket:
    return web.admit(_user(user), address, run_id)


def _value(metric: str) -> float:
    metrics.flush()
    return metrics.registry.get_sample_value(metric) or 0.0


# Limits.


def test_a_user_has_at_most_so_many_windows_over_all_processes(web: Web) -> None:
    one, two = web(max_per_user=3), web(max_per_user=3)
    for process in (one, two, one):
        _admit(process)
    for process in (one, two):
        with pytest.raises(TooManyStreams, match="user has 3 windows"):
            _admit(process)
    _admit(one, user="bob")


def test_an_address_has_at_most_so_many_windows_whoever_they_are_for(web: Web) -> None:
    one, two = web(max_per_address=2), web(max_per_address=2)
    _admit(one, user="ann")
    _admit(two, user="bob")
    with pytest.raises(TooManyStreams, match="address has 2 windows"):
        _admit(one, user="eve")
    _admit(one, user="eve", address="192.0.2.2")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("proxy-1", "proxy-1", True),
    ],
)
def test_an_address_is_what_one_client_has(web: Web, one: str, other: str, same: bool) -> None:
    process = web(max_per_address=1)
    _admit(process, address=one)
    if same:
        with pytest.raises(TooManyStreams):
            _admit(process, address=other)
    else:
        _admit(process, address=other)


def test_a_client_without_a_known_address_is_not_limited_by_it(web: Web) -> None:
    process = web(max_per_address=1)
    for _ in range(3):
        _admit(process, address="")


def test_two_users_whose_names_look_alike_do_not_share_a_limit(web: Web) -> None:
    process = web(max_per_user=1)
    process.admit(Principal("a:b", "c"), ADDRESS, "run_1")
    process.admit(Principal("a", "b:c"), ADDRESS, "run_1")
    process.admit(Principal("a}", "{b:c"), ADDRESS, "run_1")


def test_a_process_has_at_most_so_many_windows(web: Web) -> None:
    process = web(max_windows=2)
    _admit(process, user="ann")
    ticket = _admit(process, user="bob")
    with pytest.raises(TooManyStreams, match="process has 2 windows"):
        _admit(process, user="eve")
    process.release(ticket, before_the_end=False)
    _admit(process, user="eve")


def test_zero_means_no_limit_and_asks_nobody(web: Web) -> None:
    process = web(f"redis://127.0.0.1:{free_port()}/0")
    for _ in range(300):
        _admit(process)


def test_a_released_window_is_free_for_the_same_process_at_once_and_for_others_after_a_flush(web: Web) -> None:
    one, two = web(max_per_user=1), web(max_per_user=1)
    one.release(_admit(one), before_the_end=False)
    ticket = _admit(one)
    one.release(ticket, before_the_end=False)
    one.flush()
    _admit(two)


def test_a_refused_window_counts_for_no_other_limit(web: Web) -> None:
    one, two = web(max_per_user=2, max_per_address=1), web(max_per_user=2, max_per_address=1)
    _admit(one)
    with pytest.raises(TooManyStreams, match="address"):
        _admit(one)
    one.flush()
    _admit(two, address="192.0.2.2")
    with pytest.raises(TooManyStreams, match="user"):
        _admit(two, address="192.0.2.3")


def test_of_many_at_the_same_time_as_many_get_in_as_there_is_room_for(web: Web) -> None:
    processes = [web(max_per_user=20), web(max_per_user=20)]

    def attempt(n: int) -> bool:
        try:
            _admit(processes[n % 2])
        except TooManyStreams:
            return False
        return True

    with ThreadPoolExecutor(40) as clients:
        admitted = sum(clients.map(attempt, range(200)))
    assert admitted == 20


def test_a_refusal_is_counted_by_its_code(web: Web) -> None:
    process = web(max_per_user=1)
    _admit(process)
    before = metrics.registry.get_sample_value("runtail_rejected_windows_total", {"code": "too_many_streams"}) or 0
    with pytest.raises(TooManyStreams):
        _admit(process)
    after = metrics.registry.get_sample_value("runtail_rejected_windows_total", {"code": "too_many_streams"})
    assert after == before + 1


def test_open_windows_are_those_admitted_and_not_released(web: Web) -> None:
    process, before = web(max_per_user=2), _value("runtail_open_windows")
    tickets = [_admit(process), _admit(process)]
    with pytest.raises(TooManyStreams):
        _admit(process)
    assert _value("runtail_open_windows") == before + 2
    for ticket in tickets:
        process.release(ticket, before_the_end=False)
    assert _value("runtail_open_windows") == before


# What the other processes see.


def test_a_run_is_known_to_have_had_a_window_once_it_was_flushed(web: Web, seen: Callable[[str], Lease]) -> None:
    process = web()
    ticket = _admit(process, run_id="run_1")
    process.flush()
    assert seen("run_1") == Lease(True, 1, 1)
    process.release(ticket, before_the_end=True)
    process.flush()
    assert seen("run_1") == Lease(True, 0, 1)


def test_a_window_that_was_refused_is_no_window_of_its_run(web: Web, seen: Callable[[str], Lease]) -> None:
    process = web(max_per_user=1)
    _admit(process, run_id="run_1")
    with pytest.raises(TooManyStreams):
        _admit(process, run_id="run_2")
    process.flush()
    assert seen("run_2") == Lease(True, 0, 0)


def test_a_refused_client_is_told_when_to_try_again(app: Flask) -> None:
    with app.test_request_context():
        answer = problem(TooManyStreams())
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, str(module.RETRY_SECONDS))


def test_every_subject_is_renewed_before_its_lease_runs_out(
    web: Web, seen: Callable[[str], Lease], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.SLICES * module.FLUSH_SECONDS <= leases_module.LEASE_SECONDS / 2
    process = web()
    runs = [new_id("run") for _ in range(100)]
    for run_id in runs:
        _admit(process, run_id=run_id)
    with monkeypatch.context() as patch:
        patch.setattr(leases_module, "LEASE_SECONDS", 2)
        for _ in range(2):  # the first makes the connection, after which everything is written again
            process.flush()
    for _ in range(module.SLICES):
        process.flush()
    time.sleep(2.1)  # the short leases run out by Redis' own clock
    assert [seen(run_id).windows for run_id in runs] == [1] * len(runs)


def test_the_windows_of_a_killed_process_are_free_once_its_leases_have_run_out(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, alive = web(max_per_user=1), web(max_per_user=1)
    with monkeypatch.context() as patch:
        patch.setattr(leases_module, "LEASE_SECONDS", 2)
        _admit(dead)
    with pytest.raises(TooManyStreams):
        _admit(alive)

    def admitted() -> bool:
        try:
            _admit(alive)
        except TooManyStreams:
            return False
        return True

    eventually(admitted, 5, "the end of the lease")


def test_a_process_that_ends_hands_everything_back(web: Web, seen: Callable[[str], Lease]) -> None:
    ending, other = web(max_per_user=1), web(max_per_user=1)
    _admit(ending, run_id="run_1")
    ending.close()
    _admit(other)
    assert seen("run_1") == Lease(True, 0, 1)


def test_a_process_whose_redis_is_away_ends_all_the_same(web: Web) -> None:
    process = web(f"redis://127.0.0.1:{free_port()}/0")
    _admit(process)
    process.close()


# Redis is away.


def test_while_redis_is_away_windows_open_and_it_is_said_once(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    process = web(f"redis://127.0.0.1:{free_port()}/0", max_per_user=10, max_per_address=10)
    with caplog.at_level(logging.WARNING, module.log.name):
        for _ in range(5):
            _admit(process)
    assert len(caplog.records) == 1


def test_while_redis_is_away_a_process_still_keeps_to_the_limit_by_itself(web: Web) -> None:
    process = web(f"redis://127.0.0.1:{free_port()}/0", max_per_user=2)
    _admit(process)
    _admit(process)
    with pytest.raises(TooManyStreams):
        _admit(process)


def test_while_redis_is_away_metrics_go_on(web: Web) -> None:
    process, before = web(f"redis://127.0.0.1:{free_port()}/0"), _value("runtail_first_event_seconds_count")
    threading.Thread(target=process.run, daemon=True).start()
    metrics.FIRST_EVENT.observe(0.1)
    eventually(lambda: _value("runtail_first_event_seconds_count") == before + 1, what="the observation")


def test_after_an_outage_the_windows_opened_in_it_count(tmp_path: Path, web: Web) -> None:
    """A Redis that comes back with nothing is told everything again, by a process that sees it come back."""
    with EmbeddedServices(tmp_path) as services:
        one, two = (web(services.redis_url, max_per_user=2) for _ in range(2))
        for process in (one, two):
            threading.Thread(target=process.run, daemon=True).start()
        _admit(one)
        services.kill("redis")
        eventually(lambda: one._away, what="the outage")
        _admit(one)
        services.start("redis")

        def refused() -> bool:
            try:
                two.release(_admit(two), before_the_end=False)
            except TooManyStreams:
                return True
            return False

        eventually(refused, 10, "the count after the outage")


def test_what_a_restarted_redis_has_lost_is_written_at_once(web: Web, seen: Callable[[str], Lease], url: str) -> None:
    process, runs = web(), [new_id("run") for _ in range(100)]
    for run_id in runs:
        _admit(process, run_id=run_id)
    process.flush()
    process.flush()
    (number,) = process._leases._ask([("CLIENT", "ID")])
    with Redis.from_url(url) as redis:
        redis.flushdb()
        redis.client_kill_filter(_id=str(number))
    with pytest.raises(StoreUnavailable):
        process.flush()
    process.flush()
    assert [seen(run_id) for run_id in runs] == [Lease(True, 1, 1)] * len(runs)


# Clients that leave.


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that left has no time to come back; the test says when it is looked for."""
    monkeypatch.setattr(departures, "ABANDONED_SECONDS", 0.0)


def _abandoned() -> float:
    return _value("runtail_abandoned_streams_total")


@pytest.mark.usefixtures("soon")
def test_a_client_that_left_and_did_not_come_back_has_abandoned_its_stream(web: Web) -> None:
    process, before = web(), _abandoned()
    process.release(_admit(process), before_the_end=True)
    process.flush()
    process.flush()
    assert _abandoned() == before + 1


@pytest.mark.usefixtures("soon")
def test_a_client_that_saw_the_end_has_abandoned_nothing(web: Web) -> None:
    process, before = web(), _abandoned()
    process.release(_admit(process), before_the_end=False)
    process.flush()
    process.flush()
    assert _abandoned() == before


def test_a_client_that_is_given_time_has_not_abandoned_anything_yet(web: Web) -> None:
    process, before = web(), _abandoned()
    process.release(_admit(process), before_the_end=True)
    process.flush()
    process.flush()
    assert _abandoned() == before


@pytest.mark.usefixtures("soon")
def test_a_client_that_comes_back_before_it_is_noticed_has_abandoned_nothing(web: Web) -> None:
    process, before = web(), _abandoned()
    process.release(_admit(process), before_the_end=True)
    process.release(_admit(process), before_the_end=False)
    process.flush()
    process.flush()
    assert _abandoned() == before


def test_a_client_that_came_back_to_another_process_has_abandoned_nothing(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, other, before = web(), web(), _abandoned()
    left.release(_admit(left), before_the_end=True)
    with monkeypatch.context() as patch:
        patch.setattr(departures, "ABANDONED_SECONDS", 0.3)
        left.flush()
    ticket = _admit(other)
    other.release(ticket, before_the_end=False)
    other.flush()
    eventually(lambda: _looked_into(left), what="the look at the departure")
    assert _abandoned() == before


def _looked_into(process: Admission) -> bool:
    process.flush()
    return not process._departures._departures
