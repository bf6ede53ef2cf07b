"""The client of a Runtail server: follow runs, and write runs from any Python process.

client = Runtail("https://runs.example.com", KEY)
with client.run(user="alice", input={"month": "May"}) as run:
    rows = run.tool("query", query, "May", label="Reading the books")
    run.output = run.stream(ask_model(rows))
"""

from runtail_client.block import RunBlock
from runtail_client.client import Opened, Runtail
from runtail_client.current import current_run, emit
from runtail_client.errors import (
    Cancelled,
    InvalidEvent,
    Refused,
    RunEnded,
    RunFailed,
    RuntailError,
    ToolError,
    Unreachable,
    WriterLost,
)
from runtail_client.handles import Approval, Message, Step
from runtail_client.run import Run

__all__ = [
    "Approval",
    "Cancelled",
    "InvalidEvent",
    "Message",
    "Opened",
    "Refused",
    "Run",
    "RunBlock",
    "RunEnded",
    "RunFailed",
    "Runtail",
    "RuntailError",
    "Step",
    "ToolError",
    "Unreachable",
    "WriterLost",
    "current_run",
    "emit",
]
