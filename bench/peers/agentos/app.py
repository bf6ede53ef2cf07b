"""AgentOS with one agent, whose model is a program: numbered deltas at a pace."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

from agno.agent import Agent
from agno.db.postgres import PostgresDb
from agno.models.base import Model
from agno.models.response import ModelResponse
from agno.os import AgentOS, QueueConfig


@dataclass
class Numbers(Model):
    """Says what the last message asks for: {"count": …, "interval_ms": …}."""

    id: str = "numbers"

    async def ainvoke_stream(self, *args: Any, **named: Any) -> AsyncIterator[ModelResponse]:
        """The deltas."""
        messages = named.get("messages") or args[0]
        asked = json.loads(messages[-1].content)
        for number in range(asked["count"]):
            yield ModelResponse(content=f"#{number}# and some words ")
            await asyncio.sleep(asked["interval_ms"] / 1_000)

    def invoke_stream(self, *args: Any, **named: Any) -> Iterator[ModelResponse]:
        """Nobody asks for it."""
        raise NotImplementedError

    def invoke(self, *args: Any, **named: Any) -> ModelResponse:
        """Nobody asks for it."""
        raise NotImplementedError

    async def ainvoke(self, *args: Any, **named: Any) -> ModelResponse:
        """Nobody asks for it."""
        raise NotImplementedError

    def _parse_provider_response(self, response: Any, **named: Any) -> ModelResponse:
        raise NotImplementedError

    def _parse_provider_response_delta(self, response: Any) -> ModelResponse:
        raise NotImplementedError


db = PostgresDb(db_url=os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:"))
agent = Agent(id="numbers", model=Numbers(), db=db, telemetry=False)
# Attempts: a run whose process dies is executed again. Redis: its events outlive the process.
queue = QueueConfig(durable=True, redis=os.environ["REDIS_URL"], max_attempts=3)
app = AgentOS(agents=[agent], db=db, queue=queue, telemetry=False).get_app()
