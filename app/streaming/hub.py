"""The tail hub of a web process: two connections to Redis, any number of windows.

The doorbell says which runs have something new; one XREAD with the last ids brings it; each window of the run gets
the same bytes. The event loop itself hears the doorbell, and sends the XREAD unless another one is under way.
A ring that is lost costs at most one sweep. Postgres is asked where Redis cannot answer.
Not responsible for what a window gets (`window`), nor for connections of clients (`socket_window`).
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TypeVar

import gevent
from gevent.event import Event as Flag
from gevent.queue import SimpleQueue

from app import metrics
from app.errors import StoreUnavailable
from app.pace import in_chunks, paced
from app.protocol.events import Event
from app.storage.history import History
from app.storage.log_reader import SILENCE_SECONDS, Doorbell, LogReader
from app.streaming.tail import Tail, mark_of
from app.streaming.windows.base import HEALING_SECONDS, Closing, Window
from app.streaming.windows.socket import SocketWindow, hand_out

RUNS_PER_READ, EVENTS_PER_READ = 1_000, 200
QUIET_PER_READ = 50
"""Of the runs that are swept: those that rang wait for as long as these take."""
ENDS_PER_READ = 16
"""Of all runs together that begin to be watched. A client that comes back is most likely that little behind, and is
then served by the read that tells where the head is."""
EVENTS_PER_TURN = 10_000
CHARS_PER_TURN = 4_000_000
"""Of all runs together, read in one turn; that of characters as far as the last events let expect it."""
CHARS_AT_ONCE = 500_000
"""Of one run, framed and handed out in one go, but one event in any case."""
READERS = 4
"""Greenlets that read for windows which are behind: as many as there are database connections."""
ROUND_SECONDS = 1.0
"""In which the timer goes through all windows and all runs."""
TICKS, IDLE_TICKS = 40, 4
"""Parts of a round; the second: where there is nothing to go through."""
SWEEP_SECONDS = 1.0
"""A run so long without an event is asked for, in case a ring was lost."""
IDLE_SECONDS = 15.0
"""The same in the archive, in case Redis has lost what Postgres has."""
RING_SECONDS = 10.0
"""So long after its last event a run's ring is emptied."""
RINGS_BYTES = 64_000_000
"""Of all rings together; past it all are emptied."""
RECONNECT_SECONDS = 0.25
AWAY_SECONDS = 1.0
"""Between two looks into the archive for every run, while Redis is away."""
PROOF_SECONDS = 0.25
"""Between two looks for an event that Redis had before it was lost."""

T = TypeVar("T")

log = logging.getLogger(__name__)


class TailHub:
    """Follows the runs that have windows in this process.

    Everything runs in one thread: in greenlets, but for `_heard`, which the event loop calls.
    """

    def __init__(self, reader: LogReader, doorbell: Doorbell, history: History) -> None:
        """
        :param history: reads for windows that are behind, over the same reader.
        """
        self._reader = reader
        self._doorbell = doorbell
        self._history = history
        self.running = False
        self._greenlets: list[gevent.Greenlet[..., None]] = []
        self._windows: set[Window] = set()
        self._tails: dict[str, Tail] = {}
        self._connected = False
        self._links = 0
        """How often it was connected."""
        self._new: set[str] = set()
        """Runs to subscribe to."""
        self._gone: set[str] = set()
        """Runs to unsubscribe from."""
        self._ping_at = 0.0
        self._confirmed: set[Tail] = set()
        """Tails that ring from now on, and whose head is to be read."""
        self._hot: set[Tail] = set()
        """Tails to read: they have rung."""
        self._quiet: set[Tail] = set()
        """Tails to read, a few at a time, because they have not rung for long."""
        self._unproven: dict[Tail, float | None] = {}
        """Tails whose head may have been lost with the last connection, and since when both stores say that they do
        not have it (None: one of them has not answered yet). They are not read."""
        self._doubted: set[Tail] = set()
        """Tails to look up in the archive."""
        self._idle = True
        """No turn is under way, and nothing has been begun. Otherwise nothing may be: a turn that reads, while what was
        begun waits for that turn to end, would wait for ever."""
        self._begun: tuple[int, int] | None = None
        """The XREAD that was sent when it rang: its limit, and `_links` as it was then."""
        self._work = Flag()
        self._doubts = Flag()
        self._behind: SimpleQueue[SocketWindow] = SimpleQueue()

    def start(self) -> None:
        """Begin; in the process that serves, once it is patched. A second call does nothing."""
        if not self.running:
            self.running = True
            for loop in (self._listen, self._turns, self._resolve_doubts, self._round, *[self._read_for_one] * READERS):
                self._greenlets.append(gevent.spawn(_for_ever, loop))

    def close(self) -> None:
        """Stop, and close both connections."""
        gevent.killall(self._greenlets)
        self._doorbell.close()
        self._reader.close()

    # Windows come and go.

    def tail(self, run_id: str) -> Tail:
        """The tail of a run that has not ended as far as is known; made on first use."""
        tail = self._tails.get(run_id)
        if tail is None:
            tail = self._tails[run_id] = Tail(run_id)
            tail.uncertain = not self._connected
            self._new.add(run_id)
            self._work.set()
        return tail

    def enter(self, window: Window) -> None:
        """A window begins, at the tail that `tail` returned, with no wait in between."""
        self._windows.add(window)
        window.tail.enter(window)

    def leave(self, window: Window) -> None:
        """A window is closed."""
        self._windows.discard(window)

    def read_for(self, window: SocketWindow) -> None:
        """Have the window read from storage, after those that asked before."""
        self._behind.put(window)

    def windows(self) -> list[Window]:
        """The open windows; a copy."""
        return list(self._windows)

    # The doorbell.

    def _listen(self) -> None:
        """Connect, subscribe to what is watched, and mark what rings; until the connection is lost."""
        try:
            self._reader.connect()
            self._doorbell.connect()
            self._new.clear()
            self._gone.clear()
            run_ids = list(self._tails)
            for start in range(0, len(run_ids), RUNS_PER_READ):
                self._doorbell.subscribe(run_ids[start : start + RUNS_PER_READ])
            self._reconnected()
            self._doorbell.hear(self._heard)
        except StoreUnavailable as error:
            self._lost(error)
            gevent.sleep(RECONNECT_SECONDS)
        except Exception:
            self._lost(StoreUnavailable("The doorbell failed."))
            raise

    def _heard(self, rang: Sequence[str], confirmed: Sequence[str]) -> None:
        """In the event loop's own turn: nothing here may wait."""
        tails = self._tails
        self._hot.update([tails[run_id] for run_id in rang if run_id in tails])
        for run_id in confirmed:
            if tail := tails.get(run_id):
                (self._hot if tail.ready else self._confirmed).add(tail)
        if self._idle and self._hot:
            self._begin()
        if self._begun or self._hot or self._confirmed:
            self._work.set()

    def _begin(self) -> None:
        """Ask for what rang, at once; the next turn hands it out."""
        asked = self._may_be_read(_take(self._hot, RUNS_PER_READ))
        if asked:
            limit = _limit(asked)
            if self._reader.begin({tail.run_id: tail.head for tail in asked}, limit):
                self._idle, self._begun = False, (limit, self._links)
            else:
                self._hot.update(asked)

    def _reconnected(self) -> None:
        """Redis may be another one than before: what each tail has seen must still be there."""
        self._links += 1
        self._unproven = {tail: None for tail in self._tails.values() if tail.ready}
        self._connected = True
        self._doubts.set()
        self._work.set()

    def _lost(self, error: StoreUnavailable) -> None:
        if self._connected:
            log.warning("Windows are served from the archive until Redis is back. %s", error.detail)
        self._connected = False
        for tail in self._tails.values():
            tail.uncertain = True
        self._doubts.set()
        self._doorbell.close()
        self._reader.close()

    # The reader.

    def _turns(self) -> None:
        self._work.wait()
        self._work.clear()
        self._idle = False
        try:
            if self._begun:
                self._hand_out_begun()
            if self._connected:
                self._turn()
        except StoreUnavailable as error:
            self._lost(error)  # the listener is told, and connects anew
        finally:
            self._idle = True
        if self._work.is_set():
            gevent.sleep(0)

    def _hand_out_begun(self) -> None:
        assert self._begun
        (limit, links), self._begun = self._begun, None
        self._hand_out(self._reader.finish(), limit, links)

    def _turn(self) -> None:
        """Everything that is due, once."""
        self._tell_doorbell()
        if self._confirmed:
            confirmed = _take(self._confirmed, RUNS_PER_READ)
            self._learn_heads(confirmed, self._ends(confirmed))
        if self._hot or self._quiet:
            self._read([*_take(self._hot, RUNS_PER_READ), *_take(self._quiet, QUIET_PER_READ)])
        if self._confirmed or self._hot or self._quiet:
            self._work.set()

    def _tell_doorbell(self) -> None:
        """Here only: what two greenlets say at once could mingle."""
        if self._gone:
            gone, self._gone = self._gone.difference(self._tails), set()
            if gone:
                self._doorbell.unsubscribe(gone)
        if self._new:
            new, self._new = self._new, set()
            self._doorbell.subscribe(new)
        if time.monotonic() >= self._ping_at:
            self._ping_at = time.monotonic() + SILENCE_SECONDS / 2
            self._doorbell.ping()

    def _ends(self, tails: Sequence[Tail]) -> Mapping[str, Sequence[Event]]:
        """The end of each log, with what its windows wait for where that is little, and they are few."""
        each = ENDS_PER_READ // len(tails)
        cursors = {tail.run_id: tail.least_cursor() for tail in tails} if each else {}
        waited_for = {run_id: cursor for run_id, cursor in cursors.items() if cursor is not None}
        return self._reader.ends([tail.run_id for tail in tails], waited_for, each)

    def _learn_heads(self, tails: Sequence[Tail], ends: Mapping[str, Sequence[Event]]) -> None:
        for tail in tails:
            if not tail.ready:
                tail.begin(ends.get(tail.run_id, ()))
                tail.ready, tail.uncertain = True, not self._connected
                if tail.head == 0:  # every run has an event: Redis has lost it, or was not there to get it
                    self._doubt(tail)
                _wake_others(tail)
                tail.cool()  # whoever was a little behind has it now

    def _may_be_read(self, tails: Sequence[Tail]) -> list[Tail]:
        return [tail for tail in tails if tail.ready and tail not in self._unproven]

    def _read(self, tails: Sequence[Tail]) -> None:
        if asked := self._may_be_read(tails):
            limit, links = _limit(asked), self._links
            self._hand_out(self._reader.read_many({tail.run_id: tail.head for tail in asked}, limit), limit, links)

    def _hand_out(self, found: Mapping[str, Sequence[Event]], limit: int, links: int) -> None:
        """What an XREAD has brought.

        :param links: `_links` as it was when it was sent.
        """
        for run_id, events in paced(found.items()):
            tail = self._tails.get(run_id)
            if tail is None:
                continue
            if not self._deliver_all(tail, events, links) and events[-1].seq > tail.head:
                self._doubt(tail)  # Redis has it no more from where we are
            elif len(events) == limit:
                self._hot.add(tail)
        if found:
            metrics.observe_delivery(events[-1])  # one of the turn's, the last to be sent

    def _deliver_all(self, tail: Tail, events: Sequence[Event], links: int) -> bool:
        """As `_deliver`, bit by bit where they are large; others have their turn in between.

        :param links: `_links` as it was before the events were read.
        """
        if len(events) == 1:
            return links == self._links and self._deliver(tail, events)
        delivered = False
        for chunk in paced(in_chunks(events, weigh=_chars, most=CHARS_AT_ONCE)):
            if links != self._links:
                break  # Redis was lost meanwhile, and may have other events by now
            delivered = self._deliver(tail, chunk) or delivered
        return delivered

    def _deliver(self, tail: Tail, events: Sequence[Event]) -> bool:
        """Hand events, from Redis or the archive, to the run's windows. False: none of them follows the head."""
        framed = tail.accept(events, time.monotonic())
        if framed is None:
            return False
        for wire, group in tail.live.items():
            if group:
                chunk = wire.wrap(b"".join(framed[wire.format]))
                hand_out(tail, wire, chunk + wire.end if tail.ended else chunk)
        _wake_others(tail)
        return True

    def _read_for_one(self) -> None:
        window = self._behind.get()
        try:
            window.read(self._history)
        except Exception:
            _failed(window)

    # What Redis cannot answer.

    def _doubt(self, tail: Tail) -> None:
        self._doubted.add(tail)
        self._doubts.set()

    def _resolve_doubts(self) -> None:
        self._doubts.wait((PROOF_SECONDS if self._unproven else None) if self._connected else AWAY_SECONDS)
        self._doubts.clear()
        try:
            if self._connected:
                self._prove_all()
            else:
                self._doubted.update(self._tails.values())
            while self._doubted:
                self._consult(_take(self._doubted, RUNS_PER_READ))
        except StoreUnavailable as error:
            log.warning("A run's log cannot be looked up. %s", error.detail)
            gevent.sleep(PROOF_SECONDS)

    def _consult(self, tails: Sequence[Tail]) -> None:
        """Bring what the archive has and the tails have not."""
        store = self._history.store
        if unready := [tail for tail in tails if not tail.ready and not self._connected]:
            self._learn_heads(unready, store.ends([tail.run_id for tail in unready]))
        cursors = {tail.run_id: tail.head for tail in tails if tail.ready}
        for run_id, events in store.read_many(cursors, EVENTS_PER_READ).items():
            tail = self._tails.get(run_id)
            if tail is not None and self._deliver_all(tail, events, self._links):
                self._hot.add(tail)
                self._work.set()
                self._doubted.add(tail)  # there may be more
            elif tail is not None and tail.ready and events[0].seq > tail.head + 1:
                self._rewind(tail)  # those between are lost

    def _prove_all(self) -> None:
        for start in range(0, len(self._unproven), RUNS_PER_READ):
            self._prove(list(islice(self._unproven, start, start + RUNS_PER_READ)))
        self._work.set()

    def _prove(self, tails: Sequence[Tail]) -> None:
        """See that the event at each tail's head is the one that its windows have."""
        heads = {tail.run_id: tail.head for tail in tails}
        found = self._reader.entries(heads)
        self._judge([tail for tail in tails if tail.run_id in found], heads, found)
        if rest := [tail for tail in tails if tail.run_id not in found]:
            archived = self._history.store.read_many({tail.run_id: heads[tail.run_id] - 1 for tail in rest}, 1)
            self._judge(rest, heads, {run_id: events[0] for run_id, events in archived.items()})

    def _judge(self, tails: Sequence[Tail], heads: Mapping[str, int], found: Mapping[str, Event]) -> None:
        now = time.monotonic()
        for tail in tails:
            if tail not in self._unproven or tail.head != heads[tail.run_id]:
                continue
            since, event = self._unproven[tail], found.get(tail.run_id)
            here = event is not None and event.seq == tail.head
            if tail.head == 0 or (event is not None and here and mark_of(event) == tail.mark):
                del self._unproven[tail]
                tail.uncertain = False
                self._hot.add(tail)
            elif here or (since is not None and now - since > HEALING_SECONDS):
                self._rewind(tail)
            elif since is None:
                self._unproven[tail] = now

    def _rewind(self, tail: Tail) -> None:
        """What the run's windows have seen last is lost: each is told of the gap, and gets a snapshot."""
        log.warning("Events of %s up to %d were lost; its windows start again from a snapshot.", tail.run_id, tail.head)
        for window in tail.windows():
            window.lose()
        tail.cool()
        tail.ready = tail.uncertain = False
        self._unproven.pop(tail, None)
        self._confirmed.add(tail)

    # The timer.

    def _round(self) -> None:
        """Once through everything, in slices, so that no tick holds up the events."""
        tails, windows, kept = list(self._tails.values()), self.windows(), 0
        ticks = TICKS if tails or windows else IDLE_TICKS
        for number in range(ticks):
            now = time.monotonic()
            if self._connected and (self._reader.is_lost(now) or self._doorbell.is_silent(now)):
                self._lost(StoreUnavailable("Redis does not answer."))
            for tail in tails[number::ticks]:
                if not tail.count:
                    self._drop(tail)
                elif now - tail.active_at >= SWEEP_SECONDS:
                    self._sweep(tail, now)
                kept += tail.size
            for window in windows[number::ticks]:
                if now >= window.look_at:
                    _visit(window, now)
            self._work.set()
            gevent.sleep(max(0.0, ROUND_SECONDS / ticks - (time.monotonic() - now)))
        if kept > RINGS_BYTES:
            for tail in tails:
                tail.cool()

    def _sweep(self, tail: Tail, now: float) -> None:
        """Look after a run that has been quiet."""
        (self._quiet if tail.ready else self._confirmed).add(tail)
        ahead = any(window.ahead for window in tail.others) if tail.others else False
        quiet = now - tail.active_at
        if ahead or (quiet >= IDLE_SECONDS and now - tail.doubted_at >= IDLE_SECONDS):
            tail.doubted_at = now
            self._doubt(tail)
        if quiet >= RING_SECONDS:
            tail.cool()

    def _drop(self, tail: Tail) -> None:
        if self._tails.pop(tail.run_id, None) is not None:
            self._gone.add(tail.run_id)
        for group in (self._confirmed, self._hot, self._quiet, self._doubted):
            group.discard(tail)
        self._unproven.pop(tail, None)
        self._new.discard(tail.run_id)


def _for_ever(loop: Callable[[], None]) -> None:
    """Again and again, whatever happens in it: every window depends on every loop."""
    while True:
        try:
            loop()
        except Exception:
            log.exception("The tail hub failed at a turn.")
            gevent.sleep(RECONNECT_SECONDS)


def _limit(asked: Sequence[Tail]) -> int:
    """Events of each that one XREAD may bring."""
    expected = sum(tail.chars for tail in asked)
    return max(1, min(EVENTS_PER_READ, EVENTS_PER_TURN // len(asked), CHARS_PER_TURN // max(1, expected)))


def _chars(event: Event) -> int:
    return len(event.text)


def _wake_others(tail: Tail) -> None:
    for window in list(tail.others):
        try:
            window.wake()
        except Exception:
            _failed(window)


def _visit(window: Window, now: float) -> None:
    try:
        if not window.closed:
            window.visit(now)
    except Exception:
        _failed(window)


def _failed(window: Window) -> None:
    """One window's failure concerns no other."""
    log.exception("A window of %s failed.", window.tail.run_id)
    window.close(Closing.FAILED)


def _take(group: set[T], most: int) -> list[T]:
    """Take up to so many out of the set."""
    if len(group) <= most:
        taken = list(group)
        group.clear()
        return taken
    taken = list(islice(group, most))
    group.difference_update(taken)
    return taken
