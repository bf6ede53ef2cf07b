"""Finished runs that are played back with their own timing: over real sockets, on our server and on others."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from itertools import accumulate

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from app.protocol.events import encode
from app.protocol.timing import Timing
from app.storage.event_log import meta_key, stream_key
from tests.conftest import StackMaker
from tests.harness import Process, Stack, eventually, free_port, pending_run, problem
from tests.log_author import LogAuthor
from tests.raw_client import RawClient
from tests.speed import timed

SSE, NDJSON = "text/event-stream", "application/x-ndjson"
START = datetime(2026, 6, 12, 12, tzinfo=UTC)
THE_END = b"\r\n0\r\n\r\n"
LATE_SECONDS = 0.6
"""What a busy machine may add."""
EARLY_SECONDS = 0.01
LONGEST_SECONDS = 4
HOUR = 3_600.0
SERVERS = {
    "sync worker": [sys.executable, "-m", "gunicorn", "wsgi:app", "--worker-class", "sync"],
    "threads": [sys.executable, "-m", "gunicorn", "wsgi:app", "--worker-class", "gthread", "--threads", "4"],
    "werkzeug": [sys.executable, "-m", "flask", "--app", "wsgi:app", "run", "--no-reload", "--port"],
}


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """A web process whose runs are written by the tests."""
    stack = module_stack(
        STREAM_HEARTBEAT_SECONDS="1",
        STREAM_MAX_SECONDS=str(LONGEST_SECONDS),
        STREAM_MAX_PER_USER="4",
        REPLAY_MAX_EVENTS="10",
    )
    stack.start_web()
    return stack


def finished(stack: Stack, pauses: Sequence[float]) -> LogAuthor:
    """A run that has ended, with these pauses, in seconds, between its events."""
    author = LogAuthor(stack)
    author.make(len(pauses) - 1)
    author.archive()
    author.commit_end()
    assert author.head == len(pauses) + 1
    for event, offset in zip(author.events[:], accumulate(pauses, initial=0.0), strict=True):
        envelope = event.envelope()
        moved = encode(
            author.run_id, event.seq, event.type, envelope["payload"], START + timedelta(seconds=offset), event.op
        )
        author.events[event.seq - 1] = moved
        with stack.services.database.session() as db:
            db.execute_sql(
                "UPDATE run_events SET e = %s WHERE run_id = %s AND seq = %s", (moved.text, author.run_id, event.seq)
            )
    with Redis.from_url(stack.env["REDIS_URL"]) as redis:
        redis.delete(stream_key(author.run_id), meta_key(author.run_id))
    return author


def arrivals(port: int, path: str, accept: str = NDJSON) -> tuple[list[float], bytes]:
    """When each event arrived, in seconds since the window was asked for, and the body."""
    times: list[float] = []
    with RawClient(port) as client:
        asked_at = time.monotonic()
        client.ask(path, accept)
        while not client.received.endswith(THE_END):
            assert client.read(), client.received[-300:]
            times += [time.monotonic()] * (client.body.count(b'"seq":') - len(times))
        return [moment - asked_at for moment in times], client.body


def body(port: int, path: str, accept: str = NDJSON) -> bytes:
    """The body of a window that ends by itself, without its heartbeats."""
    return arrivals(port, path, accept)[1].replace(b"\n:\n", b"\n").lstrip(b"\n")


def open_windows(stack: Stack) -> float:
    families = text_string_to_metric_families(stack.http.get("/metrics").text)
    return next(family.samples[0].value for family in families if family.name == "runtail_open_windows")


# When.


def test_pauses_are_divided_by_the_speed_and_added_up_from_the_first_event() -> None:
    timing = Timing(4)
    due = [timing.due(f"2026-06-12T12:00:{seconds}Z") for seconds in ("10.000", "10.500", "30.000", "30.000")]
    assert due == [0, 0.125, 5, 5]


def test_a_clock_that_was_set_back_is_no_pause_and_the_pauses_after_it_count() -> None:
    timing = Timing(0.5)
    due = [timing.due(f"2026-06-12T12:00:{seconds}Z") for seconds in ("10.000", "11.000", "05.000", "06.000")]
    assert due == [0, 2, 2, 4]


@pytest.mark.parametrize("accept", [SSE, NDJSON])
def test_six_seconds_at_four_times_the_speed_take_one_and_a_half_and_no_event_is_early(web: Stack, accept: str) -> None:
    run = finished(web, [0.01] * 300 + [0.0, 1.0, 2.0])
    times, _ = arrivals(web.port, f"{run.path}?speed=4", accept)
    due = [offset / 4 for offset in accumulate([0.01] * 300 + [0.0, 1.0, 2.0], initial=0.0)]
    assert len(times) == len(due)
    for arrived, planned in zip(times, due, strict=True):
        assert planned - EARLY_SECONDS < arrived < planned + LATE_SECONDS


def test_a_speed_below_one_is_slower_than_it_was(web: Stack) -> None:
    run = finished(web, [0.05, 0.1])
    times, _ = arrivals(web.port, f"{run.path}?speed=0.1")
    assert times[1] == pytest.approx(0.5, abs=LATE_SECONDS)
    assert 1.5 - EARLY_SECONDS < times[2] < 1.5 + LATE_SECONDS


def test_a_playback_begins_at_once_after_the_cursor(web: Stack) -> None:
    run = finished(web, [HOUR, HOUR, 0.1, 0.1])
    with timed() as playing, RawClient(web.port) as client:
        client.ask(f"{run.path}?speed=1&since_seq=2", NDJSON).until(THE_END)
        assert client.seqs == [3, 4, 5]
        assert playing.seconds < 2


# What.


@pytest.mark.parametrize("accept", [SSE, NDJSON])
@pytest.mark.parametrize("query", ["", "named=0&", "since_seq=350&"])
def test_the_bytes_are_those_of_the_window_without_a_speed(web: Stack, accept: str, query: str) -> None:
    run = finished(web, [0.008] * 700)
    with timed() as playing:
        played = body(web.port, f"{run.path}?{query}speed=1000", accept)
        assert playing.seconds < 2
    since = 350 if "350" in query else 0
    if accept == NDJSON:
        assert played == body(web.port, f"{run.path}?{query}", accept)
        assert played == b"".join(b"%s\n" % event.text.encode() for event in run.events[since:])
    else:  # the window without a speed has a replay cap, this one has none
        assert b"stream.snapshot" not in played
        near = f"{run.path}?{query.replace('since_seq=350&', '')}last_event_id={run.head - 10}"
        assert played.endswith(body(web.port, near, accept).removeprefix(b"retry: 1000\n"))
        assert played.count(b"\nid: ") == run.head - since


def test_a_long_pause_has_heartbeats_and_the_longest_time_ends_it_with_a_cursor_to_come_back_with(web: Stack) -> None:
    run = finished(web, [0.0, HOUR, 0.0])
    began = time.monotonic()
    with RawClient(web.port) as client:
        client.ask(f"{run.path}?speed=1").until(THE_END)
    assert b"\n\n:\n:\n:\n" in client.body
    assert LONGEST_SECONDS * 0.9 - 0.1 < time.monotonic() - began < LONGEST_SECONDS * 1.1 + 2
    assert client.seqs == [1, 2]
    assert client.envelopes[-1]["type"] == "stream.expired"
    assert client.body.endswith(b"retry: 100\n")
    with RawClient(web.port) as back:
        back.ask(f"{run.path}?speed=1&last_event_id=2").until(THE_END)
    assert back.seqs == [3, 4]


# Who may, and who leaves.


@pytest.mark.parametrize("speed", ["0", "0.09", "1000.5", "-1", "nan", "inf", "fast", ""])
def test_a_speed_that_makes_no_sense_is_refused(web: Stack, speed: str) -> None:
    run = finished(web, [0.0])
    problem(web.http.get(run.path, params={"speed": speed}, headers={"Accept": SSE}), 422, "invalid_request")


def test_what_cannot_be_played_back_is_refused_with_a_sentence(web: Stack) -> None:
    live, run = pending_run(web.services), finished(web, [0.0])
    for accept in (SSE, NDJSON):
        answer = web.http.get(f"/runs/{live.id}/events?speed=4", headers={"Accept": accept})
        problem(answer, 409, "run_not_terminal")
        problem(web.http.get(f"{run.path}?speed=4&since_seq=latest", headers={"Accept": accept}), 400, "invalid_cursor")
        problem(web.http.get(f"{run.path}?speed=4&since_seq=9", headers={"Accept": accept}), 400, "invalid_cursor")
    problem(web.http.get(f"{run.path}?speed=4", headers={"Accept": "application/json"}), 422, "invalid_request")
    assert web.http.get(f"{run.path}?speed=4&since_seq=2", headers={"Accept": SSE}).status_code == 204
    assert web.http.get(f"{run.path}?speed=4&since_seq=2", headers={"Accept": NDJSON}).text.strip() == ""


def test_a_playback_takes_a_place_and_the_limits_count_it(web: Stack) -> None:
    run = finished(web, [HOUR])
    path = f"{run.path}?speed=1"
    with ExitStack() as opened:
        for _ in range(4):
            opened.enter_context(RawClient(web.port)).ask(path).until(b'"seq":1,')
        assert open_windows(web) == 4
        problem(web.http.get(path, headers={"Accept": NDJSON}), 429, "too_many_streams")
        assert '"code":"too_many_streams"' in web.http.get(path, headers={"Accept": SSE}).text
    eventually(lambda: open_windows(web) == 0, 3)


def test_a_client_that_leaves_is_noticed_before_a_heartbeat_and_a_server_that_ends_says_so(stack: StackMaker) -> None:
    web = stack(STREAM_HEARTBEAT_SECONDS="60")
    process = web.start_web()
    path = f"{finished(web, [HOUR]).path}?speed=1"
    with RawClient(web.port) as client:
        client.ask(path).until(b'"seq":1,')
        assert open_windows(web) == 1
    eventually(lambda: open_windows(web) == 0, 3)
    with RawClient(web.port) as client:
        client.ask(path).until(b'"seq":1,')
        with timed() as drain:
            process.send(signal.SIGTERM)
            client.until(THE_END)
            assert drain.seconds < 1.5
        assert b"\n\nretry: " in client.body


# Elsewhere.


@pytest.fixture(scope="module", params=SERVERS.values(), ids=SERVERS.keys())
def other_port(web: Stack, request: pytest.FixtureRequest) -> Iterator[int]:
    """Another server of the same runs."""
    port, command = free_port(), request.param
    arguments = [*command, str(port)] if command[-1] == "--port" else command
    process = Process("other", arguments, {**web.env, "PORT": str(port)}, web.folder)
    eventually(_answers(port), 20, f"readiness of {command}")
    yield port
    process.stop()


def _answers(port: int) -> Callable[[], bool]:
    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        return False

    return answers


@pytest.mark.parametrize("accept", [SSE, NDJSON])
def test_other_servers_play_it_back_with_the_same_bytes_and_timing(web: Stack, other_port: int, accept: str) -> None:
    run = finished(web, [0.5, 1.5, *[0.0] * 60, 1.0])
    times, _ = arrivals(other_port, f"{run.path}?speed=4", accept)
    assert 0.75 - EARLY_SECONDS < times[-1] < 0.75 + LATE_SECONDS
    path = f"{run.path}?speed=1000"
    assert body(other_port, path, accept) == body(web.port, path, accept)


def test_on_other_servers_the_longest_time_counts_too(web: Stack, other_port: int) -> None:
    run = finished(web, [HOUR])
    with RawClient(other_port) as client:
        client.ask(f"{run.path}?speed=1", NDJSON).until(THE_END)
    assert client.envelopes[-1]["type"] == "stream.expired"
