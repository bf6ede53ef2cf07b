"""Agents that the benchmarks execute, beside `emit`: one that asks, one that sleeps, one that counts, and so on.

Workers find them on PYTHONPATH as they would find any other distribution's.
"""

import gc
import threading
from collections.abc import Iterator

import gevent
import httpx
from marshmallow import Schema, fields

from app.storage.run_store import KEPT_MAX
from bench.standing import watch
from runtail import Run, agent
from workers.execution.active_run import ActiveRun

watch()


class AskInput(Schema):
    """After how many seconds nobody can decide any more; null: never."""

    expires_in = fields.Float(load_default=None, allow_none=True)


class SleepInput(Schema):
    """For how long."""

    seconds = fields.Float(required=True)


class FillInput(Schema):
    """How much of what an external run may keep."""

    share = fields.Float(required=True)


class NumbersInput(Schema):
    """How many deltas, and the pause after each; whether they are one message's text or events of their own."""

    count = fields.Integer(required=True)
    interval_ms = fields.Float(required=True)
    text = fields.Boolean(load_default=False)


class ListenInput(Schema):
    """To whom."""

    url = fields.String(required=True)


@agent("bench_ask", input=AskInput)
def ask(run: Run) -> object:
    """Asks for an approval, and says an event of its own once it has it."""
    approval = run.approve("Go on?", expires_in=run.input["expires_in"])
    run.emit("custom.went_on", {"decision": approval.decision})
    return {"approved": approval.approved}


@agent("bench_sleep", input=SleepInput)
def sleep(run: Run) -> object:
    """Sleeps."""
    run.sleep(run.input["seconds"])
    return {"slept": True}


@agent("bench_numbers", input=NumbersInput)
def numbers(run: Run) -> object:
    """Says numbered deltas at a pace: what every server of `runtail bench peers` does."""
    if run.input["text"]:
        with run.message() as message:
            for number in range(run.input["count"]):
                message.write(_delta(number))
                _pause(run)
        return None
    for number in range(run.input["count"]):
        run.emit("custom.delta", {"text": _delta(number)})
        _pause(run)
    return None


@agent("bench_listen", input=ListenInput)
def listen(run: Run) -> object:
    """Streams what a provider answers."""
    run.stream(_answer(run.input["url"]))
    return None


@agent("bench_fill", input=FillInput)
def fill(run: Run) -> object:
    """Has many steps, sources, checks, messages and a long answer, and returns what it has streamed."""
    count = int(KEPT_MAX * run.input["share"])
    for n in range(count):
        with run.step(f"Step {n}"):
            run.source("Some title " * 8, url=f"https://example.com/{n}")
            run.check("Some check " * 8, passed=True)
    for n in range(count // 100):
        run.stream([f"Message {n}"])
    run.stream("some words é " * 20 for _ in range(2 * count))
    return None


def _delta(number: int) -> str:
    return f"#{number}# and some words "


def _pause(run: Run) -> None:
    if run.input["interval_ms"]:
        run.sleep(run.input["interval_ms"] / 1_000)


def _answer(url: str) -> Iterator[str]:
    with httpx.Client(timeout=None) as client, client.stream("GET", url) as answer:
        yield from answer.iter_text()


@agent("bench_census", input=Schema)
def census(run: Run) -> object:
    """Counts what is alive in this worker, this run included."""
    gc.collect()
    alive = gc.get_objects()
    greenlets = sum(isinstance(found, gevent.Greenlet) and not found.dead for found in alive)
    executions = sum(isinstance(found, ActiveRun) for found in alive)
    return {"greenlets": greenlets, "executions": executions, "threads": len(threading.enumerate())}
