"""The bytes on the wire, read back by a reader that is not ours (httpx-sse), and golden files."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource, ServerSentEvent
from hypothesis import given, settings
from hypothesis import strategies as st

from app.protocol.events import Event, clean, encode
from app.protocol.framing import (
    NDJSON_HEARTBEAT,
    SSE_HEARTBEAT,
    ndjson,
    ndjson_control,
    sse,
    sse_control,
    sse_retry,
)

GOLDEN = Path(__file__).parent / "golden" / "framing"

unhurried = settings(deadline=None)  # a loaded machine is no failure
awkward_text = st.text(st.sampled_from("\r\n\0\t\x0b\x0c\x1c\x1e\x85\u2028\u2029\ud83d\ude9aé🚚 :a")) | st.text()


def read_sse(body: bytes, sizes: tuple[int, ...] = ()) -> list[ServerSentEvent]:
    """What httpx-sse reads, the body coming in pieces of these sizes."""

    def pieces() -> Iterator[bytes]:
        rest = body
        for size in sizes:
            yield rest[:size]
            rest = rest[size:]
        yield rest

    response = httpx.Response(200, headers={"content-type": "text/event-stream"}, content=pieces())
    return list(EventSource(response).iter_sse())


def delta(seq: int, text: str) -> Event:
    return encode("run_1", seq, "message.delta", {"message_id": "msg_1", "text": clean(text)})


@pytest.fixture(scope="module")
def window() -> dict[str, Any]:
    texts: dict[str, Any] = json.loads((GOLDEN / "events.json").read_text("utf-8"))
    texts["events"] = [Event(e["seq"], e["type"], text) for text in texts["events"] for e in [json.loads(text)]]
    return texts


@pytest.mark.parametrize(("file", "named"), [("named.sse", True), ("unnamed.sse", False)])
def test_an_sse_window_has_these_bytes(window: dict[str, Any], file: str, named: bool) -> None:
    first, second = window["events"]
    snapshot = sse_control("stream.snapshot", window["snapshot"].encode(), id=2, named=named)
    gap = sse_control("stream.gap", window["gap"].encode(), named=named)
    wire = sse_retry(2000) + sse(first, named) + SSE_HEARTBEAT + sse(second, named) + snapshot + gap
    assert wire == (GOLDEN / file).read_bytes()


def test_an_ndjson_window_has_these_bytes(window: dict[str, Any]) -> None:
    first, second = window["events"]
    frames = b"".join(ndjson_control(window[name].encode()) for name in ("snapshot", "gap"))
    wire = ndjson(first) + NDJSON_HEARTBEAT + ndjson(second) + frames
    assert wire == (GOLDEN / "window.ndjson").read_bytes()


def test_a_reader_sees_the_golden_window_as_four_messages(window: dict[str, Any]) -> None:
    first, second = window["events"]
    read = read_sse((GOLDEN / "named.sse").read_bytes())
    assert [(m.id, m.event, m.data) for m in read] == [
        ("1", "run.created", first.text),
        ("2", "message.delta", second.text),
        ("2", "stream.snapshot", window["snapshot"]),
        ("2", "stream.gap", window["gap"]),  # without an id of its own it leaves the cursor where it was
    ]


@unhurried
@given(st.lists(awkward_text, min_size=1, max_size=5), st.lists(st.integers(0, 40)).map(tuple))
def test_any_text_survives_sse_however_the_bytes_arrive(texts: list[str], sizes: tuple[int, ...]) -> None:
    events = [delta(seq, text) for seq, text in enumerate(texts, 1)]
    read = read_sse(b"".join(sse(event) for event in events), sizes)
    assert [(m.id, m.event, m.data) for m in read] == [(str(e.seq), e.type, e.text) for e in events]
    assert [m.json()["payload"]["text"] for m in read] == [clean(text) for text in texts]


@unhurried
@given(st.lists(awkward_text, min_size=1, max_size=5))
def test_any_text_survives_ndjson_even_for_readers_that_split_at_unicode_line_ends(texts: list[str]) -> None:
    events = [delta(seq, text) for seq, text in enumerate(texts, 1)]
    body = NDJSON_HEARTBEAT.join(ndjson(event) for event in events)
    read = [line for line in httpx.Response(200, content=body).iter_lines() if line]
    assert read == [event.text for event in events]
    assert [json.loads(line)["payload"]["text"] for line in read] == [clean(text) for text in texts]


def test_a_text_of_a_megabyte_survives() -> None:
    text = "line\r\n\0é🚚\u2028" * 100_000
    event = delta(1, text)
    (read,) = read_sse(sse(event))
    assert read.json()["payload"]["text"] == clean(text)
    assert json.loads(ndjson(event)) == event.envelope()


def test_without_a_name_a_browser_gets_the_message_by_onmessage() -> None:
    (read,) = read_sse(sse(delta(7, "x"), named=False))
    assert (read.id, read.event) == ("7", "message")


@unhurried
@given(st.lists(st.sampled_from(["a", "", ":", " b"])), st.lists(st.sampled_from(["\r", "\n", "\r\n"])))
def test_data_is_split_at_every_line_end_that_sse_knows(parts: list[str], ends: list[str]) -> None:
    pairs = list(zip(parts, ends, strict=False))
    text = "".join(part + end for part, end in pairs) + "."
    (read,) = read_sse(sse_control("stream.snapshot", text.encode()))
    assert read.data == text.replace("\r\n", "\n").replace("\r", "\n")


def test_heartbeats_and_retry_deliver_no_message() -> None:
    quiet = sse_retry(1500) + SSE_HEARTBEAT * 3
    read = read_sse(quiet + sse(delta(1, "x")) + quiet + sse(delta(2, "y")) + SSE_HEARTBEAT + sse_retry(100))
    assert [(m.id, m.retry) for m in read] == [("1", 1500), ("2", 1500)]
