"""Sends a writer's events from a thread of its own, and brings back what the server has to say.

One request is under way at a time. A batch whose outcome is unknown is sent again as it is, under its number, until
the server has answered; meanwhile the writer goes on until its buffer is full. Responsible for the lease too: a
heartbeat goes out whenever there is nothing else. Not responsible for what the events say (`run`), nor for HTTP
(`calls`).
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from runtail.client.connection import LAST_PAUSE, Connection, jittered, reason
from runtail.client.outbox import Outbox, event_line
from runtail.client.patience import Patience
from runtail.client.requests import APPEND, BEAT, FINISH, Call, Calls, Lease, Unknown
from runtail.errors import Cancelled, Refused, RuntailError, Unreachable, WriterLost
from runtail.values import dumps

FIRST_AGAIN = 0.1
"""Seconds before a request is made again; twice as many each time, up to LAST_PAUSE."""
BEATS_PER_LEASE = 4
LONGEST_BEAT_SECONDS = 15.0
"""Between heartbeats under a long lease: they bring the news of a cancel, too."""
FIRST_BEAT_SECONDS = 1.0
"""A cancel may have come while the run waited for its writer."""
FIRST_LOOK, LAST_LOOK = 0.25, 5.0
"""Seconds between questions for what is waited for: an input, a decision. They grow with the wait."""
LOST = frozenset({"stale_epoch", "run_ended", "run_not_found"})
"""Refusals after which the run is somebody else's, or nobody's."""

log = logging.getLogger("runtail")


class Sender:
    """The events of one run on their way. Any number of threads of the process that started it may use it."""

    def __init__(
        self,
        connection: Connection,
        lease: Lease,
        buffer_bytes: int,
        beat_seconds: float | None,
        patience: Patience,
    ) -> None:
        """
        :param buffer_bytes: with so much unsent, verbs block.
        :param beat_seconds: between heartbeats; None: as often as the lease wants it.
        """
        self.run_id = lease.run_id
        self.epoch = lease.epoch
        self.cancelled = False
        """A cancel was requested."""
        self.ended: dict[str, Any] | None = None
        """The run, once its end is confirmed."""
        self._calls = Calls(connection, lease)
        self._buffer_bytes = buffer_bytes
        self._beat_seconds = beat_seconds or min(LONGEST_BEAT_SECONDS, lease.seconds / BEATS_PER_LEASE)
        self.patience = patience
        self._lease_seconds = lease.seconds
        self._heard_at = time.monotonic()
        """When the server last answered."""
        self._give_up_at = math.inf
        """From then on nothing is sent any more."""
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._outbox = Outbox()
        self._batch: Call | None = None
        """Sent, or about to be, and not confirmed."""
        self._producer_seq = 1
        self._ending: Call | None = None
        self._stopping = False
        self._lost: WriterLost | None = None
        self._refused: Refused | Unreachable | None = None
        """An event was turned down, or dropped: what there is of the run is not whole."""
        self._end_refused: Refused | None = None
        self._failures = 0
        self._trouble = ""
        """Why the last request came to nothing."""
        self._not_before = 0.0
        self._beat_at = time.monotonic() + min(FIRST_BEAT_SECONDS, self._beat_seconds)
        self._made = self._answered = self._wanted = 0
        """Calls made; the last of them that was answered; the one whose answer somebody waits for."""
        self._unanswered = False
        """The last question for inputs was not answered in time; until there is an answer nobody waits again."""
        self._inputs: list[str] = []
        self._inputs_taken = 0
        self._decisions: dict[str, dict[str, Any]] = {}
        threading.Thread(target=self._work, name=f"runtail {self.run_id}", daemon=True).start()

    # For the writer's threads.

    @property
    def elsewhere(self) -> bool:
        """This is another process than the writer's, forked from it."""
        return os.getpid() != self._pid

    @property
    def incomplete(self) -> bool:
        """An event was turned down, or dropped."""
        return self._refused is not None

    def tell(self, error: RuntailError) -> None:
        """
        :raises RuntailError: always: what cannot be sent is refused where it was written.
        """
        raise error

    def check(self) -> None:
        """
        :raises Cancelled: a cancel was requested.
        :raises WriterLost, Refused, Unreachable: nothing more can be written.
        """
        if self._lost is not None:
            raise self._lost.with_traceback(None)
        if self._refused is not None:
            raise self._refused.with_traceback(None)
        if self._ending is not None:
            raise WriterLost(f"The end of {self.run_id} has been written.")
        if self.cancelled:
            raise Cancelled(self.run_id)

    def add(self, type: str, payload: Mapping[str, Any], *, closes: bool = False) -> None:
        """Add an event with a clean payload. Blocks while the buffer is full.

        :param closes: it says that something is over. That much is sent although the run was cancelled, and dropped
            where nothing can be sent any more; it never raises and never blocks.
        """
        line = event_line(type, payload)
        if closes and self.elsewhere:
            return
        self._be_here()
        with self._changed:
            if not closes:
                self._make_room()
            elif self._lost or self._refused or self._ending:
                return
            self._outbox.add(line)
            if type == "message.started":
                self._outbox.begin(payload["message_id"])
            self._changed.notify_all()

    def write(self, message_id: str, text: str) -> None:
        """Add clean text to a message. Blocks while the buffer is full."""
        self._be_here()
        with self._changed:
            self._make_room()
            if self._outbox.write(message_id, text):
                self._changed.notify_all()

    def _be_here(self) -> None:
        # Before the lock is taken, which another thread may have held when this process was forked.
        if self.elsewhere:
            raise WriterLost(f"{self.run_id} is written by process {self._pid}, of which this one is a fork.")

    def _make_room(self) -> None:
        self.check()
        deadline = time.monotonic() + self.patience.room
        while self._outbox.bytes >= self._buffer_bytes:
            left = deadline - time.monotonic()
            if left <= 0:
                self._drop()
            else:
                self._changed.wait(None if left == math.inf else left)
            self.check()

    def _drop(self) -> None:
        """Forget what is not sent: the work is not to wait for it."""
        self._refused = Unreachable(f"{self._outbox.bytes} bytes were not taken in time, and dropped. {self._trouble}")
        self._outbox.clear()

    def sleep(self, seconds: float) -> None:
        """Sleep, and wake up at once when `check` has something to say."""
        self._be_here()
        self._wait(lambda: False, seconds)

    def decision(self, approval_id: str, seconds: float | None) -> dict[str, Any] | None:
        """Wait for the decision on an approval; None: there is none after so many seconds."""
        self._be_here()
        self._look_until(lambda: approval_id in self._decisions, seconds)
        return self._decisions.get(approval_id)

    def inputs(self, wait: bool) -> list[str]:
        """The inputs that were not taken yet, as the server knows them by now; with `wait` at least one."""
        self._be_here()
        with self._changed:
            since = self._made
            seconds = None if wait else 0.0 if self._unanswered else self.patience.answer
            self._look_until(lambda: self._answered > since and (not wait or self._new_inputs()), seconds)
            self._unanswered = self._answered <= since
            new = self._inputs[self._inputs_taken :]
            self._inputs_taken += len(new)
            return new

    def _new_inputs(self) -> bool:
        return len(self._inputs) > self._inputs_taken

    def _look_until(self, come: Callable[[], bool], seconds: float | None) -> None:
        deadline = None if seconds is None else time.monotonic() + seconds
        pause = FIRST_LOOK
        while True:
            with self._changed:
                self._wanted = self._made + 1
                self._changed.notify_all()
            left = None if deadline is None else deadline - time.monotonic()
            if self._wait(come, pause if left is None else min(pause, left)) or (left is not None and left <= 0):
                return
            if time.monotonic() - self._heard_at > self.patience.away:
                log.error("%s: the server does not answer; nobody is waited for any more.", self.run_id)
                return
            pause = min(LAST_LOOK, 1.3 * pause)

    def _wait(self, come: Callable[[], bool], seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                self.check()
                left = deadline - time.monotonic()
                if come() or left <= 0:
                    return come()
                self._changed.wait(left)

    def finish(self, ending: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Send what is left and end the run; returns it as it ended.

        What is not confirmed in time is still sent, as long as the process lives and the writer has its lease.

        :param seconds: to wait for that; None: as long as the writer's patience lasts.
        :raises WriterLost: somebody else has it, or it ended otherwise.
        :raises Refused: the server does not take this end, or an event before it; another end may be tried.
        :raises Unreachable: it was not confirmed in time. It may have ended all the same.
        """
        self._be_here()
        with self._changed:
            if self._refused is not None and ending["status"] == "completed":
                raise self._refused.with_traceback(None)  # what is not whole is not completed
            self._end_refused = None
            self._ending = Call(FINISH, dumps(ending).encode())
            self._give_up_at = math.inf
            self._changed.notify_all()
            seconds = self.patience.finish if seconds is None else seconds
            self._changed.wait_for(lambda: self.ended is not None or self._lost or self._turned_down, seconds)
            if self.ended is not None:
                return self.ended
            if (refused := self._turned_down) is not None:
                raise refused
            self._give_up_at = time.monotonic() + self._lease_seconds
            raise self._lost or Unreachable(f"The end of {self.run_id} was not confirmed. {self._trouble}")

    def abandon(self, code: str, message: str) -> None:
        """Fail the run without waiting for it: nobody is going to write it."""
        with self._changed:
            self._ending = Call(
                FINISH, dumps({"status": "failed", "error": {"code": code, "message": message}}).encode()
            )
            self._give_up_at = time.monotonic() + self._lease_seconds
            self._changed.notify_all()

    @property
    def _turned_down(self) -> RuntailError | None:
        """Why there is no end under way, where one was tried."""
        return None if self._ending is not None else self._end_refused or self._refused

    def leave(self, seconds: float) -> None:
        """Send what is left, and leave the run as it is to its next writer.

        :raises WriterLost, Refused, Unreachable: some of it was not taken.
        """
        with self._changed:
            self._outbox.settle()
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._unsent or bool(self._lost or self._refused), seconds)
            unsent = self._unsent
            self.stop()
            if error := self._lost or self._refused:
                raise error
            if unsent:
                raise Unreachable(f"Events of {self.run_id} were not confirmed. {self._trouble}")

    @property
    def _unsent(self) -> bool:
        return self._batch is not None or bool(self._outbox)

    def stop(self) -> None:
        """Send nothing more but an end that is under way."""
        with self._changed:
            self._stopping = self._ending is None
            self._changed.notify_all()

    # In the thread.

    def _work(self) -> None:
        try:
            while (call := self._next()) is not None:
                outcome = self._calls.make(call, self._producer_seq, len(self._inputs))
                with self._changed:
                    self._take(call, outcome)
                    self._changed.notify_all()
        except Exception as error:
            # Whoever waits for this thread would wait for ever.
            log.exception("The writer of %s failed.", self.run_id)
            self._lose(f"The writer of {self.run_id} failed: {reason(error)}")

    def _next(self) -> Call | None:
        """Wait for something to do; None: there is nothing any more."""
        with self._changed:
            while not (self._stopping or self._lost or self.ended is not None or time.monotonic() > self._give_up_at):
                name, wait = self._due()
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                self._made += 1
                if name == BEAT:
                    return Call(BEAT)
                if name == FINISH:
                    return self._ending
                self._batch = self._batch or Call(APPEND, self._outbox.take())
                return self._batch
            return None

    def _due(self) -> tuple[str, float]:
        """What to do next, and in how many seconds."""
        now = time.monotonic()
        held = self._not_before - now
        if self._batch is not None:
            return APPEND, held
        if self._ending is not None:
            self._outbox.settle()
            return (APPEND if self._outbox else FINISH), held
        beat = 0.0 if self._answered < self._wanted else self._beat_at - now
        due = self._outbox.due_in()
        if due is not None and due <= max(beat, 0.0):
            return "events", max(due, held)
        return BEAT, max(beat, held)

    def _take(self, call: Call, outcome: dict[str, Any] | Refused | Unknown) -> None:
        if isinstance(outcome, Unknown):
            self._again(outcome)
            return
        self._heard_at, self._unanswered = time.monotonic(), False
        self._failures, self._not_before, self._beat_at = 0, 0.0, self._heard_at + self._beat_seconds
        if isinstance(outcome, Refused):
            self._turn_down(call, outcome)
        elif call.name == FINISH:
            self.ended = outcome
        else:
            if call.name == APPEND:
                self._batch = None
                self._producer_seq += 1
            self._hear(outcome)

    def _again(self, unknown: Unknown) -> None:
        self._trouble = unknown.why
        if self._failures == 0:
            log.warning("Events of %s are held back: %s", self.run_id, self._trouble)
        pause = jittered(min(LAST_PAUSE, FIRST_AGAIN * 2 ** min(self._failures, 10)))
        self._failures += 1
        self._not_before = time.monotonic() + max(pause, min(unknown.wait, LAST_PAUSE))

    def _turn_down(self, call: Call, refused: Refused) -> None:
        if call.name == BEAT or refused.code in LOST or refused.status == httpx.codes.UNAUTHORIZED:
            self._lose(f"{self.run_id} is not this writer's any more: {refused}")
        elif call.name == FINISH:  # the number stays free: the next end takes it
            self._end_refused, self._ending = refused, None
        elif refused.status == httpx.codes.REQUEST_ENTITY_TOO_LARGE and self._outbox.put_back(call.body):
            self._batch = None
        else:
            self._refused, self._batch, self._ending = refused, None, None
            self._outbox.clear()

    def _lose(self, detail: str) -> None:
        with self._changed:
            self._lost, self._batch = WriterLost(detail), None
            self._outbox.clear()
            self._changed.notify_all()

    def _hear(self, told: Mapping[str, Any]) -> None:
        if not told:
            self._wanted = self._made + 1  # a batch that was taken before is answered without news
            return
        self._answered = self._made
        self.cancelled = self.cancelled or bool(told["cancel_requested"])
        self._inputs += [str(item["text"]) for item in told["inputs"]]
        self._decisions |= {decision["approval_id"]: decision for decision in told["decisions"]}
