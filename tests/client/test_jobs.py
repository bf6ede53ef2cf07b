"""Jobs of plain queues: a view opens the run, `rq worker` writes it, and a job that is tried again goes on with it."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Queue, Retry
from rq.job import Job

from runtail.client import Opened, Runtail
from tests.conftest import StackMaker
from tests.harness import ROOT, Process, Stack, eventually
from tests.stored import ended, payloads, reach

JOBS = "tests.client.jobs"


class Place:
    """A server, a queue of RQ, and a `rq worker` that knows nothing of either but its module of jobs."""

    def __init__(self, stack: Stack, queue: Queue, client: Runtail) -> None:
        self.stack = stack
        self.queue = queue
        self.client = client

    def enqueue(self, name: str, *args: Any, **options: Any) -> Job:
        """A job of `tests.client.jobs`."""
        return self.queue.enqueue(f"{JOBS}.{name}", *args, **options)

    def newest(self, user: str = "dev") -> str:
        """The run that a job has just opened for itself."""
        answer = self.stack.http.get("/runs", params={"limit": 1}, headers={"Runtail-User": user})
        run_id: str = answer.json()["runs"][0]["run_id"]
        return run_id


@pytest.fixture(scope="module")
def place(module_stack: StackMaker) -> Iterator[Place]:
    """Shared by the tests of this module."""
    stack = module_stack(EXTERNAL_LEASE_SECONDS="5")
    stack.start_web()
    stack.start_worker()
    env = {**os.environ, "RUNTAIL_URL": stack.url, "PYTHONPATH": str(ROOT)}
    command = [str(Path(sys.executable).with_name("rq")), "worker", "--url", stack.env["REDIS_URL"], "jobs"]
    worker = Process("rq", command, env, stack.folder)
    try:
        with Redis.from_url(stack.env["REDIS_URL"]) as redis, Runtail(stack.url) as client:
            yield Place(stack, Queue("jobs", connection=redis), client)
    finally:
        worker.kill()


def opened(place: Place, **about: Any) -> Opened:
    """As a view does it."""
    return place.client.open(**about)


def finished(job: Job) -> Any:
    """What the job came to in RQ's eyes."""
    eventually(lambda: job.get_status(refresh=True) in ("finished", "failed"), 20, "the end of the job")
    assert job.get_status() == "finished", job.latest_result()
    return job.return_value()


def test_a_view_opens_a_run_and_a_plain_rq_worker_writes_it(place: Place) -> None:
    run = opened(place, user="alice", input={"month": "May"})
    assert finished(place.enqueue("report", "May", ref=run.ref)) == "3 letters in May."
    stored = ended(place.stack, run.run_id)
    assert (stored.output, stored.input) == ("3 letters in May.", {"month": "May"})
    assert stored.state["tool_calls"][0]["label"] == "Reading the books"
    assert place.client.for_user("alice").read(run.run_id)["status"] == "completed"


def test_a_job_without_a_view_opens_a_run_of_its_own(place: Place) -> None:
    job = place.enqueue("report", "May")
    assert finished(job) == "3 letters in May."
    assert ended(place.stack, place.newest()).output == "3 letters in May."


def test_a_job_that_fails_and_is_tried_again_goes_on_with_its_run(place: Place, tmp_path: Path) -> None:
    job = place.enqueue("fragile", str(tmp_path), retry=Retry(max=1))
    assert finished(job) == "Done."
    run = ended(place.stack, place.newest("carol"))
    assert (run.session_id, run.attempt, run.output) == ("ses_carol", 2, "Done.")
    messages = [(message["text"], message["status"]) for message in run.state["messages"]]
    assert messages == [("Trying. ", "abandoned"), ("Trying. ", "completed"), ("Done.", "completed")]


def test_a_job_that_fails_for_the_last_time_has_failed(place: Place, tmp_path: Path) -> None:
    job = place.enqueue("fragile", str(tmp_path))
    eventually(lambda: job.get_status(refresh=True) == "failed")
    assert ended(place.stack, place.newest("carol"), "failed").error["code"] == "agent_error"


def test_a_job_killed_in_the_middle_goes_on_with_the_next_epoch(place: Place, tmp_path: Path) -> None:
    run = opened(place)
    assert finished(place.enqueue("killed", str(tmp_path), ref=run.ref, retry=Retry(max=1))) == "It is grey."
    stored = ended(place.stack, run.run_id)
    assert (stored.output, stored.attempt) == ("It is grey.", 2)
    assert payloads(place.stack, run.run_id, "run.step")[0]["reason"] == "retry"


def test_a_job_killed_that_nobody_tries_again_has_lost_its_run(place: Place, tmp_path: Path) -> None:
    run = opened(place)
    place.enqueue("killed", str(tmp_path), ref=run.ref)
    assert ended(place.stack, run.run_id, "failed").error["code"] == "writer_lost"


def test_a_job_that_takes_longer_than_its_queue_allows_ends_and_no_tool_swallows_that(place: Place) -> None:
    run = opened(place)
    # Time enough, on a busy machine, to have begun: a job that ends before its block has nobody to end its run.
    job = place.enqueue("too_slow", ref=run.ref, job_timeout=12)
    eventually(lambda: job.get_status(refresh=True) == "failed", seconds=40)
    assert "JobTimeoutException" in job.latest_result().exc_string
    assert ended(place.stack, run.run_id, "failed").error["code"] == "agent_error"
    assert len(payloads(place.stack, run.run_id, "tool.started")) == 1


def test_a_cancel_ends_the_job_and_it_is_not_tried_again(place: Place) -> None:
    run = opened(place)
    job = place.enqueue("endless", ref=run.ref, retry=Retry(max=3))
    reach(place.stack, run.run_id, "custom.tick")
    place.client.cancel(run.run_id)
    assert finished(job) is None
    ended(place.stack, run.run_id, "cancelled")


def test_a_job_of_a_run_that_was_cancelled_before_it_began_does_nothing(place: Place) -> None:
    run = opened(place)
    place.client.cancel(run.run_id)
    assert finished(place.enqueue("endless", ref=run.ref)) is None
    assert ended(place.stack, run.run_id, "cancelled").attempt == 1


def test_a_job_executed_twice_gives_what_its_run_came_to(place: Place) -> None:
    run = opened(place)
    for _ in range(2):
        assert finished(place.enqueue("report", "May", ref=run.ref)) == "3 letters in May."
    assert len(payloads(place.stack, run.run_id, "tool.started")) == 1


def test_a_run_that_is_opened_waits_for_its_job_for_longer_than_a_lease(place: Place) -> None:
    run = opened(place)
    time.sleep(7)  # the lease, 5 s, and the looks of the janitor
    assert finished(place.enqueue("report", "May", ref=run.ref)) == "3 letters in May."
    assert ended(place.stack, run.run_id).attempt == 1
    assert payloads(place.stack, run.run_id, "run.step") == []


def test_a_view_asked_twice_takes_nothing_from_the_job_at_work(place: Place) -> None:
    about = {"idempotency_key": "form-1", "input": {"month": "May"}}
    run = opened(place, **about)
    job = place.enqueue("endless", ref=run.ref)
    reach(place.stack, run.run_id, "custom.tick")
    again = opened(place, **about)
    assert (again.run_id, again.ref) == (run.run_id, run.ref)
    assert again.watch_token != run.watch_token
    for token in (run.watch_token, again.watch_token):
        with Runtail(place.stack.url) as anybody:
            assert next(anybody.watch(run.run_id, watch_token=token))["type"] == "run.created"
    ticks = len(payloads(place.stack, run.run_id, "custom.tick"))
    reach(place.stack, run.run_id, "custom.tick", ticks + 5)
    place.client.cancel(run.run_id)
    assert finished(job) is None
    assert ended(place.stack, run.run_id, "cancelled").attempt == 1


def test_a_run_whose_job_never_comes_is_not_kept_for_ever(stack: StackMaker) -> None:
    own = stack(EXTERNAL_CLAIM_SECONDS="2")
    own.start_web()
    own.start_worker()
    with Runtail(own.url) as client:
        run = client.open()
    error = ended(own, run.run_id, "failed").error
    assert error == {"code": "writer_lost", "message": "No writer came within 2 s."}
