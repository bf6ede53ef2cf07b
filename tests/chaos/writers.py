"""Writers of external runs: each writes its ticks in small batches, and now and then dies with a batch on its way.

A batch is sent again until it is answered, under its number. A writer that has died is followed by another one with the
same idempotency key, which goes on after the last tick that the log holds.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from random import Random
from typing import Any

import httpx

from tests.chaos.commands import AGAIN, RETRY_SECONDS, Pool, Started
from tests.chaos.schedule import Order
from tests.external_writer import ExternalWriter, ndjson

THREADS = 24
BATCH = 3
PAUSE_SECONDS = 0.4
DEATHS = 0.1
"""Share of the batches that their writer does not outlive."""
GIVE_UP_SECONDS = 60.0


class Writers(Pool[Order, Started]):
    """A few threads, each of which writes one run at a time."""

    def __init__(self, url: str) -> None:
        self.deaths = 0
        super().__init__(url, THREADS)

    def start(self, order: Order) -> None:
        """Have a run written."""
        self._asked.put(order)

    def _do(self, http: httpx.Client, asked: Order) -> None:
        _Writing(http, asked, self).run()

    def opened(self, order: Order, run_id: str) -> None:
        """The first writer of a run has begun."""
        self._results.put(Started(order, run_id))


class _Writing:
    def __init__(self, http: httpx.Client, order: Order, writers: Writers) -> None:
        self._http = http
        self._order = order
        self._writers = writers
        self._randomly = Random(f"writer of {order.key}")

    def run(self) -> None:
        """Write the run to its end, by as many writers as it takes."""
        writer = self._open()
        self._writers.opened(self._order, writer.run_id)
        count, done = self._order.input["count"], 0
        while done < count:
            batch = [("custom.tick", {"n": n}) for n in range(done, min(done + BATCH, count))]
            if self._randomly.random() < DEATHS:
                writer, done = self._follow(writer, batch)
                continue
            writer.seq += 1
            self._insist(partial(writer.send, ndjson(batch)))
            done += len(batch)
            time.sleep(PAUSE_SECONDS)
        self._insist(lambda: writer.complete(output={"count": count}))

    def _open(self) -> ExternalWriter:
        body = {"agent": "external", "input": self._order.input}
        answer = self._insist(lambda: self._http.post("/runs", json=body, headers={"Idempotency-Key": self._order.key}))
        return ExternalWriter(self._http, answer.json())

    def _follow(self, writer: ExternalWriter, batch: list[tuple[str, dict[str, Any]]]) -> tuple[ExternalWriter, int]:
        """The writer dies right after it has sent a batch; another one goes on after what has arrived of that."""
        self._writers.deaths += 1
        with suppress(httpx.HTTPError):
            self._http.post(
                f"/runs/{writer.run_id}/events",
                content=ndjson(batch),
                headers={**writer.headers(writer.seq + 1), "Content-Type": "application/x-ndjson"},
                timeout=0.02,
            )
        return self._open(), len(self._ticks(writer.run_id))

    def _ticks(self, run_id: str) -> list[int]:
        query, headers = {"since_seq": 0, "limit": 1000}, {"Accept": "application/json"}
        answer = self._insist(lambda: self._http.get(f"/runs/{run_id}/events", params=query, headers=headers))
        return [event["payload"]["n"] for event in answer.json()["events"] if event["type"] == "custom.tick"]

    def _insist(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while True:
            try:
                answer = ask()
                if answer.status_code not in AGAIN:
                    assert answer.is_success, answer.text
                    return answer
            except httpx.TransportError:
                pass  # it was not answered: asked again
            assert time.monotonic() < deadline, "It was not answered in time."
            time.sleep(RETRY_SECONDS)
