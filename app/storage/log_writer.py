"""An owner's hold on one run's log: gives each event its seq, folds it, and keeps it until it is safe twice.

Pure memory: it neither appends to Redis nor archives in Postgres, it knows what is due for either. An event leaves
its memory when it is in both.
"""

from collections import deque
from collections.abc import Sequence

from app.protocol.events import Event, Outbound, encode, timestamp
from app.protocol.reducer import Fold, State
from app.protocol.state import Item


class LogWriter:
    """The events that one owner, under one epoch, adds to one run."""

    def __init__(self, run_id: str, epoch: int, state: State, *, appended: int, archived: int, owner: str = "") -> None:
        """
        :param owner: whose epoch it is, as the run's row says.
        :param state: the fold of the log so far; the writer owns it from here on.
        :param appended: seq up to which Redis has the log.
        :param archived: seq up to which Postgres has it.
        """
        self.run_id = run_id
        self.epoch = epoch
        self.owner = owner
        self._fold = Fold(state)
        self.losses = 0
        """`RunStore.losses` when Redis was last seen to have the epoch as this owner's."""
        self.appended = appended
        self.archived = archived
        self.unappended_bytes = 0
        self.unarchived_bytes = 0
        self._events: list[Event] = []
        self._held: deque[int] = deque()

    @property
    def state(self) -> State:
        """The fold of the log and of what was added."""
        return self._fold.state

    def message(self, id: str) -> Item | None:
        """The message with this id, as it is in the state."""
        return self._fold.message(id)

    @property
    def seen_losses(self) -> int | None:
        """`losses`, where the writer has an owner that can be fenced in Redis."""
        return self.losses if self.owner else None

    @property
    def head(self) -> int:
        """Seq of the last event."""
        return self.state["last_seq"]

    def add(self, type: str, payload: Outbound, *, op: str = "", commit_first: bool = False) -> Event:
        """Give the event its seq and fold it. Payload is valid and clean.

        :param commit_first: hold it, and all that follow, back from Redis until it is archived.
        """
        seq, ts = self.head + 1, timestamp()
        event = encode(self.run_id, seq, type, payload, ts, op)
        self._fold.apply({"seq": seq, "run_id": self.run_id, "type": type, "ts": ts, "payload": payload})
        self._events.append(event)
        self.unappended_bytes += len(event.text)
        self.unarchived_bytes += len(event.text)
        if commit_first:
            self._held.append(seq)
        return event

    def appendable(self) -> Sequence[Event]:
        """The events that may go to Redis now, in order."""
        end = self._held[0] - 1 if self._held else self.head
        return self._between(self.appended, end)

    def unarchived(self) -> Sequence[Event]:
        """The events that are not in Postgres yet, in order."""
        return self._between(self.archived, self.head)

    def remembers(self, after: int) -> bool:
        """Every event with seq > `after` is still in memory."""
        return after <= self.head and (after == self.head or (bool(self._events) and self._events[0].seq <= after + 1))

    def remembered(self, after: int, last: int) -> Sequence[Event]:
        """The events from `after` + 1 to `last`; empty where the first of them is not in memory any more."""
        return self._between(after, last) if self._events and self._events[0].seq <= after + 1 else ()

    def level(self, head: int) -> None:
        """Redis' head was found to be `head`, which may be less than was thought: go on from there."""
        if head < self.appended:
            self.unappended_bytes += _size(self._between(head, self.appended))
            self.appended = head
        else:
            self.mark_appended(head)

    def mark_appended(self, seq: int) -> None:
        """Redis has the log up to `seq`."""
        self.unappended_bytes -= _size(self._between(self.appended, seq))
        self.appended = max(self.appended, seq)
        self._forget()

    def mark_archived(self, seq: int) -> None:
        """Postgres has the log up to `seq`."""
        self.unarchived_bytes -= _size(self._between(self.archived, seq))
        self.archived = max(self.archived, seq)
        while self._held and self._held[0] <= seq:
            self._held.popleft()
        self._forget()

    def _between(self, after: int, last: int) -> Sequence[Event]:
        if not self._events or last <= after:
            return ()
        first = self._events[0].seq
        return self._events[max(0, after + 1 - first) : last + 1 - first]

    def _forget(self) -> None:
        if self._events:
            del self._events[: max(0, min(self.appended, self.archived) + 1 - self._events[0].seq)]


def _size(events: Sequence[Event]) -> int:
    return sum(len(event.text) for event in events)
