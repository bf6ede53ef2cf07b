"""Leases on open windows: who holds how many, of which limit, and for how long."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from app.config import Config
from app.errors import StoreUnavailable
from app.identifiers import new_id
from app.storage import leases as module
from app.storage.breaker import Breaker
from app.storage.event_log import EventLog
from app.storage.leases import KEPT_SECONDS, Claim, Lease, Leases
from tests.harness import eventually, free_port


@pytest.fixture
def redis(config: Config) -> Iterator[Redis]:
    with Redis.from_url(config.events_redis_url) as client:
        yield client


@pytest.fixture
def holder(config: Config) -> Iterator[Leases]:
    leases = Leases(config.events_redis_url, Breaker())
    yield leases
    leases.close()


@pytest.fixture
def other(config: Config) -> Iterator[Leases]:
    """The leases of another process."""
    leases = Leases(config.events_redis_url, Breaker())
    yield leases
    leases.close()


@pytest.fixture
def subject(redis: Redis) -> Iterator[str]:
    run_id = new_id("run")
    yield run_id
    redis.delete(_key(run_id))


def _key(subject: str) -> str:
    return f"rt:{{{subject}}}:windows"


def _write(leases: Leases, subject: str, held: int, limit: int = 0, opened: int = 0) -> Lease:
    return leases.write([Claim(subject, held, limit, opened)])[0]


def _look(leases: Leases, subject: str) -> Lease:
    return leases.look([subject])[subject]


def _runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_SECONDS", 2)


def test_a_limit_holds_over_all_holders(holder: Leases, other: Leases, subject: str) -> None:
    assert _write(holder, subject, 2, limit=3) == Lease(True, 2, 1)
    assert _write(other, subject, 1, limit=3).granted
    assert not _write(other, subject, 2, limit=3).granted
    assert _look(holder, subject).windows == 3


def test_a_refused_claim_leaves_what_was_held(holder: Leases, other: Leases, subject: str) -> None:
    _write(holder, subject, 2, limit=2)
    assert _write(holder, subject, 3, limit=2) == Lease(False, 2, 1)
    assert _look(other, subject).windows == 2


def test_a_renewal_writes_the_truth_whatever_the_limit(holder: Leases, other: Leases, subject: str) -> None:
    _write(holder, subject, 1, limit=1)
    assert _write(other, subject, 5) == Lease(True, 6, 1)
    assert _write(other, subject, 0) == Lease(True, 1, 1)
    assert _write(holder, subject, 0) == Lease(True, 0, 1)


def test_a_claim_written_twice_counts_once(holder: Leases, subject: str) -> None:
    for _ in range(2):
        assert _write(holder, subject, 1, limit=1) == Lease(True, 1, 1)


def test_many_claims_are_one_round_trip_and_each_has_its_own_outcome(
    holder: Leases, other: Leases, redis: Redis, subject: str
) -> None:
    second = f"{subject}-2"
    _write(other, subject, 1)
    assert holder.write([Claim(subject, 1, 1), Claim(second, 1, 1)]) == [Lease(False, 1, 1), Lease(True, 1, 1)]
    redis.delete(_key(second))


def test_the_windows_of_a_killed_process_are_free_once_its_lease_has_run_out(
    holder: Leases, other: Leases, subject: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _runs_out(patch)
        _write(holder, subject, 1, limit=1)
    assert not _write(other, subject, 1, limit=1).granted
    eventually(lambda: _write(other, subject, 1, limit=1).granted, 5, "the end of the lease")


def test_a_lease_that_is_renewed_does_not_run_out(
    holder: Leases, other: Leases, subject: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _runs_out(patch)
        _write(holder, subject, 1)
        _write(other, subject, 1)
    _write(holder, subject, 1)
    eventually(lambda: _look(other, subject).windows == 1, 5, "the end of the lease that was not renewed")
    assert [field for field in redis.hkeys(_key(subject)) if field != b"opens"] == [holder.holder.encode()]


def test_a_run_without_a_window_either_had_one_or_never_had(holder: Leases, other: Leases, subject: str) -> None:
    assert _look(other, subject) == Lease(True, 0, 0)
    _write(holder, subject, 2, opened=2)
    assert _look(other, subject) == Lease(True, 2, 2)
    _write(holder, subject, 0)
    assert _look(other, subject) == Lease(True, 0, 2)


def test_a_window_that_came_and_went_between_two_writes_is_remembered(holder: Leases, subject: str) -> None:
    assert _write(holder, subject, 0, opened=1) == Lease(True, 0, 1)


def test_a_renewal_after_redis_lost_everything_says_that_there_was_a_window(
    holder: Leases, redis: Redis, subject: str
) -> None:
    _write(holder, subject, 1, opened=1)
    redis.delete(_key(subject))
    assert _look(holder, subject) == Lease(True, 0, 0)
    assert _write(holder, subject, 1) == Lease(True, 1, 1)


def test_looking_makes_no_key_and_keeps_the_one_there_is(holder: Leases, redis: Redis, subject: str) -> None:
    _look(holder, subject)
    assert not redis.exists(_key(subject))
    _write(holder, subject, 0, opened=1)
    assert KEPT_SECONDS - 5 <= redis.ttl(_key(subject)) <= KEPT_SECONDS
    redis.expire(_key(subject), 5)
    _look(holder, subject)
    assert redis.ttl(_key(subject)) > 5


def test_nothing_is_left_of_a_subject_that_is_only_counted_by_limit(holder: Leases, redis: Redis, subject: str) -> None:
    _write(holder, subject, 0)
    assert not redis.exists(_key(subject))


def test_an_erased_run_has_no_leases_either(holder: Leases, redis: Redis, config: Config, subject: str) -> None:
    _write(holder, subject, 1)
    log = EventLog(config.events_redis_url, ttl_seconds=60, max_connections=1)
    log.delete(subject)
    log.close()
    assert not redis.keys(f"rt:{{{subject}}}*")


def test_a_redis_that_forgot_the_script_is_told_again(holder: Leases, redis: Redis, subject: str) -> None:
    _write(holder, subject, 1)
    redis.script_flush()
    assert _write(holder, subject, 2).windows == 2


def test_a_lost_connection_is_not_replaced_behind_ones_back(holder: Leases, redis: Redis, subject: str) -> None:
    """Redis may have been rolled back meanwhile: whoever has leases writes all of them again."""
    _look(holder, subject)
    assert holder.connects == 1
    redis.client_kill_filter(_id=str(_client_id(holder)))
    with pytest.raises(StoreUnavailable):
        _look(holder, subject)
    assert holder.connects == 1
    _look(holder, subject)
    assert holder.connects == 2


def _client_id(leases: Leases) -> int:
    (number,) = leases._ask([("CLIENT", "ID")])
    assert isinstance(number, int)
    return number


def test_callers_at_the_same_time_share_round_trips_and_each_gets_its_own_answer(
    holder: Leases, redis: Redis, subject: str
) -> None:
    subjects = [f"{subject}-{n}" for n in range(200)]
    with ThreadPoolExecutor(100) as callers:
        found = list(callers.map(lambda n: _write(holder, subjects[n], n % 7, limit=7), range(200)))
    assert [lease.windows for lease in found] == [n % 7 for n in range(200)]
    assert holder.connects == 1
    redis.delete(*map(_key, subjects))


def test_what_redis_refuses_is_an_error_of_that_call_alone(holder: Leases, redis: Redis, subject: str) -> None:
    redis.set(_key(subject), "not a hash")
    with pytest.raises(StoreUnavailable):
        _write(holder, subject, 1)
    redis.delete(_key(subject))
    assert _write(holder, subject, 1).windows == 1


def test_a_redis_that_cannot_be_reached_is_said_so() -> None:
    leases = Leases(f"redis://127.0.0.1:{free_port()}/0", Breaker())
    for call in (leases.ping, lambda: leases.look(["run_1"]), lambda: leases.write([Claim("run_1", 1)])):
        with pytest.raises(StoreUnavailable):
            call()
    leases.close()
