"""Whoever can write to Redis decides what a worker executes first, and never what is executed."""

import json
import pickle
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Queue, Repeat, Retry
from rq.job import Job
from rq.registry import StartedJobRegistry

from app.identifiers import new_id
from app.storage.run_queue import ISOLATED_QUEUE, JOB, QUEUE
from app.wiring import Services
from tests.conftest import StackMaker
from tests.harness import Process, Stack, eventually

ALLOWED_SECONDS = 30

Plant = Callable[[Queue, str], None]


class Marks:
    """Leaves a mark where it is unpickled."""

    def __reduce__(self) -> Any:
        return eval, ("__import__('foreign_code').mark()",)


def _foreign_function(queue: Queue, id: str) -> None:
    queue.enqueue("foreign_code.mark", job_id=id)


def _foreign_pickle(queue: Queue, id: str) -> None:
    queue.connection.hset(Job.key_for(id), mapping={"data": pickle.dumps(Marks()), "origin": queue.name})
    queue.push_job_id(id)


def _compressed_foreign_pickle(queue: Queue, id: str) -> None:
    queue.enqueue(JOB, Marks(), job_id=id)


def _foreign_meta(queue: Queue, id: str) -> None:
    queue.enqueue(JOB, id[:30], job_id=id, meta={"x": Marks()})


def _callbacks_of_ours(queue: Queue, id: str) -> None:
    names = ("success", "failure", "stopped")
    queue.enqueue(JOB, id[:30], job_id=id)
    queue.connection.hset(Job.key_for(id), mapping={f"{name}_callback_name": "foreign_code.mark" for name in names})


def _failure_callback(queue: Queue, id: str) -> None:
    queue.enqueue("no.such.function", job_id=id)
    queue.connection.hset(Job.key_for(id), "failure_callback_name", "foreign_code.mark")


def _retry_and_repeat(queue: Queue, id: str) -> None:
    queue.enqueue("foreign_code.mark_and_fail", job_id=id, retry=Retry(max=3))
    queue.enqueue("foreign_code.mark", job_id=f"{id}1", repeat=Repeat(times=2, interval=1))


def _dependent(queue: Queue, id: str) -> None:
    first = queue.enqueue(JOB, id[:30], job_id=id)
    queue.enqueue("foreign_code.mark", job_id=f"{id}1", depends_on=first)


def _abandoned(queue: Queue, id: str) -> None:
    """For RQ's maintenance, which calls the failure callback of a job that was started long ago."""
    job = Job.create(
        JOB,
        (id[:30],),
        connection=queue.connection,
        id=id,
        origin=queue.name,
        status="started",  # type: ignore[arg-type]
    )
    job.save()
    queue.connection.hset(Job.key_for(id), "failure_callback_name", "foreign_code.mark")
    queue.connection.zadd(StartedJobRegistry(queue=queue).key, {f"{id}:x": time.time() - 1_000})
    queue.connection.rpush(queue.intermediate_queue_key, id)


def _json_of_another_serializer(queue: Queue, id: str) -> None:
    Queue(queue.name, connection=queue.connection, serializer="json").enqueue("foreign_code.mark", job_id=id)


FORMS: list[Plant] = [
    _foreign_function,
    _foreign_pickle,
    _compressed_foreign_pickle,
    _foreign_meta,
    _callbacks_of_ours,
    _failure_callback,
    _retry_and_repeat,
    _dependent,
    _abandoned,
    _json_of_another_serializer,
]
NO_RUNS = [
    b"foreign",
    b"\xff\xfe\x00",
    b"run_\x1b[2J-0",
    b"run_01JXEXAMPLE-0\nWorker is fine",
    b"../../etc-1",
    b"",
    b"run_01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "run_01ARZ3NDEKTSV4RRFFQ69G5FAV-\N{ARABIC-INDIC DIGIT ONE}".encode(),
    b"run_01ARZ3NDEKTSV4RRFFQ69G5FAV-0\n",
    b"x" * 100_000,
]
"""Ids in a queue that are no run's."""


class Played:
    """A worker on a Redis to which somebody else writes."""

    def __init__(self, stack: Stack, worker: Process, queue: Queue, agent: tuple[str, dict[str, Any]], mark: Path):
        self.stack, self.worker, self.queue, self.mark = stack, worker, queue, mark
        self._agent = agent

    def an_honest_run_completes(self) -> None:
        """What was planted before it has been dealt with by then."""
        run = self.stack.ended(self.stack.start(*self._agent), ALLOWED_SECONDS)
        assert (run["status"], run["attempt"]) == ("completed", 1)

    def nothing_foreign_has_run(self) -> None:
        assert not self.mark.exists()
        assert self.worker.popen.poll() is None


@pytest.fixture(
    scope="module",
    params=[
        (QUEUE, (), ("emit", {"count": 1, "interval_ms": 0})),
        (ISOLATED_QUEUE, ("--isolated",), ("isolated_words", {})),
    ],
    ids=["shared", "isolated"],
)
def played(
    request: pytest.FixtureRequest, module_stack: StackMaker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Played]:
    name, arguments, agent = request.param
    mark = tmp_path_factory.mktemp("foreign") / "mark"
    stack = module_stack(FOREIGN_MARK=str(mark))
    stack.start_web()
    worker = stack.start_worker(*arguments)
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        yield Played(stack, worker, Queue(name, connection=redis), agent, mark)


@pytest.mark.parametrize("plant", FORMS, ids=lambda plant: plant.__name__.strip("_"))
def test_what_a_job_holds_is_never_called_nor_unpickled(played: Played, plant: Plant) -> None:
    plant(played.queue, f"{new_id('run')}-0")
    plant(played.queue, "foreign-0")
    played.an_honest_run_completes()
    played.nothing_foreign_has_run()


def test_what_was_planted_while_no_worker_ran_is_not_called_at_its_start(played: Played) -> None:
    """RQ does its maintenance at the start."""
    for plant in FORMS:
        plant(played.queue, f"{new_id('run')}-0")
    arguments = ("--isolated",) if played.queue.name == ISOLATED_QUEUE else ()
    second = played.stack.start_worker(*arguments)
    played.an_honest_run_completes()
    played.nothing_foreign_has_run()
    second.stop()


@pytest.mark.parametrize("id", NO_RUNS, ids=range(len(NO_RUNS)))
def test_an_id_that_is_no_runs_is_dropped_and_logged_in_one_short_line(played: Played, id: bytes) -> None:
    before = len(played.worker.log.read_bytes())
    played.queue.connection.rpush(played.queue.key, id)
    played.an_honest_run_completes()
    logged = eventually(lambda: played.worker.log.read_bytes()[before:]).splitlines()
    (line,) = [line for line in logged if b"is no run's" in line]
    assert len(line) < 400
    assert b"\x1b" not in line
    assert not played.queue.connection.lpos(played.queue.key, id.decode("latin-1"))


def test_an_id_of_a_run_that_is_not_pending_does_nothing(played: Played) -> None:
    run_id = played.stack.start(*played._agent)
    ended = played.stack.ended(run_id, ALLOWED_SECONDS)
    for epoch in (0, 1, 2, 99):
        played.queue.connection.rpush(played.queue.key, f"{run_id}-{epoch}")
    played.an_honest_run_completes()
    assert played.stack.read(run_id) == ended


@pytest.mark.parametrize("command", ["shutdown", "kill-horse", "stop-job", "import"])
def test_commands_by_way_of_redis_reach_no_worker(played: Played, command: str) -> None:
    redis: Redis = played.queue.connection
    names = [key.decode().rpartition(":")[2] for key in redis.smembers("rq:workers")]
    assert names
    for name in names:
        redis.publish(f"rq:pubsub:{name}", json.dumps({"command": command, "job_id": "foreign"}))
    played.an_honest_run_completes()
    played.nothing_foreign_has_run()


def test_foreign_ids_in_a_queue_hide_none_of_those_that_wait(apart: Services) -> None:
    """The janitor looks through the queues for runs that have no job."""
    run_id = new_id("run")
    apart.queue.enqueue(run_id, 3, QUEUE)
    for id in NO_RUNS:
        apart.queue.redis.rpush(f"rq:queue:{QUEUE}", id)
    assert apart.queue.waiting() == {run_id}
