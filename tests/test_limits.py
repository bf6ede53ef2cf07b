"""What one request may cost: in bytes, in elements, in seconds, and in time in which nobody else is served."""

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import httpx
import psutil
import pytest

from app.storage.run_store import AgentRecord
from tests.conftest import StackMaker, execute
from tests.external_writer import ExternalWriter
from tests.harness import Stack, eventually, problem
from tests.raw_client import RawClient
from tests.speed import here

STANDSTILL_SECONDS = 0.1
ELEMENTS_MAX = 20_000
BYTES = 930_000


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """A web process that says how long its loop has stood still."""
    stack = module_stack()
    stack.start_web(application="tests.watched_wsgi:app")
    return stack


@pytest.fixture
def writer(web: Stack) -> ExternalWriter:
    """A writer of a run of its own."""
    return ExternalWriter.start(web.http)


def standstill(web: Stack) -> float:
    """Seconds, since it was last asked."""
    return float(web.http.get("/standstill").text)


def filled(part: str, before: str, after: str) -> bytes:
    """JSON text of about BYTES."""
    count = (BYTES - len(before) - len(after)) // (len(part) + 1)
    return (before + ",".join([part] * count) + after).encode()


def keys(count: int) -> dict[str, int]:
    """An object with so many members."""
    return {f"key{n}": n for n in range(count)}


START = '{"agent":"emit","input":'
LARGE: dict[str, bytes] = {
    "100,000 keys": json.dumps({"agent": "emit", "input": keys(45_000)}).encode(),
    "numbers": filled("1", START + '{"a":[', "]}}"),
    "empty objects": filled("{}", START + '{"a":[', "]}}"),
    "short texts": filled('""', START + '{"a":[', "]}}"),
    "unknown members": json.dumps(keys(50_000)).encode(),
    "metadata": json.dumps({"agent": "external", "metadata": keys(50_000)}).encode(),
    "depth": b"[" * BYTES,
    "closing brackets": b"]" * BYTES,
    "as many elements as may be": json.dumps({"agent": "external", "input": keys(ELEMENTS_MAX - 10)}).encode(),
    "as many that do not fit": json.dumps({"agent": "emit", "input": {"count": 1, **keys(ELEMENTS_MAX - 10)}}).encode(),
    "as many of them nested": json.dumps(
        {"agent": "external", "input": {"a": [{"secret_token": [1]}] * (ELEMENTS_MAX // 4)}}
    ).encode(),
    "as many unknown members": json.dumps(keys(ELEMENTS_MAX - 10)).encode(),
    "one long text": json.dumps({"agent": "external", "input": {"text": 'a,[{"' * 100_000}}).encode(),
    "one text of escapes": json.dumps({"agent": "external", "input": {"text": "\n" * 400_000}}).encode(),
}


@pytest.mark.parametrize("name", LARGE)
def test_no_body_of_a_megabyte_stops_the_loop(web: Stack, name: str) -> None:
    standstill(web)
    answer = web.http.post("/runs", content=LARGE[name], headers={"Content-Type": "application/json"})
    assert answer.status_code < 500
    assert standstill(web) < here(STANDSTILL_SECONDS)


MESSAGE = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"role": {"type": "string", "enum": [role]}, "text": {"anyOf": [{"type": "string"}]}},
            "required": ["role", "text"],
            "additionalProperties": False,
        }
        for role in ("system", "tool", "assistant", "user")
    ]
}
SCHEMAS: dict[str, tuple[dict[str, Any], Any]] = {
    "a list of one of several": ({"type": "array", "items": MESSAGE}, [{"role": "user", "text": "a"}] * 6_000),
    "a set of objects": ({"type": "array", "uniqueItems": True}, [{"n": n} for n in range(6_000)]),
    "a map": ({"type": "object", "additionalProperties": {"type": "integer"}}, keys(19_000)),
    "a map without its own": ({"type": "object", "properties": {"a": {}}, "additionalProperties": False}, keys(19_000)),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_input_stops_the_loop_whatever_its_agents_schema(web: Stack, name: str) -> None:
    schema, value = SCHEMAS[name]
    described = {"type": "object", "properties": {"a": schema}}
    web.services.registry.put_agent(AgentRecord("described", described, "shared", "1"))
    standstill(web)
    answer = web.http.post("/runs", json={"agent": "described", "input": {"a": value}})
    assert answer.status_code in (202, 422)
    assert standstill(web) < here(STANDSTILL_SECONDS)


UNIQUE: list[list[Any]] = [
    [1, "1", {"a": 1}, {"a": 2}], [True, 1], [False, 0.0, None], [[1], [True]], [{"a": 0}, {"a": False}],
    [1, 1.5, -1.0],
]  # fmt: skip
SAME: list[list[Any]] = [
    [{"a": 1, "b": 2}, {"b": 2, "a": 1}], [1, 1.0], [0, -0.0], [0.0, -0.0], [[1, [2]], [1.0, [2.0]]],
    [{"a": {"b": 3}}, {"a": {"b": 3.0}}], [10**15, 1e15], ["a", None, None],
]  # fmt: skip


@pytest.mark.parametrize(("items", "status"), [*((items, 202) for items in UNIQUE), *((items, 422) for items in SAME)])
def test_items_that_are_to_be_unique_are(web: Stack, items: list[Any], status: int) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    web.services.registry.put_agent(AgentRecord("unique", schema, "shared", "1"))
    assert web.http.post("/runs", json={"agent": "unique", "input": {"a": items}}).status_code == status


def event(type: str, payload: str) -> bytes:
    """One line of a batch."""
    return f'{{"type":"{type}","payload":{payload}}}'.encode()


BATCHES: dict[str, bytes] = {
    "empty steps": event("plan.created", filled("{}", '{"steps":[', "]}").decode()),
    "as many as may be": event("plan.created", '{"steps":[' + ",".join(["{}"] * 19_000) + "]}"),
    "as many valid ones": event("plan.updated", '{"steps":[' + ",".join(['{"id":"a","title":"b"}'] * 6_000) + "]}"),
    "a plan in each line": b"\n".join(
        [event("plan.created", '{"steps":[' + ",".join(['{"id":"a","title":"b"}'] * 900) + "]}")] * 40
    ),
    "keys": event("custom.keys", json.dumps(keys(45_000))),
    "as many keys as may be": event("custom.keys", json.dumps(keys(ELEMENTS_MAX - 10))),
    "as many in each line": b"\n".join([event("custom.keys", json.dumps(keys(2_000)))] * 25),
    "1,000 lines": b"\n".join([event("custom.text", json.dumps({"text": "x" * 880}))] * 1_000),
    "unknown members": event("step.started", json.dumps(keys(ELEMENTS_MAX - 10))),
}


@pytest.mark.parametrize("name", BATCHES)
def test_no_batch_of_a_megabyte_stops_the_loop(web: Stack, writer: ExternalWriter, name: str) -> None:
    standstill(web)
    writer.seq = 1
    assert writer.send(BATCHES[name]).status_code < 500
    assert standstill(web) < here(STANDSTILL_SECONDS)


def test_no_finish_of_a_megabyte_stops_the_loop(web: Stack, writer: ExternalWriter) -> None:
    standstill(web)
    assert writer.finish({"status": "completed", "output": keys(ELEMENTS_MAX - 10)}).status_code == 200
    assert standstill(web) < here(STANDSTILL_SECONDS)


@pytest.mark.parametrize("count", [ELEMENTS_MAX + 1, 100_000])
def test_json_of_too_many_elements_is_refused_wherever_it_is_sent(
    web: Stack, writer: ExternalWriter, count: int
) -> None:
    refused = (413, "too_many_elements")
    many = [0] * count
    problem(web.http.post("/runs", json={"agent": "emit", "input": {"a": many}}), *refused)
    problem(web.http.post("/runs/cancel", json={"client_run_id": many}), *refused)
    problem(web.http.post(f"/runs/{writer.run_id}/input", json={"text": many}), *refused)
    problem(web.http.post(f"/runs/{writer.run_id}/approvals/a", json={"decision": many}), *refused)
    problem(writer.append(("custom.x", {"a": many})), *refused)
    problem(writer.finish({"status": "completed", "output": many}), *refused)


def test_what_looks_like_elements_within_a_text_is_none(web: Stack) -> None:
    text = '{"a":[1,{},"\\",[' * 8_000
    assert web.http.post("/runs", json={"agent": "external", "input": {"text": text}}).status_code == 202


# Seconds.

ROUTES = [
    "/runs",
    "/runs/cancel",
    "/runs/run_1/cancel",
    "/runs/run_1/erase",
    "/runs/run_1/input",
    "/readyz",
    "/nowhere",
]


def trickle(web: Stack, path: str) -> tuple[float, bytes]:
    """Send the beginning of a body; the seconds until the connection is closed, and what was heard on it."""
    method = "GET" if path in ("/readyz", "/nowhere") else "POST"
    headers = "Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    began, heard = time.monotonic(), b""
    with socket.create_connection(("127.0.0.1", web.port), timeout=40) as client:
        client.sendall(f"{method} {path} HTTP/1.1\r\n{headers}{{".encode())
        while data := client.recv(65_536):
            heard += data
    return time.monotonic() - began, heard


def served_to(web: Stack) -> set[int]:
    """Ports of the clients whose connections the web process holds."""
    (worker,) = psutil.Process(web.web_pid).children()
    return {connection.raddr.port for connection in worker.net_connections("tcp") if connection.raddr}


def test_an_answer_that_nobody_reads_is_not_kept_for_ever(web: Stack) -> None:
    (run_id,) = start_large(web, 1, 900_000)
    with ExitStack() as opened:
        clients = [opened.enter_context(RawClient(web.port, receive_buffer=4_096)) for _ in range(4)]
        for client in clients:
            client.ask(f"/runs/{run_id}", "application/json")
        ports = {client.socket.getsockname()[1] for client in clients}
        eventually(lambda: ports <= served_to(web))
        eventually(lambda: not ports & served_to(web), 60, "the end of the connections")


def test_a_body_that_does_not_come_is_not_waited_for_for_ever(web: Stack) -> None:
    """One that nobody looks at is not waited for at all."""
    with ThreadPoolExecutor(len(ROUTES)) as pool:
        for path, (took, heard) in zip(ROUTES, pool.map(partial(trickle, web), ROUTES), strict=True):
            late = b"body_timeout" in heard
            assert late == (path in ("/runs", "/runs/cancel", "/runs/run_1/input")), path
            assert (25 < took < 35) if late else took < 5, (path, took)


CHUNKS = [b"zz\r\n{}\r\n", b"-1\r\n{}\r\n", b"2\r\n{}XX0\r\n\r\n", b"2\r\n{}\r\n0\r\nno trailer\r\n\r\n"]


@pytest.mark.parametrize("chunk", CHUNKS)
def test_a_malformed_chunk_is_the_callers_fault(web: Stack, chunk: bytes) -> None:
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as client:
        headers = b"Host: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(b"POST /runs HTTP/1.1\r\n" + headers + chunk)
        assert client.recv(65_536).startswith(b"HTTP/1.1 400 ")


def test_a_connection_is_kept_where_the_body_has_been_read_or_has_come(web: Stack) -> None:
    with httpx.Client(base_url=web.url) as client:
        for _ in range(3):
            client.post("/runs", json={})
            client.post("/runs/run_1/cancel", json={"ignored": True})
        pool: Any = client._transport
        assert len(pool._pool.connections) == 1
    ask: Callable[..., httpx.Response] = web.http.post
    assert "close" not in ask("/runs/run_1/cancel", json={}).headers.get("Connection", "")


# Bytes of answers.


def start_large(web: Stack, count: int, size: int) -> list[str]:
    """External runs with an input of that many bytes; their ids, newest first."""
    body = {"agent": "external", "input": {"text": "x" * size}, "session_id": f"ses_{size}_{time.time_ns()}"}
    return [web.http.post("/runs", json=body).json()["run_id"] for _ in range(count)][::-1]


@pytest.mark.parametrize(("count", "size"), [(12, 930_000), (30, 150_000), (60, 100)])
def test_a_list_of_runs_has_no_more_than_a_megabyte_and_shows_all_of_them(web: Stack, count: int, size: int) -> None:
    ids = start_large(web, count, size)
    session = web.http.get(f"/runs/{ids[0]}").json()["session_id"]
    query: dict[str, Any] = {"session": session, "limit": 200}
    found: list[str] = []
    standstill(web)
    while True:
        answer = web.http.get("/runs", params=query)
        assert len(answer.content) < 1_200_000
        page = answer.json()
        found += [run["run_id"] for run in page["runs"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert found == ids
    assert standstill(web) < here(STANDSTILL_SECONDS)


def test_a_run_in_a_list_is_what_it_is_alone(web: Stack) -> None:
    run = ExternalWriter.start(web.http, input={"é": ["\u2028", None, 1.5]}, metadata={"a": {"b": []}}).run_id
    (listed, *_) = web.http.get("/runs", params={"limit": 1}).json()["runs"]
    alone = web.http.get(f"/runs/{run}").json()
    assert listed == {name: value for name, value in alone.items() if name != "state"}


def test_a_list_of_approvals_has_no_more_than_a_megabyte_and_shows_all_of_them(web: Stack) -> None:
    writer = ExternalWriter.start(web.http)
    for number in range(12):
        label = f"{number}" * (200_000 if number % 3 else 10)
        asked = {"approval_id": f"a{number}", "label": label, "requires": "owner"}
        assert writer.append(("approval.required", asked)).status_code == 200
    found: list[str] = []
    query: dict[str, Any] = {"run": writer.run_id, "limit": 200}
    while True:
        answer = web.http.get("/approvals", params=query)
        assert len(answer.content) < 1_100_000
        page = answer.json()
        found += [approval["approval_id"] for approval in page["approvals"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert found == [f"a{number}" for number in reversed(range(12))]


@pytest.mark.parametrize(("count", "size"), [(20, 900_000), (400, 10_000)])
def test_a_page_of_events_has_no_more_than_a_megabyte_and_leads_to_all_of_them(
    web: Stack, writer: ExternalWriter, count: int, size: int
) -> None:
    at_once = max(1, 900_000 // (size + 100))
    for _ in range(0, count, at_once):
        assert writer.append(*[("custom.large", {"text": "x" * size})] * at_once).status_code == 200
    head, seqs, query = 2 + -(-count // at_once) * at_once, [], {"since_seq": 0, "limit": 1_000}
    while True:
        answer = web.http.get(f"/runs/{writer.run_id}/events", params=query, headers={"Accept": "application/json"})
        assert len(answer.content) < 1_100_000
        page = answer.json()
        if not page["events"]:
            break
        seqs += [event["seq"] for event in page["events"]]
        query["since_seq"] = page["next_since_seq"]
    assert seqs == list(range(1, head + 1))


def test_clients_that_never_read_hold_little(web: Stack, writer: ExternalWriter) -> None:
    for _ in range(30):
        assert writer.append(("custom.large", {"text": "x" * 900_000})).status_code == 200
    before = memory(web)
    with ExitStack() as opened:
        for _ in range(12):
            client = opened.enter_context(RawClient(web.port, receive_buffer=8_192))
            client.ask(f"/runs/{writer.run_id}/events", "application/x-ndjson").until(b"run.created")
        time.sleep(1)
        assert memory(web) - before < 60_000_000


def memory(web: Stack) -> int:
    """Bytes that the web process holds."""
    (worker,) = psutil.Process(web.web_pid).children()
    return int(worker.memory_info().rss)


def test_a_user_notes_only_so_many_cancels(web: Stack) -> None:
    def note(number: int) -> httpx.Response:
        return web.http.post("/runs/cancel", json={"client_run_id": f"early-{number}"})

    values = ", ".join(f"('dev', 'dev', 'client_run_id', 'early-{n}')" for n in range(998))
    execute(web.env["DATABASE_URL"], f"INSERT INTO early_cancels (tenant_id, user_id, kind, key) VALUES {values}")
    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(answer.status_code for answer in pool.map(note, range(2_000, 2_008)))
    assert statuses == [202] * 2 + [409] * 6
    problem(note(3_000), 409, "too_many_cancels")
    assert note(5).status_code == 202
    assert web.http.post("/runs", json={"agent": "external", "client_run_id": "early-6"}).status_code == 202
    assert note(3_001).status_code == 202
