"""What the callers say to the server while its processes are killed: start a run, decide an approval.

A caller asks again until it has an answer; a run's idempotency key, and that a decision may be repeated, make that
safe. Callers are threads: what they have to tell is fetched by `results`.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx

from tests.chaos.schedule import Order

A = TypeVar("A")
R = TypeVar("R")

THREADS = 6
ASK_SECONDS = 15.0
RETRY_SECONDS = 0.2
AGAIN = (502, 503, 504)


@dataclass(frozen=True, slots=True)
class Started:
    """A run was started."""

    order: Order
    run_id: str


@dataclass(frozen=True, slots=True)
class Decided:
    """A decision was answered."""

    run_id: str
    approval_id: str
    verdict: str
    status: int
    body: dict[str, Any]


class Pool(Generic[A, R]):
    """Threads that take what was asked, one at a time, each with a connection of its own. `_do` is the subclass's."""

    def __init__(self, url: str, threads: int) -> None:
        self.complaints: list[str] = []
        self._url = url
        self._asked: queue.Queue[A | None] = queue.Queue()
        self._results: queue.Queue[R] = queue.Queue()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def results(self) -> Iterator[R]:
        """What has come of it since the last call."""
        with suppress(queue.Empty):
            while True:
                yield self._results.get_nowait()

    def close(self) -> None:
        """Do nothing any more."""
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads:
            thread.join(ASK_SECONDS)

    def _serve(self) -> None:
        with httpx.Client(base_url=self._url, timeout=ASK_SECONDS, trust_env=False) as http:
            while (asked := self._asked.get()) is not None:
                try:
                    self._do(http, asked)
                except Exception as error:
                    self.complaints.append(f"{asked}: {error!r}")

    def _do(self, http: httpx.Client, asked: A) -> None:
        raise NotImplementedError


class Callers(Pool[tuple[Any, ...], Started | Decided]):
    """A few threads that ask."""

    def __init__(self, url: str) -> None:
        self.retries: Counter[str] = Counter()
        """Answers after which a caller asked again, by kind."""
        super().__init__(url, THREADS)

    def start(self, order: Order) -> None:
        """Have a run started."""
        self._asked.put((order,))

    def decide(self, run_id: str, approval_id: str, verdict: str) -> None:
        """Have an approval decided."""
        self._asked.put((run_id, approval_id, verdict))

    def _do(self, http: httpx.Client, asked: tuple[Any, ...]) -> None:
        self._results.put(self._start(http, *asked) if len(asked) == 1 else self._decide(http, *asked))

    def _start(self, http: httpx.Client, order: Order) -> Started:
        body = {"agent": order.agent, "input": order.input}
        answer = self._ask(http, "/runs", body, {"Idempotency-Key": order.key})
        assert answer.status_code == 202, answer.text
        return Started(order, answer.json()["run_id"])

    def _decide(self, http: httpx.Client, run_id: str, approval_id: str, verdict: str) -> Decided:
        body = {"decision": verdict, "comment": f"The chaos suite says {verdict}."}
        answer = self._ask(http, f"/runs/{run_id}/approvals/{approval_id}", body)
        assert answer.status_code in (200, 409), answer.text
        return Decided(run_id, approval_id, verdict, answer.status_code, answer.json())

    def _ask(
        self, http: httpx.Client, path: str, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> httpx.Response:
        while True:
            try:
                answer = http.post(path, json=body, headers=headers)
            except httpx.TransportError as error:
                self.retries[type(error).__name__] += 1
            else:
                if answer.status_code not in AGAIN:
                    return answer
                self.retries[str(answer.status_code)] += 1
            time.sleep(RETRY_SECONDS)
