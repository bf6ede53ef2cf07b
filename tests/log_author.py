"""Writes a run's log past agents and workers: the events that a test wants, when it wants them."""

from typing import Any

from redis import Redis

from app.errors import AgentError
from app.protocol.ending import Ending
from app.protocol.events import Event, encode
from app.storage.event_log import Append, meta_key, stream_key
from tests.harness import Stack, pending_run


class LogAuthor:
    """A run without an owner, and the log that the test writes to it. No worker may be about."""

    def __init__(self, stack: Stack, **more: Any) -> None:
        self._stack = stack
        self.run_id = pending_run(stack.services, **more).id
        self.events: list[Event] = stack.services.store.events(self.run_id, 0, 1)
        self.archived = 1
        """Seq up to which Postgres has it."""

    @property
    def path(self) -> str:
        """Where its windows open."""
        return f"/runs/{self.run_id}/events"

    @property
    def head(self) -> int:
        """Seq of the last event."""
        return self.events[-1].seq

    def make(self, count: int = 1, text: str = "") -> list[Event]:
        """The next events, not appended yet."""
        made = [self._next(n, "custom.tick", {"n": n, "text": text}) for n in range(1, count + 1)]
        self.events += made
        return made

    def append(self, count: int = 1, text: str = "") -> None:
        """Append that many events at once."""
        self._append(self.make(count, text))

    def write(self, type: str, payload: dict[str, Any]) -> None:
        """Append an event of any type."""
        event = self._next(1, type, payload)
        self.events.append(event)
        self._append([event])

    def end(self) -> None:
        """Append the terminal event. The row is left as it is."""
        self.write("run.failed", {"error": {"code": "agent_error", "message": ""}, "digest": "0" * 64})

    def append_silently(self, count: int = 1, text: str = "") -> None:
        """Append without ringing."""
        with Redis.from_url(self._stack.env["REDIS_URL"]) as redis:
            for event in self.make(count, text):
                redis.xadd(stream_key(self.run_id), {"t": event.type, "e": event.text, "o": event.op}, f"{event.seq}-0")
                redis.hset(meta_key(self.run_id), "head", event.seq)

    def archive(self) -> None:
        """Commit all that was written, as the run's owner would."""
        with self._stack.services.database.session() as db:
            sql = "INSERT INTO run_events VALUES (%s, %s, %s, now(), %s, %s) ON CONFLICT DO NOTHING"
            for event in self.events:
                if event.seq > self.archived:
                    db.execute_sql(sql, (self.run_id, event.seq, event.type, event.op, event.text))
        self.archived = self.head

    def trim(self, first: int) -> None:
        """Have Redis forget what is before that seq, which is archived."""
        assert first <= self.archived + 1
        with Redis.from_url(self._stack.env["REDIS_URL"]) as redis:
            redis.xtrim(stream_key(self.run_id), minid=f"{first}-0", approximate=False)

    def commit_end(self) -> None:
        """End the run in Postgres, as an owner does first. Nothing may be appended after it but by `publish_end`."""
        ownership = self._stack.services.ownership
        claimed = ownership.claim(self.run_id, "the test")
        assert claimed is not None
        ownership.end(claimed[1], Ending.failed(AgentError("The test ends it.")))
        self.events += claimed[1].unarchived()
        ownership.commit_end(claimed[1])
        self.archived = self.head

    def publish_end(self) -> None:
        """Append what `commit_end` has committed."""
        self._stack.services.ownership.publish(self.run_id, 1)

    def _next(self, offset: int, type: str, payload: dict[str, Any]) -> Event:
        return encode(self.run_id, self.head + offset, type, payload)

    def _append(self, events: list[Event]) -> None:
        self._stack.services.log.append(Append(self.run_id, 0, events))
