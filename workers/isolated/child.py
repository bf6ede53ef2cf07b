"""The work child: one run in a process of its own, forked for it.

Two threads. The agent has the main one, where it may compute or block as long as it likes. The other one has an event
loop, and in it all that a worker does for a run; what the agent emits is carried over to it, and the agent waits until
it was taken there. A thread cannot be stopped: it is the parent that stops the agent, by killing the process
(`workers.isolated.parent`).
"""

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import gevent
from gevent.event import AsyncResult

from app.config import Config
from app.errors import StoreUnavailable
from app.protocol.events import Outbound
from app.storage.log_writer import LogWriter
from app.storage.run_queue import ISOLATED_QUEUE
from app.storage.run_store import NewApproval, OpRecord
from app.wiring import Services
from runtail.agent import Agent
from runtail.branches import in_threads
from runtail.interrupts import TimedOut
from workers.execution.executor import Executor
from workers.execution.flusher import Flusher
from workers.execution.outbox import UNAPPENDED_BYTES, UNARCHIVED_BYTES, Outbox
from workers.execution.runner import Outlet

T = TypeVar("T")

LIMIT_CHARS = 500
"""Of the sentence that an alarm is sent with: a word to the parent must fit into PIPE_BUF."""

log = logging.getLogger(__name__)


class Child:
    """Executes one run. Made in the fork, used in its main thread."""

    def __init__(self, config: Config, agents: dict[str, Agent], worker_id: str, words: int, bell: int) -> None:
        """
        :param worker_id: of the parent, who is the owner.
        :param words: where the parent is told of alarms.
        :param bell: what can be read when the run's commands in Postgres may have changed.
        """
        self._config = config
        self._agents = agents
        self._worker_id = worker_id
        self._bell = bell
        self._runner = MainThread(Words(words))

    def execute(self, run_id: str) -> None:
        """Execute a pending run until it ends, waits or goes elsewhere. Does nothing if it is not pending."""
        Thread(target=self._run_loop, args=(run_id,), daemon=True).start()
        self._runner.serve()

    def _run_loop(self, run_id: str) -> None:
        """In the other thread."""
        try:
            self._runner.open()
            services = Services.for_worker(self._config)
            flusher = Flusher(services.ownership)
            flusher.start()
            executor = Executor(
                services, flusher, self._agents, self._worker_id, runner=self._runner, queue=ISOLATED_QUEUE
            )
            gevent.spawn(self._check_bell, executor)
            executor.execute(run_id)
        except StoreUnavailable as error:
            log.warning("%s could not be claimed; the janitor will have it tried again. %s", run_id, error.detail)
        except BaseException:  # nobody else would hear of it
            log.exception("%s could not be executed.", run_id)
        finally:
            self._runner.close()

    def _check_bell(self, executor: Executor) -> None:
        hub = gevent.get_hub()
        rung = hub.loop.io(self._bell, 1)
        while True:
            hub.wait(rung)
            if not os.read(self._bell, 4_096):
                os._exit(1)  # the parent is gone
            try:
                executor.check_commands()
            except StoreUnavailable as error:
                log.warning("Commands wait. %s", error.detail)
            except Exception:
                log.exception("Commands could not be heeded.")


class Words:
    """What the parent is told, a line of JSON each. May be used by any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._numbers = count(1)

    def has_run(self) -> None:
        """The run is claimed; if it is not ours any more, this process is one too many."""
        self._say({"has_run": True})

    def alarm(self, seconds: float, timed_out: TimedOut) -> Callable[[], None]:
        """Have the parent kill this process in so many seconds, unless what is returned is called before."""
        number = next(self._numbers)
        # The monotonic clock is the machine's, not the process'.
        self._say({"set": number, "at": time.monotonic() + seconds, "limit": timed_out.limit[:LIMIT_CHARS]})
        return lambda: self._say({"clear": number})

    def _say(self, word: dict[str, Any]) -> None:
        os.write(self._descriptor, json.dumps(word, ensure_ascii=False).encode() + b"\n")


class MainThread:
    """The runner of one agent, in the main thread, which calls `serve`; the loop's thread calls the other methods."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._functions: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._busy = False
        self._carried: deque[Callable[[], None]] = deque()
        self._wake: Any = None

    def open(self) -> None:
        """Begin to take what is carried over."""
        self._wake = gevent.get_hub().loop.async_()
        self._wake.start(self._take)

    def serve(self) -> None:
        """Call what is to be performed, until `close`."""
        while (function := self._functions.get()) is not None:
            function()

    def close(self) -> None:
        """Let `serve` return. An agent that goes on although its run does not ends with the process."""
        if self._busy:
            os._exit(0)
        self._functions.put(None)

    def outlet(self, outbox: Outbox) -> Outlet:
        """The outbox for an agent in the main thread."""
        self._words.has_run()
        return CarriedOutbox(outbox, self.carry, self._words)

    def perform(self, function: Callable[[], T]) -> T:
        """Call the function in the main thread; only the calling greenlet waits for it."""
        outcome: AsyncResult[T] = AsyncResult()

        def call() -> None:
            try:
                tell = partial(outcome.set, function())
            except BaseException as error:
                tell = partial(outcome.set_exception, error)
            self._busy = False
            self._send(tell)

        self._busy = True
        self._functions.put(call)
        result: T = outcome.get()  # type: ignore[assignment]  # there is no timeout
        return result

    def carry(self, function: Callable[[], T]) -> T:
        """For a thread of the agent's: call the function in a greenlet of the loop, and wait for it."""
        outcome: Future[T] = Future()

        def call() -> None:
            try:
                outcome.set_result(function())
            except BaseException as error:  # Interrupted among them: the agent's to raise
                outcome.set_exception(error)

        self._send(partial(gevent.spawn, call))
        return outcome.result()

    def _send(self, function: Callable[[], Any]) -> None:
        self._carried.append(function)
        self._wake.send()

    def _take(self) -> None:
        while self._carried:
            self._carried.popleft()()


class CarriedOutbox:
    """An outbox in the hands of an agent that has another thread. See `workers.execution.outbox.Outbox`."""

    def __init__(self, outbox: Outbox, carry: Callable[[Callable[[], Any]], Any], words: Words) -> None:
        self._outbox = outbox
        self._carry = carry
        self._words = words

    @property
    def writer(self) -> LogWriter:
        """Changes while the agent is in one of the calls below, and when an input arrives."""
        return self._outbox.writer

    @property
    def inputs(self) -> Mapping[int, str]:
        """Grows when an input arrives."""
        return self._outbox.inputs

    def emit(self, type: str, payload: Outbound, op: str) -> None:
        """Add an event; it is on its way to Redis when this returns. Blocks while too much is in memory only."""
        self._carry(lambda: self._outbox.emit(type, payload, op))

    def commit(
        self,
        type: str,
        payload: Outbound,
        op: str,
        *,
        record: OpRecord | None = None,
        approval: NewApproval | None = None,
    ) -> None:
        """Add an event that is a fact: this returns once it is archived, and only then it goes to Redis."""
        self._carry(lambda: self._outbox.commit(type, payload, op, record=record, approval=approval))

    def record(self, record: OpRecord) -> None:
        """Commit what a call came to, which no event tells of."""
        self._carry(lambda: self._outbox.record(record))

    def delta(self, payload: Outbound, op: str) -> None:
        """Add text to a message. What comes in quick succession becomes one event."""
        self._carry(lambda: self._outbox.delta(payload, op))

    def settle(self) -> None:
        """Make an event of the text that was held back."""
        self._carry(self._outbox.settle)

    def give_way(self) -> None:
        """Wait while too much is in memory only. There is nobody else to give way to."""
        writer = self._outbox.writer
        if writer.unappended_bytes > UNAPPENDED_BYTES or writer.unarchived_bytes > UNARCHIVED_BYTES:
            self._carry(self._outbox.give_way)

    def sleep(self, seconds: float) -> None:
        """Sleep; the end of the run is the end of the sleeper."""
        time.sleep(seconds)

    def alarm(self, seconds: float, timed_out: TimedOut) -> Callable[[], None]:
        """Have the parent stop the run in so many seconds, unless what is returned is called before."""
        return self._words.alarm(seconds, timed_out)

    def side_by_side(self, functions: Sequence[Callable[[], T]]) -> list[T]:
        """The results of the functions, in order, each called in a thread of its own."""
        return in_threads(functions)
