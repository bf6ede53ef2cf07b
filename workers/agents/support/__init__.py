"""The demo's support agent: a shop's customer asks, and gets an answer with its sources."""

from workers.agents.support.agent import support

__all__ = ["support"]
