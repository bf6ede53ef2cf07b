"""A run that an earlier version has left where it waits goes on, and comes to what it would have come to."""

import json
from typing import Any

import pytest

from tests.conftest import StackMaker
from tests.golden_journals import Left, golden, unended, waits
from tests.harness import Stack
from tests.stored import row

END = golden("end")
DRAWN = ("now", "random", "sleep")
"""Kinds of calls whose results are the time or chance."""


@pytest.fixture(scope="module")
def played(module_stack: StackMaker) -> Stack:
    stack = module_stack()
    stack.start_web()
    stack.start_worker()
    return stack


def said(stored: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """What the agent has said: (op, type, payload), without times, sorted by op; the pieces of a text as one."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    for event in sorted(stored["run_events"], key=lambda event: (event["op"], int(event["seq"]))):
        payload = json.loads(event["e"])["payload"]
        payload.pop("duration_ms", None)
        if found and event["type"] == "message.delta" and found[-1][:2] == (event["op"], event["type"]):
            found[-1][2]["text"] += payload["text"]
        elif event["op"]:
            found.append((event["op"], event["type"], payload))
    return found


def output(stored: dict[str, Any]) -> Any:
    return json.loads(stored["runs"][0]["output"])


def recorded(stored: dict[str, Any]) -> list[dict[str, Any]]:
    """Its journal by op, without times and what was drawn."""
    ops = [{**op, "epoch": 0, "created_at": ""} for op in stored["run_ops"]]
    return sorted(({**op, "result": ""} if op["kind"] in DRAWN else op for op in ops), key=lambda op: str(op["op"]))


def test_there_is_a_golden_journal_of_every_wait() -> None:
    assert len(waits()) == 5
    kinds = {op["kind"] for op in END["run_ops"]}
    assert kinds == {"tool", "message", "sleep", "inputs", "now", "random"}


@pytest.mark.parametrize("name", waits())
def test_a_run_that_the_version_before_has_suspended_goes_on(played: Stack, name: str) -> None:
    before = golden(name)
    left = Left.restore(played, before)
    for _ in left.plays_on():
        pass
    stored = left.stored()
    assert output(stored)["found"] == output(END)["found"]
    assert sorted(stored["effects"]) == sorted(END["effects"]), "no tool was called twice, none was left out"
    assert said(stored) == said(END)
    assert recorded(stored) == recorded(END)
    kept = [op for op in before["run_ops"] if op["kind"] != "sleep"]
    assert [op for op in stored["run_ops"] if op in kept] == kept, "what was kept stays"
    assert stored["run_events"][: len(before["run_events"])] == before["run_events"]


@pytest.mark.parametrize(
    ("agent", "chars", "text"),
    [("another_text", 5_000, "x" * 5_000), ("says_sorry", 1, "sorry"), ("says_sorry", 0, "half a sen")],
)
def test_the_text_that_is_returned_is_said_once_wherever_its_worker_dies(
    played: Stack, agent: str, chars: int, text: str
) -> None:
    whole = Left.begin(played, agent, chars=chars)
    for _ in whole.plays_on():
        pass
    stored = whole.stored()
    first = next(n for n, event in enumerate(stored["run_events"]) if event["type"] == "message.started")
    for upto in range(first, len(stored["run_events"])):
        left = Left.restore(played, unended(stored, upto))
        for _ in left.plays_on():
            pass
        run = row(played, left.run_id)
        said = [message["text"] for message in run.state["messages"] if message["status"] != "abandoned"]
        assert said == [run.output] == [text], upto


def test_a_whole_journal_is_replayed_without_a_word(played: Stack) -> None:
    left = Left.restore(played, unended(END))
    for _ in left.plays_on():
        pass
    stored = left.stored()
    assert stored["effects"] == END["effects"]
    assert said(stored) == said(END)
    assert output(stored) == output(END)
