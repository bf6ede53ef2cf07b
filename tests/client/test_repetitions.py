"""Jobs that their queue executes again: what is a repetition, and a run of its own, and what is one more try."""

import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis
from rq import Queue, Repeat, Retry
from rq.job import Job
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq_scheduler import Scheduler

from runtail.client import Runtail
from tests.conftest import StackMaker
from tests.harness import ROOT, Process, Stack, eventually
from tests.stored import ended, payloads, reach, row

LEASE_SECONDS = 3
RQ = str(Path(sys.executable).with_name("rq"))


class Place:
    """A server whose leases are short, and a queue whose workers a test starts and kills."""

    def __init__(self, stack: Stack, redis: "Redis[bytes]", client: Runtail) -> None:
        self.stack = stack
        self.redis = redis
        self.queue = Queue("again", connection=redis)
        self.client = client
        self.processes: list[Process] = []

    def worker(self) -> Process:
        """A `rq worker` with its scheduler."""
        env = {**os.environ, "RUNTAIL_URL": self.stack.url, "PYTHONPATH": str(ROOT)}
        command = [RQ, "worker", "--url", self.stack.env["REDIS_URL"], "--with-scheduler", "again"]
        process = Process("rq", command, env, self.stack.folder)
        self.processes.append(process)
        return process

    def enqueue(self, name: str, *args: Any, **options: Any) -> Job:
        """A job of `tests.client.jobs`."""
        return self.queue.enqueue(f"tests.client.jobs.{name}", *args, **options)

    def runs(self, session: str) -> list[str]:
        """The runs of that session that have ended as completed, oldest first."""
        listed = self.stack.http.get("/runs", params={"session": session, "limit": 50}).json()["runs"]
        return [run["run_id"] for run in reversed(listed) if run["status"] == "completed"]


@pytest.fixture(scope="module")
def place(module_stack: StackMaker) -> Iterator[Place]:
    """With a worker."""
    stack = module_stack(EXTERNAL_LEASE_SECONDS=str(LEASE_SECONDS))
    stack.start_web()
    stack.start_worker()
    with Redis.from_url(stack.env["REDIS_URL"]) as redis, Runtail(stack.url) as client:
        place = Place(stack, redis, client)
        place.worker()
        try:
            yield place
        finally:
            for process in place.processes:
                if process.popen.poll() is None:
                    family = psutil.Process(process.pid).children(recursive=True)
                    process.kill()
                    for child in family:
                        child.kill()


def test_each_repetition_is_a_run_of_its_own(place: Place) -> None:
    opened = place.client.open(session="ses_repeat")
    place.enqueue("report", "May", ref=opened.ref, repeat=Repeat(times=2, interval=0))
    runs = eventually(lambda: found if len(found := place.runs("ses_repeat")) == 3 else None, 30, "three runs")
    assert runs[0] == opened.run_id
    assert {row(place.stack, run_id).output for run_id in runs} == {"3 letters in May."}


@pytest.mark.parametrize("result_ttl", [1, 500])
def test_also_after_the_results_are_gone(place: Place, result_ttl: int) -> None:
    session = f"ses_pause_{result_ttl}"
    opened = place.client.open(session=session)
    place.enqueue("report", "May", ref=opened.ref, repeat=Repeat(times=2, interval=3), result_ttl=result_ttl)
    eventually(lambda: len(place.runs(session)) == 3, 40, "three runs")


def test_each_time_that_rq_scheduler_enqueues_a_job_is_a_run(place: Place) -> None:
    opened = place.client.open(session="ses_scheduler")
    scheduler = Scheduler(place.queue.name, connection=place.redis)
    kwargs = {"ref": opened.ref}
    scheduler.schedule(datetime.now(UTC), "tests.client.jobs.report", ["May"], kwargs, interval=1, repeat=2)
    command = [RQ + "scheduler", "--url", place.stack.env["REDIS_URL"], "--interval", "1"]
    place.processes.append(Process("rqscheduler", command, dict(os.environ), place.stack.folder))
    runs = eventually(lambda: found if len(found := place.runs("ses_scheduler")) == 2 else None, 40, "two runs")
    assert runs[0] == opened.run_id


def test_a_repetition_without_a_ref_is_a_run_too(place: Place) -> None:
    job = place.enqueue("unopened", repeat=Repeat(times=1, interval=0))
    eventually(lambda: len(place.runs("ses_no_ref")) == 2, 30, f"two runs of {job.id}")


def test_a_later_job_of_the_same_id_is_another_one(place: Place) -> None:
    for count in (1, 2):
        place.enqueue("daily", job_id="daily", result_ttl=0)
        eventually(lambda: not Job.exists("daily", connection=place.redis), 20, "the end of the job")
        assert len(place.runs("ses_same_id")) == count


@pytest.mark.parametrize(("name", "runs"), [("yearly", 3), ("yearly_too", 4)])
def test_jobs_that_another_job_calls_are_runs_of_their_own(place: Place, name: str, runs: int) -> None:
    before = len(place.runs("ses_months"))
    job = place.enqueue(name, retry=Retry(max=1))
    eventually(lambda: job.get_status(refresh=True) == "finished", 20, "the end of the job")
    assert job.return_value() == ["Of May.", "Of June.", "Of July."]
    assert len(place.runs("ses_months")) == before + runs


def test_a_try_of_a_repetition_goes_on_with_the_run_of_that_repetition(place: Place, tmp_path: Path) -> None:
    opened = place.client.open(session="ses_tries")
    options = {"ref": opened.ref, "retry": Retry(max=1), "repeat": Repeat(times=1, interval=0)}
    job = place.enqueue("fails_at", str(tmp_path), 2, **options)
    runs = eventually(lambda: found if len(found := place.runs("ses_tries")) == 2 else None, 30, "two runs")
    assert [row(place.stack, run_id).attempt for run_id in runs] == [1, 2]
    eventually(lambda: job.get_status(refresh=True) == "finished")


def test_a_repetition_follows_a_run_that_was_cancelled(place: Place) -> None:
    opened = place.client.open(session="ses_stopped")
    place.client.cancel(opened.run_id)
    place.enqueue("report", "May", ref=opened.ref, repeat=Repeat(times=1, interval=0))
    eventually(lambda: len(place.runs("ses_stopped")) == 1, 30, "the repetition")


def failed(place: Place, name: str, *args: Any, **options: Any) -> Job:
    """A job that has failed for good."""
    job = place.enqueue(name, *args, **options)
    eventually(lambda: job.get_status(refresh=True) == "failed", 20, "the failure")
    return job


def test_a_job_put_back_whose_run_has_failed_is_a_new_run_each_time(place: Place, tmp_path: Path) -> None:
    opened = place.client.open(session="ses_requeue")
    job = failed(place, "fails_at", str(tmp_path), 1, 2, ref=opened.ref)
    ended(place.stack, opened.run_id, "failed")
    registry = FailedJobRegistry(queue=place.queue)
    registry.requeue(job.id)
    eventually(lambda: (tmp_path / "2").exists() and job.get_status(refresh=True) == "failed", 20, "two failures")
    registry.requeue(job.id)
    (run_id,) = eventually(lambda: place.runs("ses_requeue"), 20, "the success")
    assert run_id != opened.run_id
    listed = place.stack.http.get("/runs", params={"session": "ses_requeue"}).json()["runs"]
    assert [run["status"] for run in listed] == ["completed", "failed", "failed"]


def test_a_job_put_back_whose_run_is_still_there_goes_on_with_it(place: Place, tmp_path: Path) -> None:
    opened = place.client.open(session="ses_alive")
    # Killed without a try left: RQ calls it failed at once, and the lease is not over yet.
    job = failed(place, "killed", str(tmp_path), ref=opened.ref)
    assert row(place.stack, opened.run_id).status == "running"
    FailedJobRegistry(queue=place.queue).requeue(job.id)
    assert ended(place.stack, opened.run_id).attempt == 2
    assert place.runs("ses_alive") == [opened.run_id]


def test_a_job_that_asks_to_be_tried_again_by_what_it_returns_goes_on_with_its_run(
    place: Place, tmp_path: Path
) -> None:
    opened = place.client.open(session="ses_returns")
    place.enqueue("returns_retry", str(tmp_path), ref=opened.ref)
    assert ended(place.stack, opened.run_id).output == "Done."
    assert row(place.stack, opened.run_id).attempt == 2


# Workers that are lost.


def lost_worker(place: Place, run_id: str) -> None:
    """Kill the worker that executes the run's job, and its horse."""
    reach(place.stack, run_id, "custom.tick")
    process = next(process for process in reversed(place.processes) if process.log.name.startswith("rq-"))
    place.processes.remove(process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in family:
        child.kill()


def noticed(place: Place) -> None:
    """What a worker of RQ does about such jobs once their last sign of life is over, which takes it minutes."""
    StartedJobRegistry(queue=place.queue).cleanup(timestamp=time.time() + 3_600)


def test_a_job_whose_worker_was_lost_goes_on_with_its_run_however_late_rq_notices(place: Place, tmp_path: Path) -> None:
    opened = place.client.open(session="ses_late")
    place.enqueue("slow_once", str(tmp_path), ref=opened.ref, retry=Retry(max=1))
    lost_worker(place, opened.run_id)
    time.sleep(LEASE_SECONDS + 4)  # more than any writer gets that does not ask for more
    assert row(place.stack, opened.run_id).status == "running"
    noticed(place)
    place.worker()
    assert ended(place.stack, opened.run_id).output == "Made."
    assert [step["reason"] for step in payloads(place.stack, opened.run_id, "run.step")] == ["retry"]


def test_one_that_nobody_will_try_again_has_lost_its_run_as_soon_as_ever(place: Place, tmp_path: Path) -> None:
    opened = place.client.open(session="ses_gone")
    place.enqueue("slow_once", str(tmp_path), ref=opened.ref)
    lost_worker(place, opened.run_id)
    assert ended(place.stack, opened.run_id, "failed").error["code"] == "writer_lost"
    noticed(place)
    place.worker()


def test_a_try_that_comes_after_the_longest_lease_makes_the_report_all_the_same(
    stack: StackMaker, tmp_path: Path
) -> None:
    own = stack(EXTERNAL_LEASE_SECONDS="2", EXTERNAL_LEASE_MAX_SECONDS="2")
    own.start_web()
    own.start_worker()
    with Redis.from_url(own.env["REDIS_URL"]) as redis, Runtail(own.url) as client:
        place = Place(own, redis, client)
        opened = client.open()
        place.worker()
        job = place.enqueue("slow_once", str(tmp_path), ref=opened.ref, retry=Retry(max=1))
        lost_worker(place, opened.run_id)
        ended(own, opened.run_id, "failed")
        noticed(place)
        worker = place.worker()
        try:
            eventually(lambda: job.get_status(refresh=True) == "finished", 30, "the report")
            assert job.return_value() == "Made."
        finally:
            worker.stop(seconds=20)
