"""What a run holds is free as soon as it has ended: megabytes of it would wait for the garbage collector."""

import gc
import logging
from collections.abc import Callable, Iterator

import gevent
import pytest
from marshmallow import Schema

from app.storage.log_writer import LogWriter
from app.wiring import Services
from runtail import Run
from runtail.agent import Agent
from runtail.current import OUTSIDE
from runtail.tools import ToolError
from tests.harness import pending_run
from workers.execution.active_run import ActiveRun
from workers.execution.executor import Executor
from workers.execution.flusher import Flusher
from workers.execution.outbox import Outbox

HELD = (Outbox, ActiveRun, LogWriter, Run)


def works(run: Run) -> object:
    with run.step("Work"):
        run.tool("add", lambda a: a + 1, 1)
        run.parallel(lambda branch: branch.tool("left", str), lambda branch: branch.stream(["a text"]))
    return {"done": True}


def raises(run: Run) -> object:
    with run.step("Work"), run.message() as message:
        message.write("a text")
        raise ZeroDivisionError


def gives_what_is_refused(run: Run) -> object:
    run.emit("custom." + "X" * 1_000_000, {})
    return None


def has_a_tool_that_fails(run: Run) -> object:
    def fail() -> None:
        raise ToolError("no_stock", "None is left.")

    run.tool("fail", fail)
    return None


def waits(run: Run) -> object:
    run.approve("May I?")
    return None


@pytest.fixture
def without_collector() -> Iterator[None]:
    logging.disable()  # pytest keeps what is logged, and so what was raised
    gc.collect()
    gc.disable()
    yield
    gc.enable()
    logging.disable(logging.NOTSET)


def held() -> list[object]:
    return [thing for thing in gc.get_objects() if isinstance(thing, HELD) and thing is not OUTSIDE]


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize(
    ("function", "status"),
    [
        (works, "completed"),
        (raises, "failed"),
        (gives_what_is_refused, "failed"),
        (has_a_tool_that_fails, "failed"),
        (waits, "waiting"),
    ],
)
def test_nothing_of_a_run_that_has_ended_waits_for_the_collector(
    apart: Services, function: Callable[[Run], object], status: str
) -> None:
    flusher = Flusher(apart.ownership)
    flusher.start()
    executor = Executor(apart, flusher, {"held": Agent("held", function, Schema, "1")}, "w")
    run_ids = [pending_run(apart, "held").id for _ in range(3)]
    for run_id in run_ids:
        executor.execute(run_id)
    assert {getattr(apart.store.get(run_id), "status", None) for run_id in run_ids} == {status}
    with gevent.Timeout(5):
        while held():
            gevent.sleep(0.01)  # the flusher has to finish its turn
