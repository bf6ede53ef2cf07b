"""The shape of a run's state. docs/protocol.md lists the members of the lists' items.

Responsible for the shape and the first value. Not responsible for how events move it (`rules`, `reducer`).
"""

from collections.abc import Mapping
from typing import Any, TypedDict

Item = dict[str, Any]


class Answer(TypedDict):
    """The text of the last assistant message that is not abandoned; status draft | final."""

    text: str
    status: str


class State(TypedDict):
    """Plain JSON. docs/protocol.md lists the members of the lists' items."""

    run_id: str
    status: str
    agent: str | None
    attempt: int
    last_seq: int
    last_ts: str | None
    plan: list[Item]
    steps: list[Item]
    messages: list[Item]
    answer: Answer
    tool_calls: list[Item]
    approvals: list[Item]
    sources: list[Item]
    checks: list[Item]
    subagents: list[Item]
    inputs: list[Item]
    context: Item
    usage: Item
    output: Any
    error: Item | None
    digest: str | None


ENDED = frozenset({"completed", "failed", "cancelled"})
"""The statuses of a run that has its terminal event."""


def initial(run_id: str) -> State:
    """The state before the first event."""
    return {
        "run_id": run_id,
        "status": "pending",
        "agent": None,
        "attempt": 0,
        "last_seq": 0,
        "last_ts": None,
        "plan": [],
        "steps": [],
        "messages": [],
        "answer": {"text": "", "status": "draft"},
        "tool_calls": [],
        "approvals": [],
        "sources": [],
        "checks": [],
        "subagents": [],
        "inputs": [],
        "context": {},
        "usage": {},
        "output": None,
        "error": None,
        "digest": None,
    }


def streamed_output(state: Mapping[str, Any]) -> Item:
    """The output of a run that returned nothing: what it streamed."""
    return {"text": state["answer"]["text"], "sources": state["sources"], "checks": state["checks"]}


def output_of(state: Mapping[str, Any], payload: Mapping[str, Any]) -> Any:
    """The output that a terminal event means; None for a run that failed or was cancelled.

    :param state: the fold of every event before it.
    """
    if payload.get("output") is None and payload.get("output_is") == "answer":
        return state["answer"]["text"]
    if payload.get("output") is None and payload.get("output_is") == "streamed":
        return streamed_output(state)
    return payload.get("output")
