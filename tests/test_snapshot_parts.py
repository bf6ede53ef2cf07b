"""`?snapshot=parts`: a state of any size in messages of bounded size, on every wire."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.protocol.events import snapshot_parts
from app.protocol.sizes import DELTA_MAX_CHARS
from tests.conftest import StackMaker
from tests.harness import Stack, problem
from tests.log_author import LogAuthor
from tests.raw_client import RawClient
from tests.socket_client import SocketClient
from tests.test_hub import UNLIMITED

SSE, NDJSON = "text/event-stream", "application/x-ndjson"
PART_BYTES = 128_000
TEXTS = {
    "plain": "x" * 2_500_000,
    "what JSON escapes": '"\\' * 500_000,
    "what is no line's end for JSON": "\u2028\x85" * 300_000,
    "outside the first plane": "🚚" * 600_000,
    "little": "x",
}


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """A web process, and no worker: logs are written by the tests."""
    stack = module_stack(**UNLIMITED, REPLAY_MAX_BYTES="0")
    stack.start_web()
    return stack


@pytest.fixture
def author(web: Stack) -> LogAuthor:
    """Of a run of the web process."""
    return LogAuthor(web)


def write_message(author: LogAuthor, text: str) -> None:
    """A message of that text, in pieces."""
    author.write("message.started", {"message_id": "m", "role": "assistant"})
    for start in range(0, len(text), DELTA_MAX_CHARS):
        author.write("message.delta", {"message_id": "m", "text": text[start : start + DELTA_MAX_CHARS]})


def over_sse(web: Stack, author: LogAuthor, query: str) -> list[bytes]:
    """The data of each message; the last one alone has an id."""
    with RawClient(web.port) as client:
        client.ask(f"{author.path}{query}").to_the_end()
        found = [message.split(b"\n") for message in client.body.split(b"\n\n")[:-1]]
    assert [any(line.startswith(b"id: ") for line in lines) for lines in found] == [False] * (len(found) - 1) + [True]
    assert b"id: %d" % author.head in found[-1]
    return [line[len(b"data: ") :] for lines in found for line in lines if line.startswith(b"data: ")]


def over_ndjson(web: Stack, author: LogAuthor, query: str) -> list[bytes]:
    """The lines."""
    with RawClient(web.port) as client:
        return [line for line in client.ask(f"{author.path}{query}", NDJSON).to_the_end().body.split(b"\n") if line]


def over_websocket(web: Stack, author: LogAuthor, query: str) -> list[bytes]:
    """The messages."""
    with SocketClient(web.port) as client:
        client.open(author.run_id, query).to_the_end()
        return [text.encode() for text in client.texts]


Read = Callable[[Stack, LogAuthor, str], list[bytes]]
READERS = pytest.mark.parametrize("read", [over_sse, over_ndjson, over_websocket])


def put_together(parts: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """What a client makes of the parts: seq and state."""
    payloads = [part["payload"] for part in parts]
    assert [part["type"] for part in parts] == ["stream.snapshot.part"] * len(parts)
    assert [payload["part"] for payload in payloads] == list(range(1, len(parts) + 1))
    assert {payload["parts"] for payload in payloads} == {len(parts)}
    [seq] = {payload["seq"] for payload in payloads}
    return seq, json.loads("".join(payload["text"] for payload in payloads))


@READERS
@pytest.mark.parametrize("kind", TEXTS)
def test_a_state_of_any_size_comes_in_messages_of_bounded_size(
    web: Stack, author: LogAuthor, read: Read, kind: str
) -> None:
    write_message(author, TEXTS[kind])
    author.end()
    messages = read(web, author, "?since_seq=latest&snapshot=parts")
    assert max(map(len, messages)) <= PART_BYTES
    seq, state = put_together(list(map(json.loads, messages)))
    [whole] = map(json.loads, read(web, author, "?since_seq=latest"))
    assert {"seq": seq, "state": state} == whole["payload"]
    assert state["messages"][0]["text"] == TEXTS[kind]
    assert (len(messages) == 1) == (kind == "little")


@READERS
def test_the_events_after_the_parts_follow_their_seq(web: Stack, author: LogAuthor, read: Read) -> None:
    with RawClient(web.port) as sse, RawClient(web.port) as lines, SocketClient(web.port) as socket:
        write_message(author, TEXTS["plain"])
        query = "?since_seq=latest&snapshot=parts"
        last = b'"part":84,"text"'
        sse.ask(author.path + query).until(last)
        lines.ask(author.path + query, NDJSON).until(last)
        socket.open(author.run_id, query).until(last)
        head = author.head
        author.append(2)
        author.end()
        for client in (sse, lines, socket):
            client.to_the_end()
            *parts, first, second, end = client.envelopes
            assert put_together(parts)[0] == head
            assert [first["seq"], second["seq"], end["seq"]] == [head + 1, head + 2, head + 3]


def test_whoever_is_cut_off_between_parts_gets_the_whole_again(web: Stack, author: LogAuthor) -> None:
    """Only the last part moves an EventSource's cursor."""
    write_message(author, TEXTS["plain"])
    author.end()
    with RawClient(web.port, receive_buffer=4_096) as client:
        client.ask(f"{author.path}?since_seq=latest&snapshot=parts").until(b'"part":3,')
        assert b"\nid: " not in client.received
        client.reset()
    assert put_together(list(map(json.loads, over_sse(web, author, "?since_seq=latest&snapshot=parts"))))


def test_several_runs_have_a_place_in_the_cursor_after_their_last_part(web: Stack) -> None:
    authors = [LogAuthor(web) for _ in range(2)]
    for author in authors:
        write_message(author, "x" * 100_000)
        author.end()
    runs = ",".join(author.run_id for author in authors)
    body = web.http.get(f"/events?runs={runs}&since=latest&snapshot=parts").text
    messages = [dict(line.split(": ", 1) for line in text.split("\n") if ": " in line) for text in body.split("\n\n")]
    parts = [json.loads(message["data"]) for message in messages if "data" in message]
    for author in authors:
        seq, state = put_together([part for part in parts if part["run_id"] == author.run_id])
        assert (seq, state["messages"][0]["text"]) == (author.head, "x" * 100_000)
    assert [message["id"] for message in messages if "id" in message] == [
        ",".join(f"{author.run_id}:{author.head}" for author in authors)
    ]


@pytest.mark.parametrize("path", ["/runs/{}/events?snapshot={}", "/events?runs={}&snapshot={}"])
@pytest.mark.parametrize("value", ["part", "", "1", "parts,whole"])
def test_another_snapshot_is_refused(web: Stack, author: LogAuthor, path: str, value: str) -> None:
    problem(web.http.get(path.format(author.run_id, value)), 422, "invalid_request")


def test_a_part_is_never_larger_than_is_said() -> None:
    """The worst characters that a state's JSON can hold."""
    for character in ('"', "\\", "\u2028", "\U0010ffff", "é", "x"):
        state = json.dumps({"text": character * 100_000}, ensure_ascii=False)
        texts = list(snapshot_parts("r" * 64, 2**53, state))
        assert len(texts) > 1
        assert max(len(text.encode()) for text in texts) <= PART_BYTES


def test_the_document_names_the_parameter(web: Stack) -> None:
    answer: httpx.Response = web.http.get("/openapi.json")
    for path in ("/runs/{run_id}/events", "/runs/{run_id}/ws", "/events"):
        parameters = {parameter["name"]: parameter for parameter in answer.json()["paths"][path]["get"]["parameters"]}
        assert parameters["snapshot"]["schema"]["enum"] == ["whole", "parts"]
