"""Who may write a run: the interleavings that each rule is there for, step by step, with two owners on real stores.

The names in brackets are the rules of the model by which the order of these steps was checked.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gevent
import pytest
from gevent.event import Event
from redis import Redis

from app.errors import Behind, Fenced
from app.protocol.digest import digest
from app.protocol.ending import Ending
from app.protocol.events import TERMINAL
from app.protocol.reducer import fold, initial
from app.storage.event_log import Append
from app.storage.run_store import Beats, Checkpoint, RunRecord
from app.verbs.runs import Runs
from app.wiring import Services
from tests.harness import DEV, eventually, pending_run
from workers.janitor.loop import Janitor


class Owner:
    """A worker that does one step at a time."""

    def __init__(self, services: Services, run_id: str, name: str) -> None:
        self.services = services
        self.name = name
        run = services.store.claim(run_id, name, start=True)
        assert run is not None, "it is not pending"
        self.run = run

    def adopt(self) -> "Owner":
        self.run, self.writer = self.services.ownership.adopt(self.run)
        return self

    def confirm(self) -> bool:
        return self.services.ownership.confirm(self.run.id, self.run.epoch)

    def say(self, *words: str, fact: bool = False) -> "Owner":
        for word in words:
            self.writer.add(f"custom.{word}", {"by": self.name}, commit_first=fact)
        return self

    def append(self) -> "Owner":
        writer = self.writer
        append = Append(writer.run_id, writer.epoch, writer.appendable(), archived=writer.archived)
        writer.mark_appended(self.services.log.append(append))
        return self

    def archive(self) -> "Owner":
        writer = self.writer
        checkpoint = Checkpoint(writer.run_id, writer.epoch, writer.unarchived())
        if writer.run_id not in self.services.store.archive([checkpoint]):
            raise Fenced
        writer.mark_archived(writer.head)
        return self

    def finish(self, ending: Ending) -> None:
        self.services.ownership.finish(self.writer, ending)


class RedisImage:
    """What Redis holds of one run, to go back to."""

    def __init__(self, url: str, run_id: str) -> None:
        self._redis = Redis.from_url(url)
        self._keys = f"rt:{{{run_id}}}:events", f"rt:{{{run_id}}}:meta"
        self._dumps = [self._redis.dump(key) for key in self._keys]

    def restore(self) -> None:
        self.wipe()
        for key, dump in zip(self._keys, self._dumps, strict=True):
            if dump is not None:
                self._redis.restore(key, 0, dump)

    def wipe(self) -> None:
        self._redis.delete(*self._keys)

    def close(self) -> None:
        self._redis.close()


@pytest.fixture
def run_id(apart: Services) -> str:
    return pending_run(apart).id


@pytest.fixture
def image(apart: Services, run_id: str) -> Iterator[Any]:
    """Takes an image of what Redis holds of the run."""
    images = []

    def take() -> RedisImage:
        images.append(RedisImage(apart.config.redis_url, run_id))
        return images[-1]

    yield take
    for each in images:
        each.close()


def _put_back(services: Services, owner: Owner) -> None:
    """The janitor calls the owner lost: rightly or not."""
    assert services.store.release(owner.run.id, owner.run.epoch, "worker_lost") is not None


def _words(services: Services, run_id: str) -> list[str]:
    """Types of the events in Redis, without their prefix."""
    return [event.type.partition(".")[2] for event in services.log.read(run_id, 0, 1_000)]


def _row(services: Services, run_id: str) -> RunRecord:
    run = services.store.get(run_id)
    assert run is not None
    return run


def _level(services: Services, run_id: str) -> None:
    """Redis and Postgres hold the same log: contiguous, `run.created` first, the terminal event last, its digest."""
    run, events = _row(services, run_id), services.store.events(run_id, 0, 1_000)
    assert services.log.read(run_id, 0, 1_000) == events
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert events[0].type == "run.created"
    assert [event.type for event in events if event.type in TERMINAL] == [events[-1].type] == [f"run.{run.status}"]
    before = fold((event.envelope() for event in events[:-1]), initial(run_id))
    assert digest(before, run.output) == run.digest == events[-1].envelope()["payload"]["digest"]
    assert run.state_seq == len(events)


# [pgepoch] Postgres decides, and it decides first.


def test_only_one_owner_gets_a_pending_run(apart: Services, run_id: str) -> None:
    first = Owner(apart, run_id, "a")
    assert apart.store.claim(run_id, "b", start=True) is None
    assert apart.ownership.claim(run_id, "canceller") is None
    assert first.run.epoch == 1


def test_an_owner_that_stalls_before_it_fences_finds_itself_fenced(apart: Services, run_id: str) -> None:
    slow = Owner(apart, run_id, "a")
    _put_back(apart, slow)
    Owner(apart, run_id, "b").adopt().say("one").append()
    with pytest.raises(Fenced):
        slow.adopt()
    assert _words(apart, run_id) == ["created", "one"]


def test_an_owner_that_fences_between_its_successors_claim_and_fence_is_fenced_by_it(
    apart: Services, run_id: str
) -> None:
    slow = Owner(apart, run_id, "a")
    _put_back(apart, slow)
    successor = Owner(apart, run_id, "b")
    slow.adopt().say("late")
    with pytest.raises(Fenced):
        slow.confirm()
    successor.adopt().say("mine").append()
    with pytest.raises(Fenced):
        slow.append()
    assert _words(apart, run_id) == ["created", "mine"]


def test_an_owner_cannot_append_once_its_successor_has_adopted_the_log(apart: Services, run_id: str) -> None:
    """Or the successor would go on from a head that is not the head."""
    slow = Owner(apart, run_id, "a").adopt().say("a1").append()
    _put_back(apart, slow)
    successor = Owner(apart, run_id, "b").adopt()
    with pytest.raises(Fenced):
        slow.say("a2").append()
    successor.say("b1").append()
    assert _words(apart, run_id) == ["created", "a1", "b1"]


# [pgfence] Every write of an owner is under its epoch.


def test_a_suspected_owner_that_goes_on_changes_neither_log_nor_row(apart: Services, run_id: str) -> None:
    suspected = Owner(apart, run_id, "a").adopt().say("a1").append()
    _put_back(apart, suspected)
    successor = Owner(apart, run_id, "b").adopt().say("b1").append().archive()
    before = _row(apart, run_id)
    suspected.say("a2")
    with pytest.raises(Fenced):
        suspected.append()
    with pytest.raises(Fenced):
        suspected.archive()
    with pytest.raises(Fenced):
        suspected.finish(Ending.completed({"by": "a"}))
    assert apart.store.release(run_id, suspected.run.epoch, "deploy") is None
    assert _row(apart, run_id) == before
    assert _words(apart, run_id) == ["created", "a1", "b1"]
    successor.finish(Ending.completed({"by": "b"}))
    _level(apart, run_id)


def test_an_owner_that_was_put_back_cannot_finish_although_nobody_has_taken_over(apart: Services, run_id: str) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("a1").append()
    _put_back(apart, owner)
    with pytest.raises(Fenced):
        owner.finish(Ending.completed(None))
    assert _row(apart, run_id).status == "pending"
    Owner(apart, run_id, "b").adopt().finish(Ending.completed("done"))
    _level(apart, run_id)


def test_an_owner_that_wakes_up_after_its_successor_finished_changes_nothing(apart: Services, run_id: str) -> None:
    frozen = Owner(apart, run_id, "a").adopt().say("a1").append()
    _put_back(apart, frozen)
    Owner(apart, run_id, "b").adopt().finish(Ending.completed("b"))
    before, log = _row(apart, run_id), apart.log.read(run_id, 0, 100)
    for step in (frozen.say("a2").append, frozen.archive, lambda: frozen.finish(Ending.completed("a"))):
        with pytest.raises(Fenced):
            step()
    assert (_row(apart, run_id), apart.log.read(run_id, 0, 100)) == (before, log)
    _level(apart, run_id)


# [created] The first event is committed with the row.


def test_the_log_begins_with_run_created_although_the_api_died_before_it_appended(apart: Services) -> None:
    run_id = pending_run(apart, announce=False).id
    assert _words(apart, run_id) == []
    claimed = apart.ownership.claim(run_id, "canceller")
    assert claimed is not None
    apart.ownership.finish(claimed[1], Ending.cancelled("requested"))
    assert _words(apart, run_id) == ["created", "cancelled"]
    _level(apart, run_id)


def test_an_api_that_is_late_with_run_created_does_not_repeat_it(apart: Services) -> None:
    run = pending_run(apart, announce=False)
    Owner(apart, run.id, "a").adopt().say("one").append()
    with pytest.raises(Fenced):
        apart.log.append(Append(run.id, 0, apart.store.events(run.id, 0, 1), archived=1))
    assert _words(apart, run.id) == ["created", "one"]


# [outbox] and [replay]: a fact is committed with every event before it, and what is committed gets into the log.


def test_a_fact_that_was_committed_but_not_appended_is_appended_by_the_next_owner(apart: Services, run_id: str) -> None:
    dies = Owner(apart, run_id, "a").adopt().say("before").append().say("delta").say("fact", fact=True)
    dies.archive()
    assert _words(apart, run_id) == ["created", "before"]
    _put_back(apart, dies)
    Owner(apart, run_id, "b").adopt().say("after").append().finish(Ending.completed("x"))
    assert _words(apart, run_id) == ["created", "before", "delta", "fact", "after", "completed"]
    _level(apart, run_id)


def test_a_fact_is_not_in_redis_before_it_is_committed(apart: Services, run_id: str) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("delta").say("fact", fact=True).say("behind").append()
    assert _words(apart, run_id) == ["created", "delta"]
    owner.archive().append()
    assert _words(apart, run_id) == ["created", "delta", "fact", "behind"]


def test_what_clients_saw_but_nobody_archived_is_archived_by_the_next_owner(apart: Services, run_id: str) -> None:
    dies = Owner(apart, run_id, "a").adopt().say("one", "two").append()
    _put_back(apart, dies)
    assert apart.store.archived_head(run_id) == 1
    successor = Owner(apart, run_id, "b").adopt()
    assert apart.store.archived_head(run_id) == 3
    assert successor.writer.state["last_seq"] == 3
    successor.finish(Ending.completed("x"))
    _level(apart, run_id)


def test_the_end_is_committed_before_it_is_appended(apart: Services, run_id: str) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("one")
    apart.ownership.end(owner.writer, Ending.completed("x"))
    owner.append()
    assert _words(apart, run_id) == ["created", "one"]
    apart.ownership.commit_end(owner.writer)
    assert _row(apart, run_id).terminal
    assert _words(apart, run_id) == ["created", "one"]
    apart.ownership.publish(run_id, owner.run.epoch)
    assert _row(apart, run_id).published
    _level(apart, run_id)


def test_a_commit_of_the_end_may_be_repeated_when_its_answer_was_lost(apart: Services, run_id: str) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("one").append()
    apart.ownership.end(owner.writer, Ending.completed("x"))
    for _ in range(3):
        apart.ownership.commit_end(owner.writer)
    apart.ownership.publish(run_id, owner.run.epoch)
    _level(apart, run_id)


def test_an_end_that_another_owner_committed_is_not_taken_for_ones_own(apart: Services, run_id: str) -> None:
    first = Owner(apart, run_id, "a").adopt()
    _put_back(apart, first)
    Owner(apart, run_id, "b").adopt().finish(Ending.completed("x"))
    apart.ownership.end(first.writer, Ending.completed("x"))
    with pytest.raises(Fenced):
        apart.ownership.commit_end(first.writer)


def test_publishing_twice_changes_nothing(apart: Services, run_id: str) -> None:
    owner = Owner(apart, run_id, "a").adopt()
    owner.finish(Ending.completed("x"))
    log = apart.log.read(run_id, 0, 10)
    apart.ownership.publish(run_id, owner.run.epoch)
    assert apart.log.read(run_id, 0, 10) == log


def test_the_janitor_publishes_an_end_that_redis_was_away_for(apart: Services, run_id: str, image: Any) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("one").append()
    before = image()
    apart.ownership.end(owner.writer, Ending.completed("x"))
    apart.ownership.commit_end(owner.writer)
    before.restore()
    janitor = Janitor(apart)

    def published() -> bool:
        janitor.publish_ends()
        return _row(apart, run_id).published

    assert not published(), "its owner is given time to do it"
    eventually(published)
    _level(apart, run_id)


def test_the_janitor_does_not_bring_back_a_stream_whose_time_is_over(apart: Services, run_id: str, image: Any) -> None:
    owner = Owner(apart, run_id, "a").adopt()
    apart.ownership.end(owner.writer, Ending.completed("x"))
    apart.ownership.commit_end(owner.writer)
    image().wipe()
    janitor = Janitor(replace(apart, config=replace(apart.config, stream_ttl_seconds=1)))

    def published() -> bool:
        janitor.publish_ends()
        return _row(apart, run_id).published

    eventually(published)
    assert _words(apart, run_id) == []


def test_the_janitor_brings_back_an_end_that_redis_had_and_lost(apart: Services, run_id: str, image: Any) -> None:
    owner = Owner(apart, run_id, "a").adopt()
    before = image()
    apart.ownership.finish(owner.writer, Ending.completed("x"))
    before.restore()
    janitor = Janitor(apart)  # new to this Redis, as after a lost connection

    def level() -> bool:
        janitor.publish_ends()
        return apart.log.head(run_id) == owner.writer.head

    eventually(level)
    _level(apart, run_id)


def test_the_janitor_removes_a_stream_that_did_not_get_its_end_in_time(apart: Services, run_id: str) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("one").append()
    apart.ownership.end(owner.writer, Ending.completed("x"))
    apart.ownership.commit_end(owner.writer)
    with apart.database.session() as db:
        db.execute_sql("UPDATE runs SET finished_at = now() - interval '2 hours' WHERE id = %s", (run_id,))
    Janitor(apart).publish_ends()
    assert _row(apart, run_id).published
    with Redis.from_url(apart.config.redis_url) as redis:
        assert redis.keys(f"rt:{{{run_id}}}:*") == [], "nothing would ever expire it"
    assert apart.store.archived_head(run_id) == 3


# [cancel] A request is a row first; whoever claims looks at it after its fence.


def test_a_cancel_between_claim_and_first_append_is_seen(apart: Services, run_id: str) -> None:
    owner = Owner(apart, run_id, "a").adopt()
    assert not owner.confirm()
    apart.store.request_cancel(run_id)
    assert owner.confirm()


def test_a_cancel_that_loses_the_race_for_the_claim_leaves_the_end_to_the_owner(apart: Services, run_id: str) -> None:
    apart.store.request_cancel(run_id)
    owner = Owner(apart, run_id, "a")
    assert apart.ownership.claim(run_id, "canceller") is None
    assert owner.adopt().confirm()
    owner.finish(Ending.cancelled("requested"))
    _level(apart, run_id)


def test_a_cancel_that_wins_it_leaves_nothing_to_claim(apart: Services, run_id: str) -> None:
    assert Runs(apart).cancel(DEV, run_id).status == "cancelled"
    assert apart.store.claim(run_id, "a", start=True) is None
    assert _words(apart, run_id) == ["created", "cancelled"]
    _level(apart, run_id)


def test_a_canceller_that_stalls_does_not_end_a_run_that_went_on(apart: Services, run_id: str) -> None:
    apart.store.request_cancel(run_id)
    claimed = apart.ownership.claim(run_id, "canceller")
    assert claimed is not None
    apart.store.release(run_id, claimed[0].epoch, "worker_lost")
    owner = Owner(apart, run_id, "a").adopt()
    owner.finish(Ending.cancelled("requested"))
    with pytest.raises(Fenced):
        apart.ownership.finish(claimed[1], Ending.cancelled("requested"))
    _level(apart, run_id)


# [confirm] Redis may have lost its last second, epochs included.


def test_a_stale_claim_is_not_believed_because_redis_forgot_the_next_one(
    apart: Services, run_id: str, image: Any
) -> None:
    stale = Owner(apart, run_id, "a")
    _put_back(apart, stale)
    before = image()
    owner = Owner(apart, run_id, "b").adopt().say("b1").append()
    before.restore()
    stale.adopt()  # Redis would let it in
    with pytest.raises(Fenced):
        stale.confirm()
    with pytest.raises(Behind) as behind:
        owner.say("b2").append()
    owner.writer.level(behind.value.head)
    owner.append().finish(Ending.completed("b"))
    assert _words(apart, run_id) == ["created", "b1", "b2", "completed"]
    _level(apart, run_id)


def test_a_log_that_went_back_is_filled_again_from_memory(apart: Services, run_id: str, image: Any) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("one").append()
    before = image()
    owner.say("two", "three").append()
    saw = apart.log.read(run_id, 0, 100)
    before.restore()
    with pytest.raises(Behind) as behind:
        owner.say("four").append()
    assert behind.value.head == 2
    assert owner.writer.remembers(2)
    owner.writer.level(2)
    owner.append()
    assert apart.log.read(run_id, 0, 4) == saw, "the same bytes"
    owner.finish(Ending.completed("x"))
    _level(apart, run_id)


def test_a_log_that_is_gone_is_filled_again_from_postgres(apart: Services, run_id: str, image: Any) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("one", "two").append().archive()
    saw = apart.log.read(run_id, 0, 100)
    image().wipe()
    with pytest.raises(Behind):
        owner.say("three").append()
    assert not owner.writer.remembers(0)
    head = apart.ownership.sync(run_id, owner.run.epoch)
    assert head == 3
    owner.writer.level(head)
    owner.append()
    assert apart.log.read(run_id, 0, 3) == saw
    owner.finish(Ending.completed("x"))
    _level(apart, run_id)


def test_a_run_is_taken_over_after_its_log_is_gone(apart: Services, run_id: str, image: Any) -> None:
    dead = Owner(apart, run_id, "a").adopt().say("one").append().archive().say("lost").append()
    _put_back(apart, dead)
    image().wipe()
    Owner(apart, run_id, "b").adopt().say("two").append().finish(Ending.completed("x"))
    assert _words(apart, run_id) == ["created", "one", "two", "completed"], "but for the un-archived tail"
    _level(apart, run_id)


def test_a_sync_that_meets_another_one_brings_each_event_once(apart: Services, run_id: str, image: Any) -> None:
    owner = Owner(apart, run_id, "a").adopt().say(*"abcdefgh").append().archive()
    image().wipe()
    epoch = owner.run.epoch
    apart.log.append(Append(run_id, epoch, apart.store.events(run_id, 0, 3), archived=3))
    assert apart.ownership.sync(run_id, epoch) == 9
    assert apart.ownership.sync(run_id, epoch) == 9
    assert _words(apart, run_id) == ["created", *"abcdefgh"]


def test_a_stale_owner_syncs_nothing(apart: Services, run_id: str) -> None:
    stale = Owner(apart, run_id, "a").adopt().say("fact", fact=True).archive()
    _put_back(apart, stale)
    owner = Owner(apart, run_id, "b")
    apart.log.raise_epoch(run_id, owner.run.epoch, "b")
    with pytest.raises(Fenced):
        apart.ownership.sync(run_id, stale.run.epoch)
    owner.adopt().finish(Ending.completed("x"))
    _level(apart, run_id)


def test_adopting_again_after_an_unknown_outcome_changes_nothing(apart: Services, run_id: str) -> None:
    owner = Owner(apart, run_id, "a").adopt()
    state = owner.writer.state
    assert owner.adopt().writer.state == state
    owner.finish(Ending.completed("x"))
    _level(apart, run_id)


def test_a_chain_of_owners_leaves_one_log(apart: Services, run_id: str) -> None:
    for n in range(12):
        owner = Owner(apart, run_id, f"o{n}").adopt().say("early").append().archive().say("seen").append()
        owner.say("fact", fact=True).archive()
        _put_back(apart, owner)
    Owner(apart, run_id, "last").adopt().finish(Ending.completed("x"))
    assert _words(apart, run_id) == ["created", *["early", "seen", "fact"] * 12, "completed"]
    assert _row(apart, run_id).epoch == 13
    _level(apart, run_id)


# The janitor's clock.


def test_an_owner_is_lost_only_after_it_was_watched_for_the_lease(apart: Services, monkeypatch: Any) -> None:
    now = [1_000.0]
    monkeypatch.setattr("workers.janitor.loop.time.monotonic", lambda: now[0])
    run_id = pending_run(apart).id
    owner = Owner(apart, run_id, f"w-{run_id}").adopt()
    janitor = Janitor(apart)

    def status_after(seconds: float) -> str:
        now[0] += seconds
        janitor.release_lost()
        return _row(apart, run_id).status

    beats = Beats(apart.config.database_url, owner.name)
    beats.beat()
    assert [status_after(1) for _ in range(6)] == ["running"] * 6
    beats.beat()
    beats.close()
    assert [status_after(1) for _ in range(6)] == ["running"] * 6, "a heartbeat starts the lease anew"
    assert status_after(30) == "running", "nobody was watching in between"
    assert [status_after(1) for _ in range(6)] == ["running"] * 6
    assert status_after(1) == "pending"
    run = _row(apart, run_id)
    assert (run.attempt, run.requeue_reason) == (1, "worker_lost")
    assert run_id in apart.queue.waiting()


def test_a_lost_owner_is_found_whatever_another_duty_waits_for(apart: Services, monkeypatch: Any) -> None:
    monkeypatch.setattr("workers.janitor.loop.PASS_SECONDS", 0.02)
    monkeypatch.setattr("workers.janitor.loop.LEASE_SECONDS", 0.5)
    run_id = pending_run(apart).id
    Owner(apart, run_id, f"w-{run_id}").adopt()  # it never beats
    never = Event()
    janitor = gevent.spawn(Janitor(apart, never.wait).run)
    try:
        with gevent.Timeout(10):
            while _row(apart, run_id).status == "running":
                gevent.sleep(0.02)
    finally:
        janitor.kill()
    assert _row(apart, run_id).requeue_reason == "worker_lost"
