"""What a worker takes from RQ's queue: several hints at a time, as far as it has room, and none is lost with it."""

from collections.abc import Callable, Iterator

import pytest
import redis
from rq.job import Job
from rq.queue import Queue

from app.errors import StoreUnavailable
from app.identifiers import new_id
from app.storage.run_queue import JOB, NO_TIMEOUT, QUEUE
from app.wiring import Services
from workers.gevent_worker import GeventWorker
from workers.hints import HINTS_PER_TAKE, HintQueue


class Executor:
    """What a worker asks of its executor. Whether its heartbeat gets through follows a script."""

    def __init__(self, *answers: Callable[[], bool]) -> None:
        self.executed: list[str] = []
        self._answers = iter(answers)

    def gets_through(self) -> bool:
        return next(self._answers)()

    def execute(self, run_id: str) -> None:
        self.executed.append(run_id)


def worked(services: Services, *answers: Callable[[], bool]) -> list[str]:
    """The runs that a worker has executed until it was stopped: when it asks more than there are answers."""

    def stop() -> bool:
        worker.stop()
        return False

    executor = Executor(*answers, stop)
    worker = GeventWorker(services.queue.redis, executor, slots=3)  # type: ignore[arg-type]
    worker.run()
    worker.join()
    return executor.executed


def yes() -> bool:
    return True


def redis_breaks() -> bool:
    raise redis.ConnectionError


@pytest.fixture
def queue(apart: Services) -> Iterator[HintQueue]:
    """The queue as a worker has it, empty."""
    apart.queue.redis.flushdb()
    yield HintQueue(QUEUE, connection=apart.queue.redis)
    apart.queue.redis.flushdb()


def hints(services: Services, count: int) -> list[str]:
    """Ids of so many jobs that were just enqueued, in order."""
    runs = [new_id("run") for _ in range(count)]
    for run_id in runs:
        services.queue.enqueue(run_id, 0, QUEUE)
    return [f"{run_id}-0" for run_id in runs]


def given(queue: HintQueue, count: int) -> list[str]:
    """The ids of the next jobs that RQ's loop is given."""
    found = [HintQueue.dequeue_any([queue], 1, queue.connection) for _ in range(count)]
    return [job.id for job, _ in filter(None, found)]


def test_hints_come_in_their_order_and_their_jobs_are_gone(apart: Services, queue: HintQueue) -> None:
    ids = hints(apart, 3 * HINTS_PER_TAKE + 2)
    queue.room = 100
    assert given(queue, len(ids)) == ids
    assert apart.queue.redis.keys("rq:job:*") == []
    assert apart.queue.waiting() == set()


@pytest.mark.parametrize(("room", "taken"), [(1, 1), (3, 3), (100, HINTS_PER_TAKE)])
def test_a_worker_takes_no_more_at_a_time_than_it_has_room_for(
    apart: Services, queue: HintQueue, room: int, taken: int
) -> None:
    ids = hints(apart, 2 * HINTS_PER_TAKE)
    queue.room = room
    assert given(queue, 1) == ids[:1]
    assert len(apart.queue.waiting()) == len(ids) - taken


def test_what_was_taken_and_not_given_out_goes_back_before_all_others(apart: Services, queue: HintQueue) -> None:
    ids = hints(apart, HINTS_PER_TAKE + 1)
    queue.room = HINTS_PER_TAKE
    given(queue, 2)
    queue.put_back()
    queue.put_back()
    other = HintQueue(QUEUE, connection=apart.queue.redis)
    assert given(other, len(ids) - 2) == ids[2:]


def test_a_worker_that_is_stopped_before_it_may_claim_leaves_the_hints_to_others(
    apart: Services, queue: HintQueue
) -> None:
    ids = hints(apart, 4)
    assert worked(apart, yes) == [ids[0].removesuffix("-0")]
    assert given(queue, 3) == ids[1:]


def test_a_worker_whose_loop_was_given_up_by_rq_begins_it_anew(apart: Services, queue: HintQueue) -> None:
    ids = hints(apart, 4)
    assert worked(apart, yes, redis_breaks, yes, yes) == [id.removesuffix("-0") for id in ids[:3]]
    assert given(queue, 1) == ids[3:]


def test_a_job_is_what_rq_makes_of_it_so_that_older_workers_can_read_it(apart: Services, queue: HintQueue) -> None:
    (id,) = hints(apart, 1)
    ours = apart.queue.redis.hgetall(Job.key_for(id))
    options = {"job_timeout": NO_TIMEOUT, "result_ttl": 0, "failure_ttl": 60, "description": id[:-2]}
    Queue(QUEUE, connection=queue.connection).enqueue(JOB, id[:-2], job_id=id, **options)
    theirs = apart.queue.redis.hgetall(Job.key_for(id))
    passing = {b"created_at", b"enqueued_at"}
    assert ours.keys() == theirs.keys()
    assert {k: v for k, v in ours.items() if k not in passing} == {k: v for k, v in theirs.items() if k not in passing}


def test_a_queue_that_redis_refuses_is_said_so(apart: Services, queue: HintQueue) -> None:
    apart.queue.redis.set(Queue(QUEUE, connection=queue.connection).key, "no list")
    with pytest.raises(StoreUnavailable):
        apart.queue.enqueue(new_id("run"), 0, QUEUE)
    apart.queue.redis.flushdb()
    assert len(given(queue, len(hints(apart, 2)))) == 2


def test_rq_shows_the_jobs_that_wait(apart: Services, queue: HintQueue) -> None:
    (id,) = hints(apart, 1)
    (shown,) = Queue(QUEUE, connection=queue.connection).jobs
    assert isinstance(shown, Job)
    assert (shown.id, shown.origin, shown.get_status().value) == (id, QUEUE, "queued")
    assert shown.description == id.removesuffix("-0")
    assert shown.enqueued_at is not None
    assert [q.name for q in Queue.all(connection=queue.connection)] == [QUEUE]
