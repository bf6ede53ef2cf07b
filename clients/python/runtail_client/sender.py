"""Sends a writer's events from a thread of its own, and brings back what the server has to say.

One request is under way at a time. A batch whose outcome is unknown is sent again as it is, under its number, until
the server has answered; meanwhile the writer goes on until its buffer is full. Responsible for the lease too: a
heartbeat goes out whenever there is nothing else. Not responsible for what the events say (`run`).
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from runtail_client.connection import CONNECT_SECONDS, LAST_PAUSE, Connection, jittered, reason, refusal
from runtail_client.errors import Cancelled, Refused, Unreachable, WriterLost
from runtail_client.outbox import Outbox, event_line
from runtail_client.values import dumps

SEND_SECONDS = 15.0
"""How long the answer to a batch may take before it is sent again."""
FIRST_AGAIN = 0.1
"""Seconds before a request is made again; twice as many each time, up to LAST_PAUSE."""
BEATS_PER_LEASE = 4
FIRST_BEAT_SECONDS = 1.0
"""A cancel may have come while the run waited for its writer."""
FIRST_LOOK, LAST_LOOK = 0.25, 5.0
"""Seconds between questions for what is waited for: an input, a decision. They grow with the wait."""
LOST = frozenset({"stale_epoch", "run_ended", "run_not_found"})
"""Refusals after which the run is somebody else's, or nobody's."""

log = logging.getLogger("runtail_client")


@dataclass(frozen=True, slots=True)
class Lease:
    """What the server gave to a run's writer."""

    run_id: str
    token: str
    epoch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Call:
    """A request: a batch, a heartbeat, or the end."""

    name: str
    body: bytes = b""


_BEAT = _Call("heartbeat")


class Sender:
    """The events of one run on their way. Any number of threads of the process that started it may use it."""

    def __init__(self, connection: Connection, lease: Lease, buffer_bytes: int, beat_seconds: float | None) -> None:
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
        self._connection = connection
        self._lease = lease
        self._buffer_bytes = buffer_bytes
        self._beat_seconds = beat_seconds or lease.seconds / BEATS_PER_LEASE
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._outbox = Outbox()
        self._batch: _Call | None = None
        """Sent, or about to be, and not confirmed."""
        self._producer_seq = 1
        self._ending: _Call | None = None
        self._stopping = False
        self._lost: WriterLost | None = None
        self._refused: Refused | None = None
        self._failures = 0
        self._trouble = ""
        """Why the last request came to nothing."""
        self._not_before = 0.0
        self._beat_at = time.monotonic() + min(FIRST_BEAT_SECONDS, self._beat_seconds)
        self._calls = self._answered = self._wanted = 0
        """Calls made; the last of them that was answered; the one whose answer somebody waits for."""
        self._inputs: list[str] = []
        self._inputs_taken = 0
        self._decisions: dict[str, dict[str, Any]] = {}
        threading.Thread(target=self._work, name=f"runtail {self.run_id}", daemon=True).start()

    # For the writer's threads.

    @property
    def elsewhere(self) -> bool:
        """This is another process than the writer's, forked from it."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """
        :raises Cancelled: a cancel was requested.
        :raises WriterLost, Refused: nothing more can be written.
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
        while self._outbox.bytes >= self._buffer_bytes:
            self._changed.wait()
            self.check()

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
            since = self._calls
            self._look_until(lambda: self._answered > since and (not wait or self._new_inputs()), None)
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
                self._wanted = self._calls + 1
                self._changed.notify_all()
            left = None if deadline is None else deadline - time.monotonic()
            if self._wait(come, pause if left is None else min(pause, left)) or (left is not None and left <= 0):
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

    def finish(self, ending: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Send what is left and end the run; returns it as it ended.

        :raises WriterLost: somebody else has it, or it ended otherwise.
        :raises Refused: the server does not take this end, or an event before it; another end may be tried.
        :raises Unreachable: it was not confirmed in time. It may have ended all the same.
        """
        self._be_here()
        with self._changed:
            self._ending = _Call("finish", dumps(ending).encode())
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.ended is not None or self._lost or self._ending is None, seconds)
            if self.ended is not None:
                return self.ended
            if self._refused is not None and self._ending is None:
                raise self._refused
            self.stop()
            raise self._lost or Unreachable(f"The end of {self.run_id} was not confirmed. {self._trouble}")

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
        """Send nothing more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    # In the thread.

    def _work(self) -> None:
        try:
            while (call := self._next()) is not None:
                answer = self._make(call)
                with self._changed:
                    self._take(call, answer)
                    self._changed.notify_all()
        except Exception as error:
            # Whoever waits for this thread would wait for ever.
            log.exception("The writer of %s failed.", self.run_id)
            self._lose(f"The writer of {self.run_id} failed: {reason(error)}")

    def _next(self) -> _Call | None:
        """Wait for something to do; None: there is nothing any more."""
        with self._changed:
            while not (self._stopping or self._lost or self.ended is not None):
                name, wait = self._due()
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                self._calls += 1
                if name == "heartbeat":
                    return _BEAT
                if name == "finish":
                    return self._ending
                self._batch = self._batch or _Call("events", self._outbox.take())
                return self._batch
            return None

    def _due(self) -> tuple[str, float]:
        """What to do next, and in how many seconds."""
        now = time.monotonic()
        held = self._not_before - now
        if self._batch is not None:
            return "events", held
        if self._ending is not None:
            self._outbox.settle()
            return ("events" if self._outbox else "finish"), held
        beat = 0.0 if self._answered < self._wanted else self._beat_at - now
        due = self._outbox.due_in()
        if due is not None and due <= max(beat, 0.0):
            return "events", max(due, held)
        return "heartbeat", max(beat, held)

    def _make(self, call: _Call) -> httpx.Response | None:
        """None: the request came to nothing, or its outcome is unknown."""
        headers = {"Authorization": f"Bearer {self._lease.token}", "Producer-Epoch": str(self.epoch)}
        query = {}
        if call.name != "finish":
            query = {"inputs_after": str(len(self._inputs))}
        if call.name != "heartbeat":
            kind = "application/json" if call.name == "finish" else "application/x-ndjson"
            headers |= {"Producer-Seq": str(self._producer_seq), "Content-Type": kind}
        try:
            return self._connection.http.post(
                f"/runs/{self.run_id}/{call.name}",
                params=query,
                headers=headers,
                content=call.body,
                timeout=httpx.Timeout(SEND_SECONDS, connect=CONNECT_SECONDS),
            )
        except httpx.RequestError as error:
            self._trouble = reason(error)
            return None

    def _take(self, call: _Call, answer: httpx.Response | None) -> None:
        refused = None if answer is None or answer.is_success else refusal(answer)
        if answer is None or (refused is not None and _says_nothing(refused)):
            self._again(refused)
            return
        self._failures, self._not_before, self._beat_at = 0, 0.0, time.monotonic() + self._beat_seconds
        if refused is not None:
            self._turn_down(call, refused)
            return
        if call.name == "finish":
            self.ended = answer.json()
            return
        if call.name == "events":
            self._batch = None
            self._producer_seq += 1
        if answer.status_code == httpx.codes.OK:
            self._hear(answer.json())
        else:
            self._wanted = self._calls + 1  # a batch that was taken before is answered without news

    def _again(self, refused: Refused | None) -> None:
        if refused is not None:
            self._trouble = str(refused)
        if self._failures == 0:
            log.warning("Events of %s are held back: %s", self.run_id, self._trouble)
        pause = jittered(min(LAST_PAUSE, FIRST_AGAIN * 2 ** min(self._failures, 10)))
        self._failures += 1
        self._not_before = time.monotonic() + max(pause, min(refused.retry_after, LAST_PAUSE) if refused else 0.0)

    def _turn_down(self, call: _Call, refused: Refused) -> None:
        if call is _BEAT or refused.code in LOST or refused.status == httpx.codes.UNAUTHORIZED:
            self._lose(f"{self.run_id} is not this writer's any more: {refused}")
            return
        # The number stays free: the next end takes it.
        self._refused, self._batch, self._ending = refused, None, None
        self._outbox.clear()

    def _lose(self, detail: str) -> None:
        with self._changed:
            self._lost, self._batch = WriterLost(detail), None
            self._outbox.clear()
            self._changed.notify_all()

    def _hear(self, told: Mapping[str, Any]) -> None:
        self._answered = self._calls
        self.cancelled = self.cancelled or bool(told["cancel_requested"])
        self._inputs += [str(item["text"]) for item in told["inputs"]]
        self._decisions |= {decision["approval_id"]: decision for decision in told["decisions"]}


def _says_nothing(refused: Refused) -> bool:
    """The request may well succeed a little later, or it was not the server that answered but a proxy before it."""
    return refused.passing or refused.code.startswith("http_")
