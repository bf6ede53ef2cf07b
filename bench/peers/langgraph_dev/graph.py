"""A graph of one node: numbered deltas at a pace."""

import asyncio
from typing import Any, TypedDict

from langgraph.graph import START, StateGraph
from langgraph.types import StreamWriter


class State(TypedDict):
    """What the run was started with."""

    count: int
    interval_ms: float


async def say(state: State, writer: StreamWriter) -> dict[str, Any]:
    """Write them, and then the end."""
    for number in range(state["count"]):
        writer({"text": f"#{number}# and some words "})
        await asyncio.sleep(state["interval_ms"] / 1_000)
    writer({"end": True})
    return {}


graph = StateGraph(State).add_node("say", say).add_edge(START, "say").compile()
