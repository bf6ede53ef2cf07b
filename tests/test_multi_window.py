"""Several runs in one window: its ids, its cursors, who may open it, and that nothing is lost or repeated."""

import json
import random
import signal
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from flask import Flask

from app.api.multi import RUNS_MAX
from app.factory import create_app
from app.storage.run_store import Principal, RunPosition
from app.streaming.opening import Opening
from app.streaming.wire import NDJSON as NDJSON_FORMAT
from tests.conftest import StackMaker
from tests.harness import DEV, Stack, eventually, pending_run, problem
from tests.log_author import LogAuthor
from tests.raw_client import Incoming, RawClient
from tests.test_hub import open_windows

SSE, NDJSON = "text/event-stream", "application/x-ndjson"
BOB = Principal("elsewhere", "bob")
DISCONNECTS = 30


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """A web process and no worker: logs are written by the tests."""
    stack = module_stack(REPLAY_MAX_EVENTS="2000", REPLAY_MAX_BYTES="0")
    stack.start_web()
    return stack


@pytest.fixture
def authors(web: Stack) -> list[LogAuthor]:
    """Three runs with two events each."""
    found = [LogAuthor(web) for _ in range(3)]
    for author in found:
        author.append()
    return found


def path(authors: list[LogAuthor], **query: Any) -> str:
    """Of the window onto these runs."""
    return f"/events?{httpx.QueryParams({'runs': ','.join(author.run_id for author in authors), **query})}"


def cursor(**places: int) -> str:
    return ",".join(f"{run_id}:{seq}" for run_id, seq in places.items())


def opened(stack: Stack, authors: list[LogAuthor], accept: str = SSE, **query: Any) -> RawClient:
    return RawClient(stack.port).ask(path(authors, **query), accept)


def messages(body: bytes) -> list[dict[str, str]]:
    """The complete SSE messages, field by field."""
    lines = [line for line in body.decode().split("\n") if not line.startswith((":", "retry:"))]
    blocks = "\n".join(lines).split("\n\n")[:-1]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks if block]  # type: ignore[misc]


def until_seqs(client: RawClient, authors: list[LogAuthor]) -> RawClient:
    """Read until the window has every event there is."""
    while not all(f'"seq":{author.head},"run_id":"{author.run_id}"'.encode() in client.received for author in authors):
        assert client.read(), client.received[-300:]
    return client


def by_run(envelopes: list[dict[str, Any]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for envelope in envelopes:
        if "seq" in envelope:
            found[envelope["run_id"]].append(envelope["seq"])
    return found


def whole(authors: list[LogAuthor]) -> dict[str, list[int]]:
    return {author.run_id: list(range(1, author.head + 1)) for author in authors}


def end_all(authors: list[LogAuthor]) -> None:
    for author in authors:
        author.commit_end()
        author.publish_end()


# What comes.


def test_every_event_of_every_run_comes_in_order_and_the_window_ends_with_the_last_run(
    web: Stack, authors: list[LogAuthor]
) -> None:
    with opened(web, authors) as client:
        until_seqs(client, authors)
        for author in authors:
            author.append(3)
        until_seqs(client, authors)
        end_all(authors)
        client.until(b"\r\n0\r\n\r\n")
        assert by_run(client.envelopes) == whole(authors)
        texts = {event.text for author in authors for event in author.events}
        assert {message["data"] for message in messages(client.body)} == texts


def test_an_id_says_where_every_run_is_after_its_message(web: Stack, authors: list[LogAuthor]) -> None:
    with opened(web, authors) as client:
        until_seqs(client, authors)
        places = dict.fromkeys((author.run_id for author in authors), 0)
        for message in messages(client.body):
            envelope = json.loads(message["data"])
            places[envelope["run_id"]] = envelope["seq"]
            assert message["id"] == cursor(**places)
            assert message["event"] == envelope["type"]


def test_ndjson_has_the_stored_envelopes_as_lines(web: Stack, authors: list[LogAuthor]) -> None:
    with opened(web, authors, NDJSON) as client:
        until_seqs(client, authors)
        end_all(authors)
        client.until(b"\r\n0\r\n\r\n")
    lines = [line for line in client.body.decode().split("\n") if line]
    assert sorted(lines) == sorted(event.text for author in authors for event in author.events)
    assert by_run(client.envelopes) == whole(authors)


def test_without_names_everything_reaches_onmessage(web: Stack, authors: list[LogAuthor]) -> None:
    with opened(web, authors, named="0") as client:
        until_seqs(client, authors)
        assert b"event:" not in client.body


def test_the_same_run_twice_counts_once(web: Stack, authors: list[LogAuthor]) -> None:
    with opened(web, [authors[0], authors[0]]) as client:
        until_seqs(client, authors[:1])
        assert [message["id"] for message in messages(client.body)] == [f"{authors[0].run_id}:{n}" for n in (1, 2)]


def test_a_run_far_behind_gets_a_snapshot_and_the_others_their_events(web: Stack, authors: list[LogAuthor]) -> None:
    far, near = authors[:2]
    for _ in range(3):
        far.append(1_000)
    with opened(web, [far, near]) as client:
        while len(messages(client.body)) < 3:
            assert client.read()
        near_ids = {f"{far.run_id}:{at},{near.run_id}:{seq}" for at in (0, far.head) for seq in (1, 2)}
        for message in messages(client.body):
            if message["event"] == "stream.snapshot":
                assert message["id"] in {f"{far.run_id}:{far.head},{near.run_id}:{seq}" for seq in (0, 1, 2)}
                assert json.loads(message["data"])["payload"]["seq"] == far.head
            else:
                assert message["id"] in near_ids


def test_a_head_request_opens_no_window(web: Stack, authors: list[LogAuthor]) -> None:
    answer = web.http.head(path(authors))
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"


# Cursors.


def test_a_run_that_the_cursor_does_not_name_begins_at_its_start(web: Stack, authors: list[LogAuthor]) -> None:
    one, two, three = authors
    with opened(web, authors, since=cursor(**{one.run_id: 1, three.run_id: 2})) as client:
        until_seqs(client, [one, two])
        three.append()
        until_seqs(client, authors)
    assert by_run(client.envelopes) == {one.run_id: [2], two.run_id: [1, 2], three.run_id: [3]}


def test_the_header_wins_over_the_parameters(web: Stack, authors: list[LogAuthor]) -> None:
    end_all(authors)
    ends = cursor(**{author.run_id: author.head for author in authors})
    last = cursor(**{author.run_id: author.head - 1 for author in authors})
    answer = web.http.get(path(authors, last_event_id="?", since="?"), headers={"Last-Event-ID": last, "Accept": SSE})
    assert len(messages(answer.content)) == 3
    assert web.http.get(path(authors, last_event_id=ends, since="?"), headers={"Accept": SSE}).status_code == 204


def test_latest_begins_with_a_snapshot_of_every_run(web: Stack, authors: list[LogAuthor]) -> None:
    with opened(web, authors, since="latest") as client:
        while len(messages(client.body)) < 3:
            assert client.read()
        first = messages(client.body)
        assert [message["event"] for message in first] == ["stream.snapshot"] * 3
        states = [json.loads(message["data"])["payload"]["state"] for message in first]
        assert [(state["run_id"], state["last_seq"]) for state in states] == [(a.run_id, a.head) for a in authors]
        # Before the last of them there is no cursor that would not lose the others' snapshots.
        places = cursor(**{author.run_id: author.head for author in authors})
        assert [message.get("id") for message in first] == [None, None, places]
        authors[1].append()
        until_seqs(client, [authors[1]])
    assert by_run(client.envelopes) == {authors[1].run_id: [3]}


@pytest.mark.parametrize(
    "text",
    [
        *("{0}", "{0}:", "{0}:x", "{0}:-1", "{0}:1:1", "{0}:²", "{0}:+1", "{0}:1000000000000000", "{0}:latest"),
        *("{0}:1,", ",", "1", ":1", "{0}:1,{0}:1", "run_x:1", "{0}:1, {1}:1"),
    ],
)
def test_a_cursor_that_is_none_is_refused(web: Stack, authors: list[LogAuthor], text: str) -> None:
    given = text.format(*(author.run_id for author in authors))
    for name in ("since", "last_event_id"):
        problem(web.http.get(path(authors, **{name: given})), 400, "invalid_cursor")


def test_a_cursor_beyond_the_end_of_a_finished_run_is_refused(web: Stack, authors: list[LogAuthor]) -> None:
    end_all(authors[:1])
    one = authors[0]
    problem(web.http.get(path(authors, since=f"{one.run_id}:{one.head + 1}")), 400, "invalid_cursor")


def test_a_client_that_has_everything_is_told_to_stay_away(web: Stack, authors: list[LogAuthor]) -> None:
    end_all(authors[:2])
    ends = cursor(**{author.run_id: author.head for author in authors[:2]})
    assert web.http.get(path(authors[:2], since=ends), headers={"Accept": SSE}).status_code == 204
    lines = web.http.get(path(authors[:2], since=ends), headers={"Accept": NDJSON})
    assert (lines.status_code, lines.content) == (200, b"\n")
    with opened(web, authors, since=ends) as client:  # one of them goes on
        until_seqs(client, authors[2:])
        assert by_run(client.envelopes) == whole(authors[2:])


def test_a_run_ahead_of_the_log_holds_up_no_other(web: Stack, authors: list[LogAuthor]) -> None:
    one, two = authors[:2]
    with opened(web, [one, two], since=f"{one.run_id}:4") as client:
        until_seqs(client, [two])
        one.append(3)
        until_seqs(client, [one])
    assert by_run(client.envelopes) == {one.run_id: [5], two.run_id: [1, 2]}


# Who may, and how much.


def test_a_foreign_or_unknown_run_among_twenty_is_404_before_anything_is_sent(web: Stack) -> None:
    mine = [LogAuthor(web) for _ in range(RUNS_MAX - 1)]
    for other in (pending_run(web.services, principal=BOB).id, "run_00000000000000000000000000", "a\0b"):
        for place in (0, 10, RUNS_MAX - 1):
            run_ids = [author.run_id for author in mine]
            run_ids.insert(place, other)
            for accept in (SSE, NDJSON):
                answer = web.http.get("/events", params={"runs": ",".join(run_ids)}, headers={"Accept": accept})
                document = problem(answer, 404, "run_not_found")
                assert not any(run_id in str(document) for run_id in run_ids if run_id != other)


def test_a_window_shows_at_most_twenty_runs(web: Stack) -> None:
    authors = [LogAuthor(web) for _ in range(RUNS_MAX + 1)]
    problem(web.http.get(path(authors)), 422, "too_many_runs")
    with opened(web, authors[:RUNS_MAX]) as client:
        until_seqs(client, authors[:RUNS_MAX])


@pytest.mark.parametrize("query", ["", "?runs=", "?runs=,", "?runs=a,,b", "?runs=a,", "?runs=a&named=2"])
def test_a_window_onto_nothing_is_refused(web: Stack, query: str) -> None:
    problem(web.http.get(f"/events{query}"), 422, "invalid_request")


def test_pages_are_not_acceptable(web: Stack, authors: list[LogAuthor]) -> None:
    problem(web.http.get(path(authors), headers={"Accept": "application/json"}), 406, "not_acceptable")


def test_one_window_counts_once_and_watches_every_run(stack: StackMaker) -> None:
    web = stack(STREAM_MAX_PER_USER="2")
    web.start_web()
    authors = [LogAuthor(web) for _ in range(3)]

    def watched() -> list[int]:
        found = web.services.leases.look([author.run_id for author in authors])
        return [lease.windows for lease in found.values()]

    with opened(web, authors) as one, opened(web, authors[:1]) as two:
        until_seqs(one, authors)
        until_seqs(two, authors[:1])
        eventually(lambda: watched() == [2, 1, 1])
        refused = web.http.get(path(authors), headers={"Accept": SSE})
        assert [message["event"] for message in messages(refused.content)] == ["stream.rejected"]
        problem(web.http.get(path(authors), headers={"Accept": NDJSON}), 429, "too_many_streams")
        end_all(authors)
        one.until(b"\r\n0\r\n\r\n")
        two.until(b"\r\n0\r\n\r\n")
    eventually(lambda: watched() == [0, 0, 0])
    ends = [web.http.get(path(authors, since=f"{authors[0].run_id}:1"), headers={"Accept": SSE}) for _ in range(3)]
    assert [end.status_code for end in ends] == [200] * 3  # each window has given back its place


# Its end.


def test_a_client_that_leaves_is_noticed_before_the_next_heartbeat(web: Stack, authors: list[LogAuthor]) -> None:
    def watched() -> int:
        return web.services.leases.look([authors[0].run_id])[authors[0].run_id].windows

    with opened(web, authors) as client:
        until_seqs(client, authors)
        eventually(lambda: watched() == 1)
    eventually(lambda: watched() == 0, 5)


def test_a_window_rests_with_heartbeats_and_is_rotated(stack: StackMaker) -> None:
    web = stack(STREAM_HEARTBEAT_SECONDS="1", STREAM_MAX_SECONDS="3")
    web.start_web()
    authors = [LogAuthor(web) for _ in range(2)]
    with opened(web, authors) as client:
        client.until(b"\r\n0\r\n\r\n")
        *_, last = messages(client.body)
        assert "id" not in last
        envelope = json.loads(last["data"])
        assert (envelope["type"], envelope["run_id"]) == ("stream.expired", "")
        assert client.body.endswith(b"retry: 100\n")
        assert b"\n:\n" in client.body
        assert by_run(client.envelopes) == whole(authors)


def test_a_process_that_ends_says_when_to_come_back(stack: StackMaker) -> None:
    web = stack()
    process = web.start_web()
    authors = [LogAuthor(web) for _ in range(2)]
    with opened(web, authors) as client:
        until_seqs(client, authors)
        process.send(signal.SIGTERM)
        client.until(b"\r\n0\r\n\r\n")
        assert client.body.rpartition(b"\n\n")[2].startswith(b"retry: ")
    process.stop()


@pytest.mark.parametrize("query", ["/events?runs={}", "/runs/{}/events?speed=1000"])
def test_a_client_that_does_not_read_does_not_hold_up_the_end_of_the_process(stack: StackMaker, query: str) -> None:
    web = stack(RUNTAIL_DEV="")
    process, key, author = web.start_web("/healthz"), web.services.registry.create_key(DEV), LogAuthor(web)
    for _ in range(40):
        author.append(100, "x" * 2_000)
    author.archive()
    author.commit_end()
    with RawClient(web.port, receive_buffer=2_048) as client:
        client.socket.sendall(
            f"GET {query.format(author.run_id)} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
        )
        client.until(b'"seq":1,')
        told = time.monotonic()
        process.stop(seconds=15)
        assert time.monotonic() - told < 3.5  # gunicorn waits for 5 s, and kills it then
    assert not web.services.leases.look([author.run_id])[author.run_id].windows


def test_a_client_that_does_not_read_is_given_up_without_a_word_in_the_log(stack: StackMaker) -> None:
    web = stack(STREAM_MAX_LAG_SECONDS="1", WEB_CONCURRENCY="1")
    process, author = web.start_web(), LogAuthor(web)
    for _ in range(40):
        author.append(100, "x" * 2_000)
    before = process.log.read_text()
    with RawClient(web.port, receive_buffer=2_048) as client:
        client.ask(path([author])).until(b'"seq":1,')
        assert open_windows(web) == 1
        eventually(lambda: open_windows(web) == 0, 15)
    assert process.log.read_text() == before


# Without a hub, in this process.


@pytest.fixture(scope="module")
def app(web: Stack) -> Flask:
    """The app of a process that gevent has not patched: its windows look for themselves."""
    return create_app(web.services.config, web.services)


def lines(app: Flask, runs: list[RunPosition]) -> list[dict[str, Any]]:
    """A whole window onto these runs."""
    windows = app.extensions["runtail"].windows
    ticket = windows.admission.admit(BOB, "", *(run.id for run in runs))
    body = b"".join(windows.iterate_several([Opening(run, 0, NDJSON_FORMAT, ticket) for run in runs], None))
    return [json.loads(line) for line in body.decode().split("\n") if line]


def test_a_quiet_run_is_heard_beside_one_that_never_pauses(app: Flask, authors: list[LogAuthor]) -> None:
    busy, quiet = authors[:2]
    for _ in range(10):
        busy.append(1_000)
    quiet.append(1_000)
    end_all([busy, quiet])
    runs = [line["run_id"] for line in lines(app, [RunPosition(a.run_id, True, a.head) for a in (busy, quiet)])]
    last = len(runs) - runs[::-1].index(quiet.run_id)
    assert runs[:last].count(busy.run_id) < 4_000


def test_a_run_that_was_erased_ends(app: Flask, authors: list[LogAuthor]) -> None:
    end_all(authors[:1])
    erased = RunPosition("run_00000000000000000000000000", True, 7)
    found = lines(app, [erased, RunPosition(authors[0].run_id, True, authors[0].head)])
    assert by_run(found) == whole(authors[:1])


def test_where_no_hub_runs_a_window_looks_for_itself(app: Flask, authors: list[LogAuthor]) -> None:
    with ThreadPoolExecutor(1) as reader:
        found = reader.submit(lines, app, [RunPosition(author.run_id, False, 1) for author in authors])
        for author in authors:
            author.append(20)
        end_all(authors)
        assert by_run(found.result(15)) == whole(authors)


# Fuzz.


class Reader:
    """A client that comes back with its last id, as an EventSource does."""

    def __init__(self, port: int, authors: list[LogAuthor]) -> None:
        self._port = port
        self._authors = authors
        self.last_id = ""
        self.seqs: dict[str, list[int]] = defaultdict(list)
        self.status: int | None = None

    def connect(self, seconds: float, most: int) -> bool:
        """Read for so long, or so much, and vanish. True: the response had its end."""
        deadline, incoming, text, total = time.monotonic() + seconds, Incoming(), b"", 0
        query = {"last_event_id": self.last_id} if self.last_id else {}
        with RawClient(self._port).ask(path(self._authors, **query)) as client:
            client.socket.settimeout(seconds)
            while not incoming.complete and total < most and time.monotonic() < deadline:
                try:
                    data = client.read(random.choice([1, 100, 5_000]))
                except TimeoutError:
                    break
                assert data, f"the connection broke: {client.received[-300:]!r}"
                total += len(data)
                text = self._take(text + incoming.feed(data))
        self.status = incoming.status
        return incoming.complete

    def _take(self, text: bytes) -> bytes:
        done, found, rest = text.rpartition(b"\n\n")
        for message in messages(done + found):
            envelope = json.loads(message["data"])
            assert envelope["type"] != "stream.snapshot"
            self.seqs[envelope["run_id"]].append(envelope["seq"])
            self.last_id = message["id"]
        return rest


def test_thirty_lost_connections_lose_and_repeat_nothing_of_five_runs(web: Stack) -> None:
    random.seed(7)
    authors = [LogAuthor(web) for _ in range(5)]
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            random.choice(authors).append(random.choice([1, 1, 2, 30]), random.choice(["", "é\r\n\u2028🚚"]))
            stop.wait(random.uniform(0, 0.01))
        end_all(authors)

    writer = threading.Thread(target=write)
    writer.start()
    reader = Reader(web.port, authors)
    try:
        for _ in range(DISCONNECTS):
            assert not reader.connect(random.uniform(0.02, 0.2), random.choice([100, 3_000, 50_000, 10**9]))
    finally:
        stop.set()
        writer.join()
    while not reader.connect(10, 10**9):
        pass
    assert reader.seqs == whole(authors)
    assert reader.connect(10, 10**9)
    assert reader.status == 204
