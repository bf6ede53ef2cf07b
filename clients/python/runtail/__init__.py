"""The SDK of Runtail: what an agent and a job are written with. The client of a server is `runtail.client`."""

from runtail.agent import Agent, agent
from runtail.current import current_run, emit
from runtail.errors import (
    Cancelled,
    InvalidCall,
    InvalidEvent,
    Refused,
    RunEnded,
    RunFailed,
    RuntailError,
    ToolError,
    Unreachable,
    WriterLost,
)
from runtail.handles import Approval, Message, Step
from runtail.run import Run

__all__ = [
    "Agent",
    "Approval",
    "Cancelled",
    "InvalidCall",
    "InvalidEvent",
    "Message",
    "Refused",
    "Run",
    "RunEnded",
    "RunFailed",
    "RuntailError",
    "Step",
    "ToolError",
    "Unreachable",
    "WriterLost",
    "agent",
    "current_run",
    "emit",
]
