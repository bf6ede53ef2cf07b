"""A writer of an external run, as a library of such writers would be: numbers its batches, keeps its token."""

import json
from collections.abc import Sequence
from typing import Any, Self

import httpx

Line = tuple[str, dict[str, Any]]


def ndjson(lines: Sequence[Line]) -> bytes:
    """The body of a batch."""
    return b"".join(json.dumps({"type": type, "payload": payload}).encode() + b"\n" for type, payload in lines)


def words(*texts: str) -> list[Line]:
    """A message in so many pieces, as events."""
    deltas = [("message.delta", {"message_id": "m1", "text": text}) for text in texts]
    started = ("message.started", {"message_id": "m1", "role": "assistant"})
    return [started, *deltas, ("message.completed", {"message_id": "m1", "chars": len("".join(texts))})]


class ExternalWriter:
    """One writer. `seq` is the number of the last batch that it has sent."""

    def __init__(self, http: httpx.Client, started: dict[str, Any]) -> None:
        """:param started: the answer to POST /runs."""
        self.http = http
        self.run_id: str = started["run_id"]
        self.token: str = started["writer_token"]
        self.watch_token: str = started["watch_token"]
        self.epoch: int = started["epoch"]
        self.seq = 0

    @classmethod
    def start(cls, http: httpx.Client, headers: dict[str, str] | None = None, **body: Any) -> Self:
        """POST /runs."""
        answer = http.post("/runs", json={"agent": "external", **body}, headers=headers)
        assert answer.status_code == 202, answer.text
        return cls(http, answer.json())

    def append(self, *lines: Line, **more: Any) -> httpx.Response:
        """The next batch."""
        self.seq += 1
        return self.send(ndjson(lines), **more)

    def send(self, body: Any, seq: object = None, inputs_after: int | None = None, **headers: str) -> httpx.Response:
        """A batch as it is given, under the number of the last one."""
        query = {} if inputs_after is None else {"inputs_after": inputs_after}
        sent = {**self.headers(seq), "Content-Type": "application/x-ndjson", **headers}
        return self.http.post(f"/runs/{self.run_id}/events", content=body, params=query, headers=sent)

    def beat(self, inputs_after: int | None = None, **headers: str) -> httpx.Response:
        """A heartbeat."""
        query = {} if inputs_after is None else {"inputs_after": inputs_after}
        sent = {**self.headers(), **headers}
        return self.http.post(f"/runs/{self.run_id}/heartbeat", params=query, headers=sent)

    def finish(self, body: Any, seq: object = None) -> httpx.Response:
        """The end, under the number after the last batch's."""
        seq = self.seq + 1 if seq is None else seq
        return self.http.post(f"/runs/{self.run_id}/finish", json=body, headers=self.headers(seq))

    def complete(self, **more: Any) -> httpx.Response:
        """The end of a run that has succeeded."""
        return self.finish({"status": "completed", **more})

    def headers(self, seq: object = None) -> dict[str, str]:
        """Of its calls."""
        seq = self.seq if seq is None else seq
        return {
            "Authorization": f"Bearer {self.token}",
            "Producer-Epoch": str(self.epoch),
            "Producer-Seq": str(seq),
        }
