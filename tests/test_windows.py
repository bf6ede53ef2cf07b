"""Windows over real HTTP: every format, every cursor, live and replayed, and what ends them."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse
from redis import Redis

from app.protocol.digest import digest
from app.protocol.reducer import fold, initial
from app.wiring import Services
from tests.conftest import StackMaker
from tests.harness import Stack, eventually, problem
from tests.speed import timed

SSE, NDJSON, JSON = "text/event-stream", "application/x-ndjson", "application/json"
TICKS = {"count": 3, "type": "custom.tick"}
ENDLESS = {"count": 100_000, "interval_ms": 20, "type": "custom.tick"}
QUIET = {"count": 100_000, "interval_ms": 59_000, "type": "custom.tick"}


@pytest.fixture(scope="module")
def ended(live: Stack) -> dict[str, Any]:
    """A run that has ended: seq 1 to 6."""
    run = live.ended(live.start("emit", TICKS))
    assert run["state_seq"] == 6
    return run


@pytest.fixture(scope="module")
def beating(module_stack: StackMaker) -> Stack:
    """A stack whose windows have a heartbeat every second and whose streams last a minute."""
    stack = module_stack(STREAM_HEARTBEAT_SECONDS="1", STREAM_TTL_SECONDS="60")
    stack.start_web()
    stack.start_worker()
    return stack


@pytest.fixture
def running(live: Stack) -> Iterator[Callable[[dict[str, Any]], str]]:
    """Starts runs that do not end by themselves, and cancels them."""
    started: list[str] = []

    def start(input: dict[str, Any]) -> str:
        started.append(live.start("emit", input))
        eventually(lambda: live.read(started[-1])["state"]["last_seq"] >= 3)
        return started[-1]

    yield start
    for run_id in started:
        live.http.post(f"/runs/{run_id}/cancel")


def get(stack: Stack, run: dict[str, Any] | str, accept: str | None = SSE, **options: Any) -> httpx.Response:
    """A whole window, or a page."""
    run_id = run if isinstance(run, str) else run["run_id"]
    headers = {**({"Accept": accept} if accept is not None else {}), **options.pop("headers", {})}
    return stack.http.get(f"/runs/{run_id}/events", headers=headers, **options)


@contextmanager
def opened(stack: Stack, run_id: str, accept: str = SSE, **options: Any) -> Iterator[httpx.Response]:
    """An open window, on a connection of its own."""
    headers = {"Accept": accept, **options.pop("headers", {})}
    with (
        httpx.Client(base_url=stack.url, timeout=15) as client,
        client.stream("GET", f"/runs/{run_id}/events", headers=headers, **options) as window,
    ):
        yield window


def read_until(window: httpx.Response, what: bytes) -> tuple[bytes, Iterator[bytes]]:
    """What the window brings up to where it has `what`, and what it will bring after that."""
    chunks, received = window.iter_bytes(), b""
    while what not in received:
        received += next(chunks)
    return received, chunks


def messages(body: bytes) -> list[dict[str, str]]:
    """The messages of an SSE body, field by field; comments and `retry` left out."""
    lines = [line for line in body.decode().split("\n") if not line.startswith((":", "retry:"))]
    blocks = "\n".join(lines).split("\n\n")
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks if block]  # type: ignore[misc]


def envelopes(answer: httpx.Response) -> list[dict[str, Any]]:
    """What a window or a page delivered, whatever its format."""
    media_type = answer.headers["Content-Type"].partition(";")[0]
    if media_type == SSE:
        return [json.loads(message["data"]) for message in messages(answer.content)]
    if media_type == NDJSON:
        return [json.loads(line) for line in answer.content.split(b"\n") if line]
    events: list[dict[str, Any]] = answer.json()["events"]
    return events


def seqs(answer: httpx.Response) -> list[int]:
    return [envelope["seq"] for envelope in envelopes(answer)]


# Formats.


def test_an_sse_window_is_framed_as_documented(live: Stack, ended: dict[str, Any], services: Services) -> None:
    answer = get(live, ended)
    stored = services.store.events(ended["run_id"], 0, 100)
    expected = "retry: 1000\n" + "".join(f"id: {e.seq}\nevent: {e.type}\ndata: {e.text}\n\n" for e in stored)
    assert answer.text == expected
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache, no-transform"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.headers["Vary"] == "Accept"
    assert "Content-Length" not in answer.headers


def test_an_ndjson_window_is_one_envelope_a_line(live: Stack, ended: dict[str, Any], services: Services) -> None:
    answer = get(live, ended, NDJSON)
    stored = services.store.events(ended["run_id"], 0, 100)
    assert answer.content == b"\n" + b"".join(event.text.encode() + b"\n" for event in stored)
    assert answer.headers["Content-Type"] == "application/x-ndjson; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-cache, no-transform"
    assert answer.headers["X-Accel-Buffering"] == "no"


def test_a_json_page_has_the_stored_bytes_and_says_where_it_is(
    live: Stack, ended: dict[str, Any], services: Services
) -> None:
    answer = get(live, ended, JSON)
    page = answer.json()
    assert {**page, "events": None} == {"events": None, "next_since_seq": 6, "head": 6, "terminal": True}
    assert answer.headers["Content-Type"] == JSON
    for event in services.store.events(ended["run_id"], 0, 100):
        assert event.text in answer.text


def test_json_pages_go_through_the_log_to_an_empty_one(live: Stack, ended: dict[str, Any]) -> None:
    found, since = [], 0
    while True:
        page = get(live, ended, JSON, params={"since_seq": since, "limit": 4}).json()
        assert (page["head"], page["terminal"]) == (6, True)
        if not page["events"]:
            break
        found += page["events"]
        since = page["next_since_seq"]
    assert since == page["next_since_seq"] == 6
    assert [event["seq"] for event in found] == [1, 2, 3, 4, 5, 6]


def test_a_json_page_of_a_live_run_tells_its_head(live: Stack, running: Callable[..., str]) -> None:
    run_id = running(QUIET)
    page = get(live, run_id, JSON, params={"limit": 2}).json()
    assert (len(page["events"]), page["next_since_seq"], page["head"], page["terminal"]) == (2, 2, 3, False)
    beyond = get(live, run_id, JSON, params={"since_seq": 1_000}).json()
    assert beyond == {"events": [], "next_since_seq": 1_000, "head": 3, "terminal": False}
    latest = get(live, run_id, JSON, params={"since_seq": "latest"}).json()
    assert latest == {"events": [], "next_since_seq": 3, "head": 3, "terminal": False}


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (None, SSE),
        ("", SSE),
        ("*/*", SSE),
        ("text/*", SSE),
        (SSE, SSE),
        ("text/event-stream, */*;q=0.1", SSE),
        ("text/html, */*;q=0.8", SSE),
        (NDJSON, NDJSON),
        ("application/x-ndjson, text/event-stream;q=0.9", NDJSON),
        ("text/event-stream;q=0.2, application/x-ndjson;q=0.3", NDJSON),
        ("text/event-stream;q=0, application/x-ndjson", NDJSON),
        ("text/html, application/x-ndjson;q=0.1", NDJSON),
        (JSON, JSON),
        ("APPLICATION/JSON", JSON),
        ("application/json, text/event-stream;q=0.9, application/x-ndjson;q=0.9", JSON),
        ("application/json;q=0.9, */*;q=0.1", JSON),
    ],
)
def test_accept_chooses_the_format(live: Stack, ended: dict[str, Any], accept: str | None, media_type: str) -> None:
    request = live.http.build_request("GET", f"/runs/{ended['run_id']}/events")
    del request.headers["Accept"]
    if accept is not None:
        request.headers["Accept"] = accept
    answer = live.http.send(request)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].partition(";")[0] == media_type
    assert answer.headers["Vary"] == "Accept"


@pytest.mark.parametrize("accept", ["text/html", "image/*", "text/event-stream;q=0", "application/xml, text/plain"])
def test_nothing_acceptable_is_406(live: Stack, ended: dict[str, Any], accept: str) -> None:
    problem(get(live, ended, accept), 406, "not_acceptable")


def test_without_names_every_message_reaches_onmessage(live: Stack, ended: dict[str, Any]) -> None:
    named, unnamed = get(live, ended), get(live, ended, params={"named": "0"})
    assert [set(message) for message in messages(unnamed.content)] == [{"id", "data"}] * 6
    assert re.sub(r"event: .*\n", "", named.text) == unnamed.text
    snapshot = get(live, ended, params={"named": "0", "since_seq": "latest"})
    assert [set(message) for message in messages(snapshot.content)] == [{"id", "data"}]


# Cursors.


def test_a_window_begins_after_its_cursor(live: Stack, ended: dict[str, Any]) -> None:
    for accept in (SSE, NDJSON, JSON):
        for cursor in range(6):
            assert seqs(get(live, ended, accept, params={"since_seq": cursor})) == list(range(cursor + 1, 7))


def test_the_header_wins_over_last_event_id_which_wins_over_since_seq(live: Stack, ended: dict[str, Any]) -> None:
    everything = {"last_event_id": "4", "since_seq": "3"}
    assert seqs(get(live, ended, headers={"Last-Event-ID": "5"}, params=everything)) == [6]
    assert seqs(get(live, ended, params=everything)) == [5, 6]
    assert seqs(get(live, ended, params={"lastEventId": "4", "since_seq": "3"})) == [5, 6], "as polyfills come back"
    assert seqs(get(live, ended, params={"since_seq": "3"})) == [4, 5, 6]
    assert seqs(get(live, ended, headers={"Last-Event-ID": "0"}, params=everything)) == [1, 2, 3, 4, 5, 6]
    assert seqs(get(live, ended, headers={"Last-Event-ID": ""}, params=everything)) == [5, 6]
    assert seqs(get(live, ended, headers={"Last-Event-ID": "5"}, params={"since_seq": "latest"})) == [6]


@pytest.mark.parametrize("cursor", ["x", "-1", "+1", "1.0", "1e3", "0x1", "1-0", " ", "٣", "NaN", "9" * 16, "9" * 500])
def test_a_cursor_that_is_no_seq_is_refused(live: Stack, ended: dict[str, Any], cursor: str) -> None:
    for accept in (SSE, NDJSON, JSON):
        problem(get(live, ended, accept, params={"since_seq": cursor}), 400, "invalid_cursor")
        problem(get(live, ended, accept, params={"last_event_id": cursor}), 400, "invalid_cursor")
        if cursor.strip():
            headers = {"Last-Event-ID": cursor.encode()}
            problem(get(live, ended, accept, headers=headers), 400, "invalid_cursor")


def test_a_bad_cursor_is_refused_even_if_a_lesser_one_is_good(live: Stack, ended: dict[str, Any]) -> None:
    answer = get(live, ended, headers={"Last-Event-ID": "x"}, params={"since_seq": "1"})
    problem(answer, 400, "invalid_cursor")


def test_beyond_the_end_of_a_finished_run_is_refused(live: Stack, ended: dict[str, Any]) -> None:
    for accept in (SSE, NDJSON, JSON):
        for cursor in ("7", "999999999999999"):
            problem(get(live, ended, accept, params={"since_seq": cursor}), 400, "invalid_cursor")


def test_at_the_terminal_cursor_only_sse_is_told_to_stay_away(live: Stack, ended: dict[str, Any]) -> None:
    at_the_end = {"since_seq": 6}
    answer = get(live, ended, params=at_the_end)
    assert (answer.status_code, answer.content) == (204, b"")
    assert get(live, ended, headers={"Last-Event-ID": "6"}).status_code == 204
    answer = get(live, ended, NDJSON, params=at_the_end)
    assert (answer.status_code, answer.content.strip()) == (200, b"")
    answer = get(live, ended, JSON, params=at_the_end)
    assert answer.json() == {"events": [], "next_since_seq": 6, "head": 6, "terminal": True}


def test_latest_on_a_finished_run_is_its_final_snapshot(live: Stack, ended: dict[str, Any]) -> None:
    (message,) = messages(get(live, ended, params={"since_seq": "latest"}).content)
    assert (message["id"], message["event"]) == ("6", "stream.snapshot")
    snapshot = json.loads(message["data"])
    assert set(snapshot) == {"v", "run_id", "type", "ts", "payload"}
    assert snapshot["payload"] == {"seq": 6, "state": ended["state"]}
    (line,) = envelopes(get(live, ended, NDJSON, params={"since_seq": "latest"}))
    assert line["payload"] == snapshot["payload"]
    assert get(live, ended, JSON, params={"since_seq": "latest"}).json()["events"] == []


def test_latest_on_a_live_run_is_a_snapshot_at_the_head_and_then_the_tail(live: Stack) -> None:
    run_id = live.start("emit", {"count": 40, "interval_ms": 10, "type": "message.delta", "text": "é "})
    eventually(lambda: live.read(run_id)["state"]["last_seq"] >= 5)
    answer = get(live, run_id, params={"since_seq": "latest"})
    first, *rest = messages(answer.content)
    snapshot = json.loads(first["data"])["payload"]
    assert first["event"] == "stream.snapshot"
    assert int(first["id"]) == snapshot["seq"] == snapshot["state"]["last_seq"] >= 5
    tail = [json.loads(message["data"]) for message in rest]
    assert tail[0]["seq"] == snapshot["seq"] + 1
    assert tail[-1]["type"] == "run.completed"
    assert fold(tail, snapshot["state"]) == live.read(run_id)["state"]


def test_a_cursor_beyond_a_live_head_gets_a_gap_then_a_snapshot_then_the_tail(
    live: Stack, running: Callable[..., str]
) -> None:
    run_id = running(QUIET)
    short = live.start("emit", {"count": 10, "interval_ms": 50, "type": "custom.tick"})
    beyond = {"params": {"since_seq": 1_000}}
    with ThreadPoolExecutor(1) as pool:
        started = time.monotonic()
        ended_meanwhile = pool.submit(get, live, short, **beyond)
        with opened(live, run_id, **beyond) as window, opened(live, run_id, NDJSON, **beyond) as lines:
            received, body = read_until(window, b"stream.snapshot")
            assert 4.5 < time.monotonic() - started < 8
            received_lines, body_of_lines = read_until(lines, b"stream.snapshot")
            live.http.post(f"/runs/{run_id}/cancel")
            received += b"".join(body)
            received_lines += b"".join(body_of_lines)
    gap, snapshot, *tail = messages(received)
    assert set(gap) == {"event", "data"}, "a gap must not move the cursor"
    assert json.loads(gap["data"])["payload"] == {"requested": 1_000, "earliest": 1, "head": 3}
    assert (snapshot["event"], snapshot["id"]) == ("stream.snapshot", "3")
    assert [(message["id"], message["event"]) for message in tail] == [("4", "run.cancelled")]
    types = [json.loads(line)["type"] for line in received_lines.split(b"\n") if line]
    assert types == ["stream.gap", "stream.snapshot", "run.cancelled"]
    assert [e["type"] for e in envelopes(ended_meanwhile.result())] == ["stream.gap", "stream.snapshot"]


def test_a_log_that_heals_in_time_delivers_without_a_gap(live: Stack, running: Callable[..., str]) -> None:
    run_id = running(ENDLESS)
    cursor = live.read(run_id)["state"]["last_seq"] + 30
    with opened(live, run_id, params={"since_seq": cursor}) as window:
        received = b""
        for chunk in window.iter_bytes():
            received += chunk
            if received.count(b"\n\n") >= 3:
                break
    assert b"stream." not in received
    assert [int(message["id"]) for message in messages(received)[:3]] == [cursor + 1, cursor + 2, cursor + 3]


# Live and replay are the same.


def test_a_late_window_gets_the_same_bytes_as_a_live_one(live: Stack) -> None:
    body = {"agent": "emit", "input": {"count": 200, "interval_ms": 2, "type": "custom.tick", "text": "é\r\n\u2028🚚"}}
    for accept in (SSE, NDJSON):
        with live.http.stream("POST", "/runs", json=body, headers={"Accept": accept}) as window:
            run_id = window.headers["X-Run-Id"]
            followed = window.read()
        assert followed == get(live, run_id, accept).content
        assert seqs(get(live, run_id, accept)) == list(range(1, 204))


def test_windows_opened_at_any_moment_end_alike_and_fold_to_the_stored_digest(live: Stack, services: Services) -> None:
    run_id = live.start("emit", {"count": 150, "interval_ms": 5, "text": "wörd ", "stamp": True})
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(get, live, run_id)
        eventually(lambda: live.read(run_id)["state"]["last_seq"] >= 5)
        second = pool.submit(get, live, run_id, NDJSON)
        eventually(lambda: live.read(run_id)["state"]["last_seq"] >= 9)
        from_snapshot = pool.submit(get, live, run_id, SSE, params={"since_seq": "latest"}).result()
        whole = [first.result(), second.result()]
    run = live.ended(run_id)
    services.log.delete(run_id)  # as after its time to live
    whole.append(get(live, run_id))
    for answer in whole:
        *before, terminal = envelopes(answer)
        state = fold(before, initial(run_id))
        assert digest(state, terminal["payload"]["output"]) == terminal["payload"]["digest"] == run["digest"]
        assert fold([terminal], state) == run["state"]
    snapshot, *tail = envelopes(from_snapshot)
    assert fold(tail, snapshot["payload"]["state"]) == run["state"]
    texts = {last_line(answer.text) for answer in (*whole, from_snapshot)}
    assert texts == {services.store.events(run_id, run["state_seq"] - 1, 1)[0].text}


def last_line(text: str) -> str:
    return text.rstrip("\n").rsplit("\n", 1)[-1].removeprefix("data: ")


def test_after_its_time_to_live_a_stream_is_served_from_postgres_in_the_same_bytes(
    live: Stack, services: Services
) -> None:
    run_id = live.ended(live.start("emit", {"count": 1_500, "type": "custom.tick"}))["run_id"]
    queries: list[dict[str, Any]] = [{}, {"since_seq": 700}, {"since_seq": 1_502}, {"named": "0"}, {"limit": 1_000}]
    before = {(a, str(q)): get(live, run_id, a, params=q).content for a in (SSE, NDJSON, JSON) for q in queries}
    services.log.delete(run_id)
    assert services.log.read(run_id, 0, 1) == []
    after = {(a, str(q)): get(live, run_id, a, params=q).content for a in (SSE, NDJSON, JSON) for q in queries}
    assert before == after
    assert seqs(get(live, run_id)) == list(range(1, 1_504))
    assert get(live, run_id, params={"since_seq": 1_503}).status_code == 204


def test_a_stream_has_a_time_to_live_only_once_its_run_has_ended(beating: Stack) -> None:
    run_id = beating.start("emit", QUIET)
    eventually(lambda: beating.read(run_id)["state"]["last_seq"] >= 3)
    with Redis.from_url(beating.env["REDIS_URL"]) as redis:
        keys = [f"rt:{{{run_id}}}:events", f"rt:{{{run_id}}}:meta"]
        assert [redis.ttl(key) for key in keys] == [-1, -1]
        assert beating.http.post(f"/runs/{run_id}/cancel").json()["status"] == "cancelled"
        assert all(0 < redis.ttl(key) <= 60 for key in keys)
        content = get(beating, run_id).content
        for key in keys:
            redis.pexpire(key, 1)
        eventually(lambda: not redis.exists(*keys))
    assert get(beating, run_id).content == content


# Open windows.


def test_a_window_says_how_to_come_back_before_anything_happens(live: Stack, running: Callable[..., str]) -> None:
    run_id = running(QUIET)
    for accept, opening in ((SSE, b"retry: 1000\n"), (NDJSON, b"\n")):
        with opened(live, run_id, accept, params={"since_seq": 3}) as window:
            assert next(window.iter_raw()) == opening


def test_a_live_event_reaches_an_open_window_at_once(live: Stack, running: Callable[..., str]) -> None:
    run_id = running(QUIET)
    with opened(live, run_id, params={"since_seq": 3}) as window:
        chunks = window.iter_raw()
        next(chunks)
        with timed() as delivery:
            live.http.post(f"/runs/{run_id}/cancel")
            assert b"event: run.cancelled\n" in next(chunks)
            assert delivery.seconds < 0.2
        assert list(chunks) == []


def test_a_quiet_window_has_heartbeats(beating: Stack) -> None:
    run_id = beating.start("emit", QUIET)
    eventually(lambda: beating.read(run_id)["state"]["last_seq"] >= 3)
    for accept, heartbeat in ((SSE, b":\n"), (NDJSON, b"\n")):
        with opened(beating, run_id, accept, params={"since_seq": 3}) as window:
            chunks = window.iter_raw()
            next(chunks)
            started = time.monotonic()
            assert next(chunks) == heartbeat
            assert 0.9 < time.monotonic() - started < 2.5


def test_httpx_sse_gets_every_seq_once_and_no_phantom_at_heartbeats(beating: Stack) -> None:
    run_id = beating.start("emit", {"count": 1, "interval_ms": 2_200, "type": "custom.tick"})
    with httpx.Client(base_url=beating.url) as client, connect_sse(client, "GET", f"/runs/{run_id}/events") as source:
        received: list[ServerSentEvent] = list(source.iter_sse())
    raw = get(beating, run_id).content
    assert [int(event.id) for event in received] == [1, 2, 3, 4]
    assert [event.event for event in received] == [message["event"] for message in messages(raw)]
    assert [event.data for event in received] == [message["data"] for message in messages(raw)]


def test_a_client_that_reconnects_at_random_gets_every_seq_once(live: Stack) -> None:
    run_id = live.start("emit", {"count": 3_000, "type": "custom.tick"})
    found: list[int] = []
    with httpx.Client(base_url=live.url) as client:
        for cut in (1, 7, 40, 90, 130, 300, 17, 2, 500, 5, 250, 60, 10_000):
            headers = {"Last-Event-ID": str(found[-1])} if found else {}
            with connect_sse(client, "GET", f"/runs/{run_id}/events", headers=headers) as source:
                for number, event in enumerate(source.iter_sse(), 1):
                    found.append(int(event.id))
                    if number == cut:
                        break
    assert found == list(range(1, 3_004))


def test_closing_windows_does_nothing_to_the_run(live: Stack, running: Callable[..., str]) -> None:
    run_id = running(ENDLESS)
    for _ in range(5):
        with opened(live, run_id) as window:
            next(window.iter_raw())
    before = live.read(run_id)["state"]["last_seq"]
    eventually(lambda: live.read(run_id)["state"]["last_seq"] > before)
    assert live.read(run_id)["status"] == "running"


# HEAD.


def test_head_has_the_headers_of_get_and_leaves_nothing_open(live: Stack, running: Callable[..., str]) -> None:
    run_id = running(QUIET)
    for _ in range(20):
        with timed() as head:
            answer = live.http.head(f"/runs/{run_id}/events")
            assert head.seconds < 1
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    for path in ("/runs", f"/runs/{run_id}", "/agents", "/healthz"):
        assert live.http.head(path).status_code == 200


# The end of a process.


def test_a_web_process_that_is_told_to_stop_ends_its_windows_cleanly_and_they_resume_elsewhere(
    stack: StackMaker,
) -> None:
    server = stack()
    web = server.start_web()
    server.start_worker()
    run_id = server.start("emit", {"count": 100, "interval_ms": 30, "type": "custom.tick"})
    eventually(lambda: server.read(run_id)["state"]["last_seq"] >= 3)
    quiet = server.start("emit", QUIET)
    eventually(lambda: server.read(quiet)["state"]["last_seq"] >= 3)
    raw = [RawWindow(server.port, run_id), RawWindow(server.port, quiet), RawWindow(server.port, run_id, NDJSON)]
    for window in raw:
        eventually(lambda window=window: b'"seq":3' in window.received)
    with timed() as drain:
        web.send(15)
        for window in raw:
            window.thread.join(5)
            assert not window.thread.is_alive()
            assert window.received.endswith(b"0\r\n\r\n"), "the chunked body ends properly"
        assert drain.seconds < 2
    assert web.stop() == 0
    server.start_web()
    before = messages(dechunked(raw[0].received))
    cursor = int(before[-1]["id"])
    after = messages(get(server, run_id, headers={"Last-Event-ID": str(cursor)}).content)
    assert [int(message["id"]) for message in [*before, *after]] == list(range(1, 104))


class RawWindow:
    """The bytes that a window puts on its connection, read to the end by a thread."""

    def __init__(self, port: int, run_id: str, accept: str = SSE) -> None:
        self.received = b""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        request = f"GET /runs/{run_id}/events HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"
        self._socket.sendall(request.encode())
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        with self._socket:
            while not self.received.endswith(b"\r\n0\r\n\r\n") and (data := self._socket.recv(65_536)):
                self.received += data


def dechunked(response: bytes) -> bytes:
    """The body of a chunked response."""
    rest, body = response.partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        body, rest = body + rest[:length], rest[length + 2 :]
    return body
