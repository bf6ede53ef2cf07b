"""What a scenario says to Runtail's web, over connections of its own, and the windows in which it sees what came of it.

Responsible for requests and for the moments at which events arrive. Not responsible for many windows (`bench.load`).
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from bench.processes import BenchError

HOST = "127.0.0.1"
TIMEOUT_SECONDS = 30


class Api:
    """One kept-alive connection. A command can be sent apart from its answer being read."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection(HOST, port, timeout=TIMEOUT_SECONDS)

    def start(self, agent: str, input: Mapping[str, Any]) -> str:
        """Start a run; its id.

        :raises BenchError: it was refused.
        """
        run_id: str = self.post("/runs", {"agent": agent, "input": input})["run_id"]
        return run_id

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] = MappingProxyType({})
    ) -> Any:
        """POST, and wait for the answer.

        :raises BenchError: it is an error.
        """
        self.send(path, body, headers)
        return self.answer()

    def get(self, path: str) -> Any:
        """GET, and wait for the answer.

        :raises BenchError: it is an error.
        """
        self._connection.request("GET", path, headers={"Accept": "application/json"})
        return self.answer()

    def send(
        self, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """POST, without waiting for the answer."""
        text = json.dumps(body or {}).encode()
        self._connection.request("POST", path, text, {"Content-Type": "application/json", **headers})

    def answer(self) -> Any:
        """The answer to what was sent.

        :raises BenchError: it is an error.
        """
        response = self._connection.getresponse()
        text = response.read()
        if response.status >= 400:
            raise BenchError(f"Runtail answered {response.status}: {text[:300].decode(errors='replace')}")
        return json.loads(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()


class Seen(NamedTuple):
    """An event, and the moment at which it was read, by `time.monotonic`."""

    at: float
    event: dict[str, Any]


class Window:
    """An NDJSON window on a run, from its start."""

    def __init__(self, port: int, run_id: str) -> None:
        self._connection = HTTPConnection(HOST, port, timeout=TIMEOUT_SECONDS)
        self._connection.request(
            "GET", f"/runs/{run_id}/events?since_seq=0", headers={"Accept": "application/x-ndjson"}
        )
        self._response = self._connection.getresponse()
        self._run_id = run_id

    def until(self, type: str) -> Seen:
        """The next event of that type; those before it are passed over.

        :raises BenchError: the window ends without it, or stands still for TIMEOUT_SECONDS.
        """
        with suppress(TimeoutError):
            while line := self._response.readline():
                at = time.monotonic()
                event: dict[str, Any] = json.loads(line) if line.strip() else {}
                if event.get("type") == type:
                    return Seen(at, event)
        raise BenchError(f"The window on {self._run_id} has not shown {type}.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
