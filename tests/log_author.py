"""Writes a run's log past agents and workers: the events that a test wants, when it wants them."""

from typing import Any

from redis import Redis

from app.protocol.events import Event, encode
from app.storage.event_log import Append, meta_key, stream_key
from tests.harness import Stack, pending_run


class LogAuthor:
    """A run without an owner, and the log that the test writes to it. No worker may be about."""

    def __init__(self, stack: Stack, **more: Any) -> None:
        self._stack = stack
        self.run_id = pending_run(stack.services, **more).id
        self.events: list[Event] = stack.services.store.events(self.run_id, 0, 1)

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

    def end(self) -> None:
        """Append the terminal event. The row is left as it is."""
        event = self._next(1, "run.failed", {"error": {"code": "agent_error", "message": ""}, "digest": "0" * 64})
        self.events.append(event)
        self._append([event])

    def append_silently(self, count: int = 1) -> None:
        """Append without ringing."""
        with Redis.from_url(self._stack.env["REDIS_URL"]) as redis:
            for event in self.make(count):
                redis.xadd(stream_key(self.run_id), {"t": event.type, "e": event.text, "o": event.op}, f"{event.seq}-0")
                redis.hset(meta_key(self.run_id), "head", event.seq)

    def archive(self) -> None:
        """Commit all that was written, as the run's owner would."""
        with self._stack.services.database.session() as db:
            sql = "INSERT INTO run_events VALUES (%s, %s, %s, now(), %s, %s) ON CONFLICT DO NOTHING"
            for event in self.events:
                db.execute_sql(sql, (self.run_id, event.seq, event.type, event.op, event.text))

    def _next(self, offset: int, type: str, payload: dict[str, Any]) -> Event:
        return encode(self.run_id, self.head + offset, type, payload)

    def _append(self, events: list[Event]) -> None:
        self._stack.services.log.append(Append(self.run_id, 0, events))
