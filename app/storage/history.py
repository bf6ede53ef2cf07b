"""A run's events from wherever they are: the live part from Redis, the rest from Postgres, the same bytes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from app.errors import StoreUnavailable
from app.pace import dumps_paced, paced
from app.protocol.events import Event
from app.protocol.reducer import ENDED, State, advance
from app.storage.run_store import RunRecord, RunStore

PAGE = 1_000
PAGE_BYTES = 1_000_000
FIRST_READ = 16
"""Events of the first read of a page. What the next one asks for is known by how large these were."""


class Snapshot(NamedTuple):
    """A run's state as of now."""

    seq: int
    ended: bool
    text: str
    """JSON."""


class LiveLog(Protocol):
    """What Redis has of a log: an EventLog or a LogReader."""

    def head(self, run_id: str) -> int:
        """Seq of the last event; 0 where nothing is known."""

    def read(self, run_id: str, after: int, limit: int) -> list[Event]:
        """Events with seq > `after`, in order, at most `limit`. The first need not be `after` + 1."""


@dataclass(frozen=True, slots=True)
class History:
    """Reads of one run's log. They raise StoreUnavailable only if Postgres cannot be reached where it is needed."""

    store: RunStore
    log: LiveLog

    def after(
        self, run_id: str, seq: int, limit: int, most_bytes: int = PAGE_BYTES, known_head: int = 0
    ) -> list[Event]:
        """Consecutive events after `seq`, at most `limit`; empty at the head.

        The first is `seq` + 1, unless that is lost: callers check.

        :param most_bytes: of their texts together; one event alone may have more.
        :param known_head: so far the log goes at least: Redis may not have been brought all of it yet.
        """
        found: list[Event] = []
        size, asked = 0, min(limit, FIRST_READ)
        while (page := self._read(run_id, seq, asked)) and (not found or page[0].seq == seq + 1):
            for event in page:
                size += len(event.text)
                if found and size > most_bytes:
                    return found
                found.append(event)
            if len(found) == limit or (len(page) < asked and found[-1].seq >= known_head):
                break
            seq, fitting = found[-1].seq, (most_bytes - size) * len(found) // max(1, size)
            asked = max(1, min(limit - len(found), 4 * asked, fitting))
        return found

    def _read(self, run_id: str, seq: int, limit: int) -> list[Event]:
        events = self._live(run_id, seq, limit)
        if events and events[0].seq == seq + 1:
            return events
        return self.store.events(run_id, seq, limit)

    def all_after(self, run_id: str, seq: int) -> Iterator[Event]:
        """All the events that follow `seq`, up to where some are lost."""
        while (events := self.after(run_id, seq, PAGE)) and events[0].seq == seq + 1:
            yield from events
            seq = events[-1].seq

    def head(self, run_id: str) -> int:
        """Seq of the run's last event."""
        try:
            live = self.log.head(run_id)
        except StoreUnavailable:
            live = 0
        return max(live, self.store.archived_head(run_id))

    def is_over(self, run_id: str, seq: int) -> bool:
        """Nothing will ever follow `seq`: it is the end of the run, or the run was erased."""
        return self.store.is_over(run_id, seq)

    def state(self, run: RunRecord) -> State:
        """The run's state as of now: the stored one with the events after it folded in. It is the caller's own."""
        later = () if run.terminal else self.all_after(run.id, run.state_seq)
        return advance(run.state, (event.envelope() for event in paced(later)))

    def snapshot(self, run: RunRecord) -> Snapshot:
        """As `state`, as text: what is stored already is not parsed."""
        if run.terminal or not self.after(run.id, run.state_seq, 1):
            return Snapshot(run.state_seq, run.terminal, run.state_text)
        state = self.state(run)
        return Snapshot(state["last_seq"], state["status"] in ENDED, dumps_paced(state))

    def _live(self, run_id: str, seq: int, limit: int) -> list[Event]:
        try:
            return self.log.read(run_id, seq, limit)
        except StoreUnavailable:
            return []  # what is archived can be served without Redis
