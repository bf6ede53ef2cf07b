"""Postgres that comes back without its last transactions: step by step, on the real stores."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gevent
import httpx
import pytest
from marshmallow import Schema
from redis import Redis

from app.errors import Fenced
from app.factory import create_app
from app.protocol.ending import Ending
from app.protocol.events import TERMINAL, Event
from app.storage.event_log import Append, meta_key
from app.storage.ownership import Ownership
from app.storage.run_store import Checkpoint, NewApproval, RunRecord
from app.verbs.runs import Runs
from app.wiring import Services
from runtail import Run
from runtail.agent import Agent
from tests.conftest import StackMaker
from tests.failover import PostgresImage, evict, lose_events
from tests.harness import DEV, pending_run, problem
from tests.test_flusher import Writing
from tests.test_flusher import started as started  # a fixture
from tests.test_ownership import Owner
from workers.execution.active_run import ActiveRun
from workers.execution.executor import Executor
from workers.execution.flusher import Flusher
from workers.execution.interrupts import Lost
from workers.execution.invocation import RESUMED, Invocations
from workers.execution.runner import InGreenlet
from workers.execution.settlement import Settlement
from workers.janitor.loop import Janitor

Take = Callable[[], PostgresImage]


@pytest.fixture
def image(apart: Services) -> Take:
    return lambda: PostgresImage(apart.config.database_url)


@pytest.fixture
def run_id(apart: Services) -> str:
    return pending_run(apart).id


def _archive(services: Services, run_id: str) -> list[Event]:
    return services.store.events(run_id, 0, 100_000)


def _words(services: Services, run_id: str) -> list[str]:
    return [event.type.partition(".")[2] for event in _archive(services, run_id)]


def _contiguous(services: Services, run_id: str) -> None:
    seqs = [event.seq for event in _archive(services, run_id)]
    assert seqs == list(range(1, _row(services, run_id).state_seq + 1))


def _row(services: Services, run_id: str) -> RunRecord:
    run = services.store.get(run_id)
    assert run is not None
    return run


def _whole(services: Services, run_id: str) -> None:
    """Redis and Postgres hold the same log, 1 … n, with one start and one end."""
    run, events = _row(services, run_id), _archive(services, run_id)
    assert services.log.read(run_id, 0, 100_000) == events
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [event.type for event in events if event.type in TERMINAL] == [f"run.{run.status}"]
    assert events[-1].seq == run.state_seq
    assert sum(event.type == "run.started" for event in events) <= 1


# The archive ends earlier than its writer takes it to end.


@pytest.mark.parametrize("step", ["archive", "finish", "suspend"])
def test_what_postgres_has_lost_of_a_log_comes_back_from_redis(
    apart: Services, run_id: str, image: Take, step: str
) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("one").append().archive()
    before = image()
    owner.say("two", "three").append().archive()
    seen = apart.log.read(run_id, 0, 100)
    before.restore()
    owner.say("four").append()
    ownership, writer = apart.ownership, owner.writer
    if step == "archive":
        ownership.archive(writer)
    elif step == "suspend":
        assert ownership.suspend(writer, [], 0, None)
        assert _row(apart, run_id).state_seq == 5
        Runs(apart).cancel(DEV, run_id)
    if step != "suspend":
        owner.finish(Ending.completed("x"))
    assert _archive(apart, run_id)[:4] == seen, "the same bytes"
    _whole(apart, run_id)


def test_what_only_the_writer_still_has_comes_back_from_its_memory(apart: Services, run_id: str, image: Take) -> None:
    """A fact was committed, Postgres lost it, and it was not appended yet."""
    owner = Owner(apart, run_id, "a").adopt().say("one").append().archive()
    before = image()
    owner.say("two").append().archive().say("fact", fact=True).archive()
    before.restore()
    owner.say("after")
    owner.finish(Ending.completed("x"))
    assert _words(apart, run_id) == ["created", "one", "two", "fact", "after", "completed"]
    _whole(apart, run_id)


def test_runs_that_share_a_commit_with_one_that_has_lost_events_are_committed_with_it(
    apart: Services, started: Any
) -> None:
    flusher: Flusher = started(apart.ownership)
    lost, others = (
        Writing(apart.ownership, flusher, pending_run(apart)),
        [Writing(apart.ownership, flusher, pending_run(apart)) for _ in range(3)],
    )
    for writing in (lost, *others):
        writing.begin()
        for n in range(20):
            writing.outbox.commit("custom.tick", {"n": n}, "1")
    lose_events(apart.config.database_url, lost.run.id, after=5)
    for writing in (lost, *others):
        writing.outbox.emit("custom.tick", {"n": 20}, "1")
        with gevent.Timeout(10):
            writing.outbox.commit("custom.tick", {"n": 21}, "1")
    for writing in (lost, *others):
        assert writing.told == []
        writing.finish()
        _whole(apart, writing.run.id)


def test_events_that_nobody_has_any_more_end_the_attempt_and_the_next_one_goes_on_without(
    apart: Services, run_id: str
) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("one", "two", "three").append().archive()
    lose_events(apart.config.database_url, run_id, after=2)
    evict(apart.config.redis_url, run_id, stream=True)
    owner.say("four").append()
    with pytest.raises(Fenced, match="is lost"):
        apart.ownership.archive(owner.writer)
    apart.store.release(run_id, owner.run.epoch, "retry")
    Owner(apart, run_id, "b").adopt().say("five").append().finish(Ending.completed("x"))
    assert _words(apart, run_id) == ["created", "one", "five", "completed"]
    _whole(apart, run_id)


# A claim is lost: two owners with one epoch.


@pytest.mark.parametrize("by", ["a", "b"], ids=["the same worker", "another worker"])
def test_a_claim_that_postgres_has_lost_is_fenced_by_the_next_one(
    apart: Services, run_id: str, image: Take, by: str
) -> None:
    before = image()
    lost = Owner(apart, run_id, "a").adopt().say("one").append()
    before.restore()
    successor = Owner(apart, run_id, by)
    assert successor.run.epoch == lost.run.epoch
    successor.adopt()
    if by == "b":
        assert successor.run.epoch == lost.run.epoch + 1 == _row(apart, run_id).epoch
        lost.say("late")
        writer = lost.writer
        with pytest.raises(Fenced):
            apart.log.append(Append(run_id, writer.epoch, writer.appendable(), owner=writer.owner))
        with pytest.raises(Fenced):
            apart.ownership.archive(writer)
        with pytest.raises(Fenced):
            lost.finish(Ending.completed("lost"))
    successor.say("two").append().finish(Ending.completed("x"))
    assert _words(apart, run_id) == ["created", "one", "two", "completed"]
    _whole(apart, run_id)


def test_several_lost_claims_are_all_fenced(apart: Services, run_id: str, image: Take) -> None:
    before = image()
    for name in "abc":
        owner = Owner(apart, run_id, name).adopt().say(name).append()
        apart.store.release(run_id, owner.run.epoch, "worker_lost")
    before.restore()
    successor = Owner(apart, run_id, "d").adopt()
    assert (owner.run.epoch, successor.run.epoch) == (3, 4)
    successor.finish(Ending.completed("x"))
    assert _words(apart, run_id) == ["created", "a", "b", "c", "completed"]
    _whole(apart, run_id)


def test_a_lost_claim_is_fenced_although_redis_has_forgotten_it_too(apart: Services, run_id: str, image: Take) -> None:
    before = image()
    lost = Owner(apart, run_id, "a").adopt().say("one")
    before.restore()
    evict(apart.config.redis_url, run_id, meta=True, stream=True)
    successor = Owner(apart, run_id, "b").adopt()
    with pytest.raises(Fenced):
        apart.ownership.archive(lost.writer)
    successor.finish(Ending.completed("x"))
    _whole(apart, run_id)


@pytest.mark.parametrize("step", ["archive", "finish", "suspend", "flusher"])
def test_an_owner_that_was_fenced_is_not_let_in_because_postgres_has_lost_its_successor(
    apart: Services, image: Take, started: Any, step: str
) -> None:
    """[look_in_redis] It was called lost, and has not noticed; the row says again that the run is its own."""
    flusher = started(apart.ownership)
    fenced = Writing(apart.ownership, flusher, pending_run(apart))
    run_id, writer = fenced.run.id, fenced.outbox.writer
    before = image()
    apart.store.release(run_id, fenced.run.epoch, "worker_lost")
    Owner(apart, run_id, "b").adopt().say("two").append()
    before.restore()
    writer.add("custom.late", {})
    if step == "flusher":
        flusher.archive_soon(fenced.outbox)
        with gevent.Timeout(5):
            while not fenced.told:
                gevent.sleep(0.01)
    else:
        flusher.close(fenced.outbox)
        commits = {
            "archive": lambda: apart.ownership.archive(writer),
            "finish": lambda: apart.ownership.finish(writer, Ending.completed("late")),
            "suspend": lambda: apart.ownership.suspend(writer, [], 0, None),
        }
        with pytest.raises(Fenced):
            commits[step]()
    assert _words(apart, run_id) == ["created"]
    apart.store.release(run_id, fenced.run.epoch, "retry")
    Owner(apart, run_id, "c").adopt().finish(Ending.completed("x"))
    assert _words(apart, run_id) == ["created", "two", "completed"]
    _whole(apart, run_id)


def test_an_owner_is_not_taken_for_another_one_of_the_same_epoch(apart: Services, run_id: str, image: Take) -> None:
    """[owner_rows] Postgres has lost its claim, and has given its epoch away since."""
    before = image()
    apart.store.claim(run_id, "a", start=True)
    apart.store.release(run_id, 1, "worker_lost")
    lost = Owner(apart, run_id, "b").adopt()
    before.restore()
    for name in ("c", "d"):
        apart.store.claim(run_id, name, start=True)
        if name == "c":
            apart.store.release(run_id, 1, "worker_lost")
    assert _row(apart, run_id).epoch == lost.run.epoch
    with pytest.raises(Fenced):
        apart.ownership.confirm(run_id, lost.run.epoch, "b")
    lost.say("late")
    with pytest.raises(Fenced):
        apart.ownership.archive(lost.writer)
    with pytest.raises(Fenced):
        lost.finish(Ending.completed("late"))
    assert _words(apart, run_id) == ["created"]


@pytest.fixture
def stale(apart: Services, run_id: str, image: Take) -> Owner:
    """Its claim is lost; the run, which has a question, is another owner's now, under the same epoch."""
    asking = Owner(apart, run_id, "a").adopt()
    _ask(apart, asking)
    apart.store.release(run_id, asking.run.epoch, "retry")
    before = image()
    stale = Owner(apart, run_id, "b").adopt()
    before.restore()
    assert Owner(apart, run_id, "c").run.epoch == stale.run.epoch
    return stale


def test_a_stale_owner_of_the_same_epoch_closes_no_question_of_the_others(apart: Services, stale: Owner) -> None:
    with pytest.raises(Fenced):
        apart.ownership.end(stale.writer, Ending.cancelled("requested"))
    found = apart.waits.find(DEV, stale.run.id, "apr_1")
    assert found is not None
    assert found.decision is None


@pytest.mark.parametrize("reason", ["deploy", "retry"])
def test_a_stale_owner_of_the_same_epoch_does_not_hand_back_the_others_run(
    apart: Services, stale: Owner, reason: str
) -> None:
    Settlement(apart).hand_back(stale.run, reason)
    run = _row(apart, stale.run.id)
    assert (run.status, run.owner) == ("running", "c")
    (own,) = [owned for owned in apart.store.owned_by("c") if owned.id == run.id]
    Settlement(apart).hand_back(replace(own, owner="b"), reason)
    assert _row(apart, run.id).status == "running"
    Settlement(apart).hand_back(own, reason)
    assert _row(apart, run.id).status == "pending"


def test_a_stale_owner_of_the_same_epoch_does_not_set_the_version_of_the_others_run(
    apart: Services, stale: Owner, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, agents = stale.run, {"emit": Agent("emit", lambda ctx: None, Schema, "other")}
    monkeypatch.setattr(Ownership, "confirm", lambda *of: False)  # it was confirmed just before the failover
    flusher: Flusher = started(apart.ownership)
    with pytest.raises(Fenced):
        Invocations(apart, flusher, agents, "b", InGreenlet()).execute(ActiveRun(run), stale.writer, RESUMED)
    assert _row(apart, run.id).agent_version == run.agent_version
    apart.store.set_version(run.id, run.epoch, "other", 1, owner="c")
    assert _row(apart, run.id).agent_version == "other"


def test_an_end_is_published_although_redis_knows_a_later_claim_that_postgres_has_lost(
    apart: Services, run_id: str, image: Take
) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("one")
    apart.ownership.end(owner.writer, Ending.completed("x"))
    apart.ownership.commit_end(owner.writer)
    apart.log.raise_epoch(run_id, owner.run.epoch + 3, "whoever has claimed it")
    apart.ownership.publish(run_id, owner.run.epoch)
    assert _row(apart, run_id).published
    _whole(apart, run_id)


def test_a_claim_by_the_version_before_is_fenced_too(apart: Services, run_id: str, image: Take) -> None:
    """It leaves no owner in Redis, or that of an earlier epoch."""
    before = image()
    owner = Owner(apart, run_id, "a").adopt()
    with Redis.from_url(apart.config.redis_url) as redis:
        redis.hset(meta_key(run_id), "epoch", 2)  # which has claimed it after that
        before.restore()
        apart.store.claim(run_id, "a", start=True)
        apart.store.release(run_id, 1, "retry")
        successor = Owner(apart, run_id, "a").adopt()
        assert (owner.run.epoch, successor.run.epoch) == (1, 3)
        redis.hdel(meta_key(run_id), "owner")
    successor.say("late")
    writer = successor.writer
    with pytest.raises(Fenced):
        apart.log.append(Append(run_id, writer.epoch, writer.appendable(), owner=writer.owner))


def test_a_run_of_the_version_before_goes_on_with_this_one(apart: Services, run_id: str) -> None:
    with Redis.from_url(apart.config.redis_url) as redis:
        redis.hset(meta_key(run_id), "epoch", 1)
        dead = apart.store.claim(run_id, "before", start=True)
        assert dead is not None
        apart.store.release(run_id, 1, "deploy")
        owner = Owner(apart, run_id, "a").adopt()
        assert owner.run.epoch == 2
        redis.hset(meta_key(run_id), "epoch", 3)  # and back again, which leaves the owner of epoch 2
    apart.store.release(run_id, 2, "deploy")
    apart.store.claim(run_id, "before", start=True)
    apart.store.release(run_id, 3, "deploy")
    Owner(apart, run_id, "b").adopt().finish(Ending.completed("x"))
    assert _row(apart, run_id).epoch == 4
    _whole(apart, run_id)


# What the rows have lost and the log tells.


@pytest.fixture
def execute(apart: Services, started: Any) -> Callable[..., None]:
    """Executes a run with that function as its agent."""

    def execute(run_id: str, function: Callable[[Run], object], name: str = "w") -> None:
        agents = {"emit": Agent("emit", function, Schema, "1")}
        Executor(apart, started(apart.ownership), agents, name).execute(run_id)

    return execute


def test_a_run_whose_first_claim_is_lost_is_started_once(
    apart: Services, run_id: str, image: Take, execute: Callable[..., None]
) -> None:
    before = image()
    made = []

    def function(run: Run) -> str:
        made.append(1)
        with run.message() as message:
            message.write("hello")
        if len(made) == 1:
            gevent.sleep(0.2)  # what it says is in Redis
            before.restore()
            apart.store.claim(run_id, "elsewhere", start=True)
            apart.store.release(run_id, 1, None)
        return "hello"

    execute(run_id, function)
    execute(run_id, function, "another")
    assert len(made) == 2
    assert [event.type for event in _archive(apart, run_id)].count("run.started") == 1
    assert _row(apart, run_id).status == "completed"
    _whole(apart, run_id)


@pytest.mark.parametrize("ending", [Ending.completed("done"), Ending.cancelled("requested")])
def test_an_end_that_postgres_has_lost_is_brought_back_and_not_written_again(
    apart: Services, run_id: str, image: Take, execute: Callable[..., None], ending: Ending
) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("one").append().archive()
    before = image()
    owner.say("two").append().finish(ending)
    ended = _row(apart, run_id)
    seen = apart.log.read(run_id, 0, 100)
    before.restore()
    apart.store.release(run_id, owner.run.epoch, "worker_lost")
    execute(run_id, lambda run: pytest.fail("it is executed again"))
    again = _row(apart, run_id)
    assert (again.status, again.output, again.digest) == (ended.status, ended.output, ended.digest)
    assert _archive(apart, run_id) == seen
    assert again.published
    _whole(apart, run_id)


def test_a_cancel_of_a_run_whose_end_postgres_has_lost_finds_the_end(apart: Services, run_id: str, image: Take) -> None:
    before = image()
    Owner(apart, run_id, "a").adopt().finish(Ending.completed("done"))
    before.restore()
    assert Runs(apart).cancel(DEV, run_id).status == "completed"
    _whole(apart, run_id)


def test_a_question_and_its_decision_and_an_input_come_back_with_the_log(
    apart: Services, run_id: str, image: Take
) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("one").append().archive()
    before = image()
    writer = owner.writer
    apart.waits.add_input(DEV, run_id, "hurry", None)
    for id, asked in (("apr_1", True), ("apr_2", False)):
        new = NewApproval(id, "Refund?", "owner", None, None)
        writer.add("approval.required", {"approval_id": id, "label": new.label, "requires": new.requires})
        if asked:
            writer.add("approval.resolved", {"approval_id": id, "decision": "denied", "by": "ann", "comment": "no"})
    writer.add("input.received", {"input_id": "inp_1", "text": "hurry"})
    owner.append().archive()
    before.restore()
    owner.say("two").append()
    apart.ownership.archive(writer)
    assert [(input.n, input.text) for input in apart.waits.inputs(run_id, 0, 10)] == [(1, "hurry")]
    first, second = (apart.waits.find(DEV, run_id, id) for id in ("apr_1", "apr_2"))
    assert first is not None
    assert second is not None
    assert (first.decision, first.decided_by, first.comment) == ("denied", "ann", "no")
    assert second.decision is None
    decided = apart.waits.decide(DEV, run_id, "apr_2", "approved", None)
    assert decided is not None
    assert decided.made, "whoever waits for it can still be answered"


def test_what_the_log_tells_of_a_decision_wins_over_one_that_was_made_after_the_failover(
    apart: Services, run_id: str, image: Take
) -> None:
    owner = Owner(apart, run_id, "a").adopt()
    writer = owner.writer
    new = NewApproval("apr_1", "Refund?", "owner", None, None)
    writer.add("approval.required", {"approval_id": "apr_1", "label": new.label, "requires": new.requires})
    apart.store.archive([Checkpoint(run_id, writer.epoch, writer.unarchived(), approvals=[new])])
    writer.mark_archived(writer.head)
    owner.append()
    before = image()
    apart.waits.decide(DEV, run_id, "apr_1", "approved", None)
    writer.add("approval.resolved", {"approval_id": "apr_1", "decision": "approved", "by": "dev", "comment": None})
    owner.append().archive()
    before.restore()
    apart.waits.decide(DEV, run_id, "apr_1", "denied", None)
    apart.store.release(run_id, owner.run.epoch, "worker_lost")
    Owner(apart, run_id, "b").adopt()
    found = apart.waits.find(DEV, run_id, "apr_1")
    assert found is not None
    assert found.decision == "approved"


def _ask(services: Services, owner: Owner) -> None:
    """Commit a question as a worker does, and append it."""
    writer = owner.writer
    new = NewApproval("apr_1", "Refund?", "owner", None, None)
    asked = {"approval_id": "apr_1", "label": new.label, "requires": new.requires}
    writer.add("approval.required", asked, op="1", commit_first=True)
    services.store.archive([Checkpoint(writer.run_id, writer.epoch, writer.unarchived(), approvals=[new])])
    writer.mark_archived(writer.head)
    owner.append()


@pytest.mark.parametrize("lost", ["the decision", "the question too"])
@pytest.mark.parametrize("step", ["archive", "finish"])
def test_a_decision_that_its_worker_has_read_comes_back_with_the_event_that_tells_of_it(
    apart: Services, run_id: str, image: Take, step: str, lost: str
) -> None:
    """[rows_restored] The event is not archived yet when Postgres loses the row."""
    owner = Owner(apart, run_id, "a").adopt()
    before = image()
    _ask(apart, owner)
    if lost == "the decision":
        before = image()
    apart.waits.decide(DEV, run_id, "apr_1", "approved", "yes")
    resolved = {"approval_id": "apr_1", "decision": "approved", "by": "dev", "comment": "yes"}
    owner.writer.add("approval.resolved", resolved, op="1")
    before.restore()
    if step == "archive":
        apart.ownership.archive(owner.writer)
    owner.finish(Ending.completed("x"))
    found = apart.waits.find(DEV, run_id, "apr_1")
    assert found is not None
    assert (found.decision, found.comment) == ("approved", "yes")
    _whole(apart, run_id)


def test_a_journal_is_not_read_from_less_than_its_writer_has_written(
    apart: Services, run_id: str, image: Take, started: Any
) -> None:
    """[archive_follows] Otherwise the same worker, going on, asks its question again."""
    owner = Owner(apart, run_id, "a").adopt()
    before = image()
    _ask(apart, owner)
    before.restore()
    invocations = Invocations(apart, started(apart.ownership), {}, "a", InGreenlet())
    journal = invocations._journal(owner.run, owner.writer, RESUMED)
    assert journal.approval("apr_1") is not None
    assert journal.count("1", "approval.required") == 1


def test_a_run_whose_end_is_lost_while_it_is_published_is_published_again(
    apart: Services, run_id: str, image: Take
) -> None:
    owner = Owner(apart, run_id, "a").adopt().say("one").append().archive()
    before = image()
    apart.ownership.end(owner.writer, Ending.completed("x"))
    apart.ownership.commit_end(owner.writer)
    before.restore()
    apart.ownership.publish(run_id, owner.run.epoch)
    assert not _row(apart, run_id).published
    apart.store.release(run_id, owner.run.epoch, "worker_lost")
    Owner(apart, run_id, "b").adopt().finish(Ending.completed("x"))
    assert _row(apart, run_id).published
    _whole(apart, run_id)


# Redis that has evicted a key of one run.


@pytest.mark.parametrize("gone", [{"meta": True}, {"stream": True}, {"meta": True, "stream": True}])
def test_a_run_whose_keys_were_evicted_goes_on_in_redis(apart: Services, started: Any, gone: dict[str, bool]) -> None:
    writing = Writing(apart.ownership, started(apart.ownership), pending_run(apart))
    writing.begin()
    for n in range(10):
        writing.outbox.commit("custom.tick", {"n": n}, "1")
    evict(apart.config.redis_url, writing.run.id, **gone)
    for n in range(10, 20):
        with gevent.Timeout(5):
            writing.outbox.commit("custom.tick", {"n": n}, "1")
    with gevent.Timeout(5):
        while apart.log.head(writing.run.id) < 22:
            gevent.sleep(0.01)
    assert writing.told == []
    writing.finish()
    _contiguous(apart, writing.run.id)
    if "meta" in gone and len(gone) == 1:
        _whole(apart, writing.run.id)


def test_whoever_was_fenced_stays_so_although_redis_has_evicted_that(apart: Services, run_id: str) -> None:
    stale = Owner(apart, run_id, "a").adopt().say("one").append().archive()
    apart.store.release(run_id, stale.run.epoch, "worker_lost")
    owner = Owner(apart, run_id, "b").adopt()
    evict(apart.config.redis_url, run_id, meta=True)
    stale.say("late")
    writer = stale.writer
    append = Append(run_id, writer.epoch, writer.appendable(), owner=writer.owner)
    with pytest.raises(Exception, match="head is at 2"):
        apart.log.append(append)
    with pytest.raises(Fenced):
        apart.ownership.level(writer, 2)
    owner.say("two")
    apart.ownership.level(owner.writer, 2)
    owner.append().finish(Ending.completed("x"))
    _whole(apart, run_id)


def test_a_run_that_redis_refuses_keeps_no_other_waiting(
    apart: Services, started: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the reason: here its ring is refused, to one run alone."""
    flusher: Flusher = started(apart.ownership)
    refused, fine = (Writing(apart.ownership, flusher, pending_run(apart)) for _ in range(2))
    real = apart.log._arguments

    def arguments(append: Append) -> list[str | int]:
        made = real(append)
        return [made[0], "no epoch", *made[2:]] if append.run_id == refused.run.id else made

    monkeypatch.setattr(apart.log, "_arguments", arguments)
    refused.outbox.emit("custom.tick", {"n": 0}, "1")
    gevent.sleep(0.5)  # by now it was refused several times
    slowest = 0.0
    for n in range(50):
        with gevent.Timeout(5):
            fine.outbox.emit("custom.tick", {"n": n}, "1")
            begun = gevent.get_hub().loop.now()
            while apart.log.head(fine.run.id) < n + 2:
                gevent.sleep(0.001)
                gevent.get_hub().loop.update_now()
        slowest = max(slowest, gevent.get_hub().loop.now() - begun)
    assert slowest < 0.3, "it waits for nobody"
    monkeypatch.undo()
    with gevent.Timeout(5):
        while apart.log.head(refused.run.id) < 2:
            gevent.sleep(0.01)
    assert Lost not in map(type, refused.told)


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_redis_that_evicts_is_warned_of(apart: Services, caplog: pytest.LogCaptureFixture, policy: str) -> None:
    client = create_app(apart.config, apart).test_client()
    with Redis.from_url(apart.config.redis_url) as redis:
        assert "maxmemory" not in client.get("/readyz").text
        redis.config_set("maxmemory-policy", policy)
        try:
            ready = client.get("/readyz")
            Janitor(apart).publish_ends()
        finally:
            redis.config_set("maxmemory-policy", "noeviction")
    assert ready.status_code == 200
    assert f"maxmemory-policy {policy}" in ready.text
    assert f"maxmemory-policy {policy}" in caplog.text


# Readers of a log with a hole: a version before has left one, or somebody has deleted rows.


def _with_hole(services: Services, *, first: int, last: int) -> str:
    """A run that has ended, of whose nine events nobody has those any more."""
    run_id = pending_run(services).id
    owner = Owner(services, run_id, "a").adopt().say(*"bcdefgh").append()
    owner.finish(Ending.completed("x"))
    with services.database.session() as db:
        db.execute_sql("DELETE FROM run_events WHERE run_id = %s AND seq BETWEEN %s AND %s", (run_id, first, last))
    evict(services.config.redis_url, run_id, meta=True, stream=True)
    return run_id


def test_a_page_ends_before_a_hole_and_the_next_one_says_what_is_lost(stack: StackMaker) -> None:
    web = stack()
    web.start_web()
    run_id = _with_hole(web.services, first=4, last=6)

    def page(since: int) -> httpx.Response:
        return web.http.get(f"/runs/{run_id}/events?since_seq={since}", headers={"Accept": "application/json"})

    assert [event["seq"] for event in page(0).json()["events"]] == [1, 2, 3]
    told = problem(page(3), 410, "events_lost")["detail"]
    assert told == "Events 4 to 6 are lost; those after them are at since_seq=6."
    assert [event["seq"] for event in page(6).json()["events"]] == [7, 8, 9]


@pytest.mark.parametrize(("first", "last"), [(2, 2), (4, 7)])
def test_a_window_puts_a_snapshot_in_the_place_of_a_hole(stack: StackMaker, first: int, last: int) -> None:
    web = stack()
    web.start_web()
    run_id = _with_hole(web.services, first=first, last=last)
    *events, snapshot = [json.loads(line) for line in web.follow(run_id)]
    assert [event["seq"] for event in events] == list(range(1, first))
    assert snapshot["type"] == "stream.snapshot"
    assert snapshot["payload"]["seq"] == 9
    assert snapshot["payload"]["state"]["status"] == "completed"
