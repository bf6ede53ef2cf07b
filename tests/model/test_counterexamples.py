"""What exploring found, step by step on the real stores. In brackets: the rule of the model (`runs.RULES`)."""

from marshmallow import Schema
from redis import Redis

from app.protocol.ending import Ending
from app.protocol.events import Event
from app.storage.event_log import meta_key, stream_key
from app.storage.run_store import Checkpoint, OpRecord, RunRecord
from app.wiring import Services
from runtail import Run
from runtail.agent import FAIL, RESTART, Agent
from tests.harness import DEV, eventually, pending_run
from tests.waiting import asked, got, waiting
from workers.execution.executor import Executor
from workers.execution.flusher import Flusher
from workers.janitor.loop import Janitor


def test_a_waiting_run_ends_although_whoever_cancelled_it_crashed_after_the_request(apart: Services) -> None:
    """[cancel_wakes]"""
    run = waiting(apart)
    apart.store.request_cancel(run.id)  # and here the web process is killed, or loses Postgres
    Janitor(apart).wake_due()
    row = got(apart, run.id)
    assert row.status == "pending", "nobody can decide any more, and nobody will end it"


def test_nobody_decides_on_a_run_that_is_being_ended(apart: Services) -> None:
    """[end_rereads]"""
    run = asked(apart)
    _, writer = apart.ownership.adopt(run)
    apart.ownership.end(writer, Ending("failed", error={"code": "run_timeout", "message": "…"}))
    decided = apart.waits.decide(DEV, run.id, "apr_1", "approved", None)
    assert decided is not None
    assert (decided.made, decided.approval.decision) == (False, "expired")
    apart.ownership.commit_end(writer)
    told = [e.envelope()["payload"]["decision"] for e in _events(apart, run.id) if e.type == "approval.resolved"]
    assert told == ["expired"]


def test_an_end_that_redis_loses_before_it_is_marked_published_is_published_again(apart: Services) -> None:
    """[doubt_again]"""
    run = pending_run(apart)
    claimed = apart.ownership.claim(run.id, "w")
    assert claimed is not None
    _, writer = claimed
    apart.ownership.end(writer, Ending.completed(None))
    apart.ownership.commit_end(writer)
    janitor = Janitor(apart)
    apart.ownership.sync(run.id, writer.epoch)
    with Redis.from_url(apart.config.events_redis_url) as redis:
        redis.delete(stream_key(run.id), meta_key(run.id))
    janitor.publish_ends()  # over a new connection: it doubts what is published; this end is not yet
    apart.store.mark_published(run.id)

    def published_again() -> bool:
        janitor.publish_ends()
        return apart.log.head(run.id) == writer.head

    eventually(published_again, 15)


def test_a_run_that_was_restarted_for_a_new_version_is_restarted_once(apart: Services) -> None:
    """The suspension finds an input, and the same owner goes on."""
    made: list[str] = []

    def charge() -> None:
        made.append("charge")
        if len(made) == 1:
            apart.waits.add_input(DEV, run.id, "hurry", None)

    def function(run: Run) -> None:
        run.tool("charge", charge)
        run.approve("Really?")

    run = _begun_with_version_1(apart)
    _execute(apart, run.id, Agent("versioned", function, Schema, "2", on_version_change=RESTART))
    assert got(apart, run.id).status == "waiting"
    assert made == ["charge"]


def test_a_run_that_began_with_the_new_version_does_not_fail_for_it(apart: Services) -> None:
    """Created while version 1 was registered, first executed with version 2."""

    def function(run: Run) -> None:
        run.now()
        apart.waits.add_input(DEV, created.id, "hurry", "key")
        run.approve("Really?")

    created = pending_run(apart, "versioned", agent_version="1")
    _execute(apart, created.id, Agent("versioned", function, Schema, "2", on_version_change=FAIL))
    assert got(apart, created.id).status == "waiting"


def _begun_with_version_1(services: Services) -> RunRecord:
    run = pending_run(services, "versioned", agent_version="1")
    claimed = services.store.claim(run.id, "before", start=True)
    assert claimed is not None
    record = OpRecord("1", "now", "", None, "f", False, 1.0)
    services.store.archive([Checkpoint(run.id, claimed.epoch, (), ops=[record])])
    services.store.release(run.id, claimed.epoch, "deploy")
    return run


def _execute(services: Services, run_id: str, agent: Agent) -> None:
    flusher = Flusher(services.ownership)
    flusher.start()
    Executor(services, flusher, {agent.name: agent}, "w").execute(run_id)


def _events(services: Services, run_id: str) -> list[Event]:
    return services.store.events(run_id, 0, 1_000)
