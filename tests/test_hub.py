"""The tail hub behind a real web process: what windows get when connections, rings and readers misbehave."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from redis import Redis

from app.dev.services import EmbeddedServices
from app.protocol import framing
from app.protocol.events import Event
from app.storage.event_log import stream_key
from app.storage.history import History
from app.storage.log_reader import Doorbell, LogReader
from app.storage.run_store import migrate
from app.streaming.hub import CHARS_PER_TURN, ENDS_PER_READ, EVENTS_PER_READ, TailHub
from app.streaming.tail import Tail
from app.streaming.windows.base import HEALING_SECONDS
from tests.conftest import StackMaker
from tests.harness import Stack, eventually, pending_run
from tests.log_author import LogAuthor
from tests.raw_client import RawClient
from tests.speed import timed

NDJSON = "application/x-ndjson"
UNLIMITED = {"STREAM_MAX_PER_USER": "0", "STREAM_MAX_PER_ADDRESS": "0"}
LONG = "🚚" * 25_000
"""100 KB in characters of four bytes: more than the kernel takes at once."""
READING = ("xread", "xrange", "xrevrange")
"""The commands by which a web process reads logs."""
SMALL_BUFFER = 8_192


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """A web process, and no worker: logs are written by the tests."""
    stack = module_stack(**UNLIMITED)
    stack.start_web()
    return stack


@pytest.fixture
def connect() -> Iterator[Callable[[int], RawClient]]:
    """Connects clients, any number, and closes them."""
    with ExitStack() as opened:
        yield lambda port: opened.enter_context(RawClient(port))


@pytest.fixture
def author(web: Stack) -> LogAuthor:
    return LogAuthor(web)


def expected(author: LogAuthor, after: int = 0) -> bytes:
    """The SSE body of the events after that seq."""
    return framing.sse_retry(1_000) + b"".join(framing.sse(event) for event in author.events[after:])


def reading_connections(web: Stack) -> int:
    """Connections over which the web process reads logs, or hears of them."""
    with Redis.from_url(web.env["REDIS_URL"]) as redis:
        database = str(redis.connection_pool.connection_kwargs["db"])
        clients = [client for client in redis.client_list() if client["db"] == database]
    return sum(client["cmd"] in READING or client["sub"] != "0" for client in clients)


# Delivery.


def test_an_event_whose_ring_was_lost_arrives_with_the_next_sweep(web: Stack, author: LogAuthor) -> None:
    with RawClient(web.port) as client:
        client.ask(author.path).until(b"run.created")
        author.append()
        client.until(b'"seq":2')
        author.append_silently(3)
        started = time.monotonic()
        client.until(b'"seq":5')
        assert time.monotonic() - started < 3
        assert client.body == expected(author)


def test_who_comes_back_a_little_behind_is_served_by_the_read_that_tells_where_the_head_is(
    own_servers: tuple[EmbeddedServices, Stack],
) -> None:
    _, web = own_servers
    with Redis.from_url(web.env["REDIS_URL"]) as redis:
        for accept in ("text/event-stream", NDJSON):
            author = LogAuthor(web)
            author.append(ENDS_PER_READ * 2)
            cursor = author.head - ENDS_PER_READ
            with RawClient(web.port) as client:
                client.ask(f"{author.path}?since_seq={cursor}", accept).until(b'"seq":%d,' % author.head)
                assert "cmdstat_xrange" not in redis.info("commandstats"), "no read of its own"
                author.append(2)
                client.until(b'"seq":%d,' % author.head)
                assert client.seqs == list(range(cursor + 1, author.head + 1))


def test_who_is_further_behind_gets_every_event_once_all_the_same(web: Stack, author: LogAuthor) -> None:
    author.append(3 * ENDS_PER_READ)
    author.append(1, LONG * 2)
    author.append(3)
    for cursor in range(author.head):
        with RawClient(web.port) as client:
            client.ask(f"{author.path}?since_seq={cursor}").until(b'"seq":%d,' % author.head)
        assert client.body == expected(author, cursor)


def test_a_burst_of_more_than_one_read_arrives_whole(web: Stack, author: LogAuthor) -> None:
    with RawClient(web.port) as client:
        client.ask(author.path).until(b"run.created")
        author.append(1_000)
        author.end()
        assert client.to_the_end().body == expected(author)
        assert client.ended_in_order


def test_what_one_read_brings_is_bounded_in_bytes_too(web: Stack, author: LogAuthor) -> None:
    size, commands = 300_000, []
    with RawClient(web.port) as client, Redis.from_url(web.env["REDIS_URL"]) as redis, redis.monitor() as monitor:
        client.ask(author.path, NDJSON).until(b"run.created")
        author.append(1, "x" * size)
        client.until(b'"seq":2')
        for _ in range(20):
            author.append(2, "x" * size)
        author.end()
        client.to_the_end()
        redis.echo("over")
        for said in monitor.listen():
            commands.append(said["command"].split())
            if commands[-1][:1] == ["ECHO"]:
                break
    counts = [int(command[2]) for command in commands if command[0] == "XREAD" and author.run_id in " ".join(command)]
    assert client.body == b"\n" + b"".join(map(framing.ndjson, author.events))
    assert max(counts) == EVENTS_PER_READ, "small events are read many at a time"
    assert min(counts) * size <= CHARS_PER_TURN, "and large ones a few at a time"


class LostAfterwards(LogReader):
    """Its Redis is lost, and another one is there, as soon as it has answered."""

    hub: TailHub

    def read_many(self, cursors: Mapping[str, int], limit: int) -> dict[str, list[Event]]:
        found = super().read_many(cursors, limit)
        self.hub._reconnected()
        return found

    def finish(self) -> dict[str, list[Event]]:
        found = super().finish()
        self.hub._reconnected()
        return found


@pytest.fixture
def own_hub(web: Stack, author: LogAuthor) -> Iterator[tuple[TailHub, Tail]]:
    """A hub whose greenlets do not run, and a tail of it that stands before the run's first event."""
    reader = LostAfterwards(web.env["REDIS_URL"])
    reader.hub = hub = TailHub(reader, Doorbell(web.env["REDIS_URL"]), History(web.services.store, reader))
    reader.connect()
    tail = hub.tail(author.run_id)
    tail.ready = True
    yield hub, tail
    reader.close()


@pytest.mark.parametrize("more", [0, 2])
@pytest.mark.parametrize("begun", [False, True], ids=["in its turn", "when it rang"])
def test_what_was_read_before_redis_was_lost_is_not_handed_out_after_it(
    author: LogAuthor, own_hub: tuple[TailHub, Tail], begun: bool, more: int
) -> None:
    """The other one may have lost these events: the head has to be proven first."""
    hub, tail = own_hub
    if more:
        author.append(more)
    if begun:
        hub._heard([tail.run_id], [])
        hub._hand_out_begun()
    else:
        hub._read([tail])
    assert tail.head == 0


@pytest.mark.parametrize("busy", ["another asks", "a turn is under way"])
def test_a_ring_that_comes_while_nothing_can_be_begun_is_kept_for_the_next_turn(
    own_hub: tuple[TailHub, Tail], busy: str
) -> None:
    hub, tail = own_hub
    hub._work.clear()
    if busy == "another asks":
        assert hub._reader.begin({"run_of_another": 0}, 1)
    else:
        hub._idle = False
    hub._heard([tail.run_id], [])
    assert (hub._begun, hub._hot) == (None, {tail})
    assert hub._work.is_set()


def test_a_doorbell_that_fails_is_a_redis_that_is_lost(
    own_hub: tuple[TailHub, Tail], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it is connected anew nothing is read: the next one may have less."""
    hub, _ = own_hub

    def fail(_: object) -> None:
        assert hub._connected
        raise LookupError

    monkeypatch.setattr(hub._doorbell, "hear", fail)
    with pytest.raises(LookupError):
        hub._listen()
    assert not hub._connected
    assert hub._reader.is_lost(time.monotonic())


def test_windows_of_every_format_on_one_run_get_every_event(web: Stack, author: LogAuthor) -> None:
    paths = [(author.path, "text/event-stream"), (f"{author.path}?named=0", "text/event-stream"), (author.path, NDJSON)]
    with RawClient(web.port) as one, RawClient(web.port) as two, RawClient(web.port) as three:
        for client, (path, accept) in zip((one, two, three), paths, strict=True):
            client.ask(path, accept).until(b"run.created")
        for _ in range(50):
            author.append(3)
        author.end()
        for client in (one, two, three):
            assert client.to_the_end().seqs == list(range(1, 153))
        assert one.body == expected(author)
        assert b"event:" not in two.body
        assert three.body == b"\n" + b"".join(framing.ndjson(event) for event in author.events)


def test_all_windows_of_a_process_share_two_connections_to_redis(
    web: Stack, connect: Callable[[int], RawClient]
) -> None:
    authors = [LogAuthor(web) for _ in range(60)]
    clients = [connect(web.port).ask(author.path) for author in authors]
    for author in authors:
        author.append()
    for client in clients:
        client.until(b'"seq":2')
    eventually(lambda: reading_connections(web) == 2, what="two connections")


def test_a_window_that_opens_while_the_run_ends_still_sees_the_end(web: Stack) -> None:
    def race(delay: float) -> list[int]:
        author = LogAuthor(web)
        ending = threading.Timer(delay, author.end)
        ending.start()
        with RawClient(web.port) as client:
            client.ask(author.path).to_the_end()
        ending.join()
        assert client.ended_in_order
        return client.seqs

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(race, [step / 20_000 for step in range(200)]))
    assert found == [[1, 2]] * 200


def test_windows_that_close_while_an_event_is_delivered_take_nothing_from_the_others(
    web: Stack, author: LogAuthor, connect: Callable[[int], RawClient]
) -> None:
    clients = [connect(web.port).ask(author.path) for _ in range(200)]
    for client in clients:
        client.until(b"run.created")
    leaving, staying = clients[::2], clients[1::2]

    def leave() -> None:
        for number, client in enumerate(leaving):
            client.reset() if number % 2 else client.socket.close()

    thread = threading.Thread(target=leave)
    thread.start()
    for _ in range(60):
        author.append()
    author.end()
    thread.join()
    for client in staying:
        assert client.to_the_end().body == expected(author)


# Slow readers.


def test_bytes_that_the_socket_did_not_take_follow_in_order_also_in_the_middle_of_a_character(
    web: Stack, author: LogAuthor
) -> None:
    with RawClient(web.port, receive_buffer=SMALL_BUFFER) as client:
        client.ask(author.path, NDJSON).until(b"run.created")
        author.append(2, LONG)
        author.append(1, LONG)
        author.end()
        client.to_the_end(most=1_001)
        assert client.body == b"\n" + b"".join(framing.ndjson(event) for event in author.events)
        assert client.ended_in_order


def test_a_window_that_was_slow_catches_up_and_is_live_again(web: Stack, author: LogAuthor) -> None:
    with RawClient(web.port, receive_buffer=SMALL_BUFFER) as slow, RawClient(web.port) as fast:
        for client in (slow, fast):
            client.ask(author.path, NDJSON).until(b"run.created")
        for _ in range(3):
            for _ in range(30):
                author.append(20, LONG[:1_000])
            fast.until(b'"seq":%d,' % author.head)
            slow.until(b'"seq":%d,' % author.head)
        with timed() as delivery:
            author.append(1, "live again")
            slow.until(b'live again"}}\n')
            assert delivery.seconds < 0.3
        assert slow.seqs == fast.until(b'live again"}}\n').seqs == list(range(1, author.head + 1))


def test_a_client_that_does_not_read_loses_its_connection_and_resumes_complete(stack: StackMaker) -> None:
    web = stack(STREAM_MAX_LAG_SECONDS="1", REPLAY_MAX_BYTES="0")
    web.start_web()
    author = LogAuthor(web)
    with RawClient(web.port, receive_buffer=SMALL_BUFFER) as stalled, RawClient(web.port) as reader:
        stalled.ask(author.path).until(b"run.created")
        reader.ask(author.path).until(b"run.created")
        for _ in range(20):
            author.append(1, LONG)
        reader.until(b'"seq":21,')
        eventually(lambda: open_windows(web) == 1, what="the end of the stalled window")
        with pytest.raises(ConnectionResetError):
            stalled.to_the_end()
        cursor = stalled.seqs[-1]
        assert cursor < 21
        author.end()
        with RawClient(web.port) as again:
            again.ask(f"{author.path}?since_seq={cursor}").to_the_end()
        assert [*stalled.seqs, *again.seqs] == reader.to_the_end().seqs == list(range(1, 23))
    assert "runtail_lag_closes_total 1.0" in web.http.get("/metrics").text


def open_windows(web: Stack) -> int:
    (line,) = [line for line in web.http.get("/metrics").text.split("\n") if line.startswith("runtail_open_windows")]
    return int(float(line.split()[-1]))


# Replay.


def test_a_window_far_behind_gets_a_snapshot_and_then_the_tail(stack: StackMaker) -> None:
    web = stack(REPLAY_MAX_EVENTS="100", **UNLIMITED)
    web.start_web()
    author = LogAuthor(web)
    author.append(100)
    with RawClient(web.port) as near, RawClient(web.port) as far, RawClient(web.port) as lines:
        near.ask(f"{author.path}?since_seq=1").until(b'"seq":101,')
        assert near.seqs == list(range(2, 102))
        author.append(1)
        near.until(b'"seq":102,')
        far.ask(f"{author.path}?since_seq=1").until(b"stream.snapshot")
        lines.ask(f"{author.path}?since_seq=1", NDJSON).until(b'"seq":102,')
        assert lines.seqs == list(range(2, 103)), "NDJSON is not capped"
        author.end()
        snapshot, *tail = far.to_the_end().envelopes
    assert (snapshot["payload"]["seq"], snapshot["payload"]["state"]["last_seq"]) == (102, 102)
    assert [event["seq"] for event in tail] == [103]
    assert b"\nid: 102\n" in far.body


def test_a_replay_of_too_many_bytes_goes_on_with_a_snapshot(web: Stack, author: LogAuthor) -> None:
    for _ in range(20):
        author.append(1, LONG)
    with RawClient(web.port) as client:
        client.ask(author.path).until(b"stream.snapshot")
        author.end()
        events = client.to_the_end().envelopes
    first = [event["seq"] for event in events[: events.index(next(e for e in events if "seq" not in e))]]
    assert first == list(range(1, len(first) + 1))
    assert 1 <= len(first) < 21
    assert [event.get("seq") for event in events[len(first) :]] == [None, 22]
    assert events[len(first)]["payload"]["seq"] == 21


def test_an_event_larger_than_the_cap_is_delivered_whole(web: Stack, author: LogAuthor) -> None:
    author.append(1, LONG * 15)
    author.end()
    with RawClient(web.port) as client:
        client.ask(f"{author.path}?since_seq=1").to_the_end()
        assert client.seqs == [2]
        [rest] = [frame for frame in client.envelopes if "seq" not in frame and frame["type"] == "stream.snapshot"]
        assert (rest["payload"]["seq"], rest["payload"]["state"]["status"]) == (3, "failed"), "the cap is reached"


def test_what_redis_has_trimmed_comes_from_the_archive(web: Stack, author: LogAuthor) -> None:
    author.append(20)
    author.archive()
    with Redis.from_url(web.env["REDIS_URL"]) as redis:
        redis.xtrim(stream_key(author.run_id), minid="15-0", approximate=False)
    with RawClient(web.port) as client:
        client.ask(author.path).until(b'"seq":21,')
        author.append()
        assert client.until(b'"seq":22,').seqs == list(range(1, 23))


@pytest.mark.parametrize("in_redis", [1, 10, 40])
def test_a_page_goes_on_in_the_archive_where_redis_does_not_have_everything_yet(
    web: Stack, author: LogAuthor, in_redis: int
) -> None:
    """As after a batch that was committed while Redis was away."""
    author.append(in_redis)
    author.make(30)
    author.archive()
    page = web.http.get(f"{author.path}?since_seq=1", headers={"Accept": "application/json"}).json()
    assert [event["seq"] for event in page["events"]] == list(range(2, author.head + 1))
    assert page["next_since_seq"] == page["head"] == author.head


def test_where_nobody_has_the_events_any_more_there_is_a_snapshot(web: Stack, author: LogAuthor) -> None:
    author.append(20)
    with Redis.from_url(web.env["REDIS_URL"]) as redis:
        redis.xtrim(stream_key(author.run_id), minid="15-0", approximate=False)
    author.events = [author.events[0], *author.events[14:]]
    author.archive()
    with web.services.database.session() as db:
        sql = "UPDATE runs SET state = jsonb_set(state::jsonb, '{last_seq}', '14')::json, state_seq = 14 WHERE id = %s"
        db.execute_sql(sql, (author.run_id,))
    with RawClient(web.port) as client:
        client.ask(f"{author.path}?since_seq=5").until(b"stream.snapshot")
        author.append()
        client.until(b'"seq":22,')
    assert [envelope.get("seq") for envelope in client.envelopes] == [None, 22]


# HTTP.


def test_a_client_of_http_1_0_gets_the_body_without_chunks(web: Stack, author: LogAuthor) -> None:
    with RawClient(web.port) as client:
        client.ask(author.path, version="1.0").until(b"run.created")
        author.append(3)
        author.end()
        client.to_the_end()
    assert b"chunked" not in client.head.lower()
    assert client.body == expected(author)


def test_head_opens_no_window(web: Stack, author: LogAuthor) -> None:
    before = open_windows(web)
    with RawClient(web.port) as client:
        for _ in range(5):
            client.ask(author.path, method="HEAD")
        while client.received.count(b"\r\n\r\n") < 5:
            assert client.read()
        assert client.received.endswith(b"\r\n\r\n"), "no body"
        assert b"text/event-stream" in client.head
    assert open_windows(web) == before


def test_a_window_behind_another_request_on_the_same_connection_is_served(web: Stack, author: LogAuthor) -> None:
    with RawClient(web.port) as client:
        request = f"GET {author.path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        client.socket.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" + request.encode())
        client.until(b"run.created")
        author.end()
        first, _, rest = client.to_the_end().received.partition(b'{"status": "ok"}\n')
        assert first.startswith(b"HTTP/1.1 200")
        client.received = rest
        assert client.body == expected(author)


def test_what_a_client_says_after_it_opened_a_window_is_ignored(web: Stack, author: LogAuthor) -> None:
    with RawClient(web.port) as client:
        client.ask(author.path)
        client.ask("/healthz")
        client.until(b"run.created")
        client.ask(f"/runs/{author.run_id}", method="DELETE")
        author.append(2)
        author.end()
        assert client.to_the_end().body == expected(author)
    assert b"connection: close" in client.head.lower()
    assert web.read(author.run_id)["status"] == "pending"


def test_a_client_that_says_too_much_is_dropped(web: Stack, author: LogAuthor) -> None:
    with RawClient(web.port) as client:
        client.ask(author.path).until(b"run.created")
        with pytest.raises(ConnectionError):
            babble(client)


def babble(client: RawClient) -> None:
    """Say a megabyte, or as much as the server lets us."""
    for _ in range(100):
        client.socket.sendall(b"x" * 10_000)
        time.sleep(0.01)


def test_a_client_that_goes_away_is_noticed_at_once(
    web: Stack, author: LogAuthor, connect: Callable[[int], RawClient]
) -> None:
    before = open_windows(web)
    client = connect(web.port).ask(author.path).until(b"run.created")
    assert open_windows(web) == before + 1
    client.socket.close()
    eventually(lambda: open_windows(web) == before, 1.0, "the end of the window")


# Rotation.


def test_a_window_that_was_open_for_its_longest_time_ends_in_order_and_is_resumed(stack: StackMaker) -> None:
    web = stack(STREAM_MAX_SECONDS="1", STREAM_HEARTBEAT_SECONDS="60")
    web.start_web()
    author = LogAuthor(web)
    for accept in ("text/event-stream", NDJSON):
        with RawClient(web.port) as client:
            started = time.monotonic()
            client.ask(author.path, accept).to_the_end()
            assert 0.8 < time.monotonic() - started < 3
        assert client.ended_in_order
        assert client.envelopes[-1]["type"] == "stream.expired"
        assert (b"retry: 100\n" in client.body) == (accept != NDJSON)
    found: list[int] = []
    writing = threading.Thread(target=lambda: [(author.append(), time.sleep(0.01)) for _ in range(300)])
    writing.start()
    while found[-1:] != [301]:
        with RawClient(web.port) as client:
            client.ask(f"{author.path}?since_seq={found[-1] if found else 0}").to_the_end()
        found += client.seqs
    writing.join()
    assert found == list(range(1, 302))


# Outages.


@pytest.fixture
def own_servers(tmp_path: Path) -> Iterator[tuple[EmbeddedServices, Stack]]:
    """Servers that a test may kill, and a web process on them."""
    with EmbeddedServices(tmp_path / "servers") as servers:
        migrate(servers.database_url)
        urls = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
        with Stack({**urls, **UNLIMITED}, tmp_path) as stack:
            stack.start_web()
            yield servers, stack


def test_windows_stay_open_over_a_restart_of_redis(
    own_servers: tuple[EmbeddedServices, Stack], connect: Callable[[int], RawClient]
) -> None:
    servers, web = own_servers
    authors = [LogAuthor(web) for _ in range(20)]
    clients = [connect(web.port).ask(author.path).until(b"run.created") for author in authors]
    for author in authors:
        author.append(5)
    servers.kill("redis")
    servers.start("redis")
    for author in authors:
        author.append(5)
        author.end()
    for author, client in zip(authors, clients, strict=True):
        assert client.to_the_end().body == expected(author)


def test_while_redis_is_away_windows_get_what_is_archived_and_new_ones_open(
    own_servers: tuple[EmbeddedServices, Stack],
) -> None:
    servers, web = own_servers
    author = LogAuthor(web)
    with RawClient(web.port) as early, RawClient(web.port) as late:
        early.ask(author.path).until(b"run.created")
        servers.kill("redis")
        author.make(3)
        author.archive()
        early.until(b'"seq":4,')
        late.ask(f"{author.path}?since_seq=1").until(b'"seq":4,')
        servers.start("redis")
        web.services.ownership.sync(author.run_id, 0)
        author.append(1)
        for client in (early, late):
            client.until(b'"seq":5,')
        assert early.body == expected(author)
        assert late.body == expected(author, 1)


def test_a_reading_connection_that_is_closed_alone_is_made_anew(web: Stack, author: LogAuthor) -> None:
    with RawClient(web.port) as client, Redis.from_url(web.env["REDIS_URL"]) as redis:
        client.ask(author.path).until(b"run.created")
        database = str(redis.connection_pool.connection_kwargs["db"])
        for connection in redis.client_list():
            if connection["db"] == database and connection["cmd"] in ("xread", "xrange", "xrevrange"):
                redis.client_kill_filter(_id=connection["id"])
        author.append(3)
        assert client.until(b'"seq":4,').body == expected(author)


def test_a_redis_that_stands_still_is_given_up_and_found_again(own_servers: tuple[EmbeddedServices, Stack]) -> None:
    servers, web = own_servers
    author = LogAuthor(web)
    with RawClient(web.port) as client:
        client.ask(author.path).until(b"run.created")
        os.kill(servers.pid("redis"), signal.SIGSTOP)
        author.make(3)
        author.archive()
        client.until(b'"seq":4,')
        os.kill(servers.pid("redis"), signal.SIGCONT)
        web.services.ownership.sync(author.run_id, 0)
        author.append()
        assert client.until(b'"seq":5,').body == expected(author)


def test_while_redis_stands_still_a_window_is_answered_before_anything_is_known_of_its_run(
    own_servers: tuple[EmbeddedServices, Stack],
) -> None:
    servers, web = own_servers
    author, known = LogAuthor(web), LogAuthor(web)
    with RawClient(web.port) as client, RawClient(web.port) as other:
        other.ask(known.path).until(b"run.created")
        os.kill(servers.pid("redis"), signal.SIGSTOP)
        try:
            client.ask(author.path).until(b"\nretry: 1000\n")
            assert b"run.created" not in client.received
        finally:
            os.kill(servers.pid("redis"), signal.SIGCONT)
        assert client.until(b"run.created").body == expected(author)


@pytest.mark.parametrize(("accept", "opening"), [("text/event-stream", b"retry: 1000\n"), (NDJSON, b"\n")])
@pytest.mark.parametrize("behind", [0, 1, 3 * ENDS_PER_READ])
def test_a_window_begins_with_its_opening_wherever_its_cursor_is(
    web: Stack, author: LogAuthor, accept: str, opening: bytes, behind: int
) -> None:
    author.append(4 * ENDS_PER_READ)
    cursor = author.head - behind
    with RawClient(web.port) as client:
        client.ask(f"{author.path}?since_seq={cursor}", accept).until(b"\r\n\r\n").until(opening)
        author.append()
        client.until(b'"seq":%d,' % author.head)
        frame = framing.ndjson if accept == NDJSON else framing.sse
        assert client.body == opening + b"".join(map(frame, author.events[cursor:]))


def test_while_redis_is_away_a_client_that_is_ahead_of_the_archive_waits_for_it(
    own_servers: tuple[EmbeddedServices, Stack],
) -> None:
    servers, web = own_servers
    author = LogAuthor(web)
    author.append(3)
    author.archive()
    author.append(20)
    with RawClient(web.port) as client:
        servers.kill("redis")
        client.ask(f"{author.path}?since_seq=24")
        client.until(b"retry:")
        time.sleep(HEALING_SECONDS + 1)  # nothing may happen in that time
        servers.start("redis")
        author.append()
        client.until(b'"seq":25,')
        assert client.body == expected(author, 24)


def test_a_redis_that_has_lost_everything_is_made_up_for_by_the_archive(
    own_servers: tuple[EmbeddedServices, Stack],
) -> None:
    servers, web = own_servers
    author = LogAuthor(web)
    author.append(10)
    author.archive()
    with RawClient(web.port) as client, RawClient(web.port) as late:
        client.ask(author.path).until(b'"seq":11,')
        with Redis.from_url(servers.redis_url) as redis:
            redis.flushall()
        late.ask(f"{author.path}?since_seq=4").until(b'"seq":11,')
        web.services.ownership.sync(author.run_id, 0)
        author.append(1)
        for window in (client, late):
            window.until(b'"seq":12,')
        assert client.body == expected(author)
        assert late.body == expected(author, 4)


def test_what_the_archive_has_is_not_lost_however_long_redis_takes_until_it_answers(
    own_servers: tuple[EmbeddedServices, Stack],
) -> None:
    servers, web = own_servers
    author = LogAuthor(web)
    with RawClient(web.port) as client:
        client.ask(author.path).until(b"run.created")
        servers.kill("redis")
        author.make(3)
        author.archive()
        client.until(b'"seq":4,')
        with (servers.data / "redis" / "auth.conf").open("a") as settings:  # as one that loads its data for long
            password = urlsplit(servers.redis_url).password
            settings.write(f"user default on >{password} ~* &* +@all {' '.join(f'-{word}' for word in READING)}\n")
        servers.start("redis")
        time.sleep(HEALING_SECONDS + 1)  # nothing may happen in that time
        with Redis.from_url(servers.redis_url) as redis:
            redis.execute_command("ACL", "SETUSER", "default", *(f"+{word}" for word in READING))
        time.sleep(1)  # nor may it be taken for lost because Redis does not have it yet
        web.services.ownership.sync(author.run_id, 0)
        author.append(1)
        assert client.until(b'"seq":5,').body == expected(author)


def test_what_a_client_has_and_redis_has_not_is_not_lost_while_the_archive_cannot_be_asked(
    own_servers: tuple[EmbeddedServices, Stack],
) -> None:
    servers, web = own_servers
    author = LogAuthor(web)
    author.make(3)
    author.archive()
    with RawClient(web.port) as client:
        client.ask(f"{author.path}?since_seq=4").until(b"retry:")
        servers.kill("postgres")  # before a sweep asks it
        time.sleep(HEALING_SECONDS + 1)  # nothing may happen in that time
        servers.start("postgres")
        time.sleep(1)  # nor now
        web.services.database.close()  # whose connections are lost
        web.services.ownership.sync(author.run_id, 0)
        author.append(1)
        assert client.until(b'"seq":5,').body == expected(author, 4)


def test_windows_are_told_of_events_that_were_lost_and_written_anew(
    own_servers: tuple[EmbeddedServices, Stack],
) -> None:
    servers, web = own_servers
    author = LogAuthor(web)
    author.append(3)
    author.archive()
    with RawClient(web.port) as client:
        client.ask(author.path).until(b'"seq":4,')
        kept = list(author.events)
        author.append(2, "never archived")
        client.until(b'"seq":6,')
        servers.kill("redis")
        for file in (servers.data / "redis").glob("appendonly*"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
        servers.start("redis")
        author.events = kept
        web.services.ownership.sync(author.run_id, 0)
        author.append(3, "another attempt")
        client.until(b"stream.snapshot")
        author.end()
        envelopes = client.to_the_end().envelopes
    assert [envelope.get("seq", envelope["type"]) for envelope in envelopes] == [
        *(1, 2, 3, 4, 5, 6),
        *("stream.gap", "stream.snapshot"),
        8,
    ]
    assert envelopes[6]["payload"] == {"requested": 6, "earliest": 1, "head": 7}
    assert envelopes[7]["payload"]["seq"] == 7


def test_while_postgres_is_away_open_windows_go_on_and_new_ones_are_told_to_come_back(
    own_servers: tuple[EmbeddedServices, Stack],
) -> None:
    servers, web = own_servers
    author = LogAuthor(web)
    with RawClient(web.port) as client, RawClient(web.port) as late:
        client.ask(author.path).until(b"run.created")
        servers.kill("postgres")
        author.append(5)
        client.until(b'"seq":6,')
        late.ask(author.path).until(b"stream.rejected")
        assert late.head.startswith(b"HTTP/1.1 200")
        assert b"retry: " in late.body
        assert late.envelopes[0]["payload"]["code"] == "store_unavailable"
        lines = web.http.get(author.path, headers={"Accept": NDJSON})
        assert (lines.status_code, lines.json()["code"]) == (503, "store_unavailable")
        servers.start("postgres")
    answer = httpx.get(
        f"{web.url}{author.path}", params={"since_seq": "6"}, timeout=1, headers={"Accept": "application/json"}
    )
    assert answer.json()["head"] == 6


# Two processes.


def test_a_client_of_a_killed_process_resumes_at_another(
    stack: StackMaker, connect: Callable[[int], RawClient]
) -> None:
    web = stack(WEB_CONCURRENCY="2")
    web.start_web()
    author = LogAuthor(web)
    author.append(3)
    clients = [connect(web.port).ask(author.path).until(b'"seq":4,') for _ in range(10)]
    for pid in {int(pid) for pid in children(web)}:
        os.kill(pid, signal.SIGKILL)
    for client in clients:
        with pytest.raises(AssertionError, match="the connection ended"):
            client.until(b"never")
    author.append(3)
    author.end()
    again = eventually(lambda: resumed(web, author, 4), 20)
    assert again.seqs == [5, 6, 7, 8]


def children(web: Stack) -> list[str]:
    return Path(f"/proc/{web.web_pid}/task/{web.web_pid}/children").read_text().split()


def resumed(web: Stack, author: LogAuthor, cursor: int) -> RawClient | None:
    try:
        with RawClient(web.port) as client:
            return client.ask(f"{author.path}?since_seq={cursor}").to_the_end()
    except ConnectionError:
        return None


# A run that waits, and one that has ended.


def test_a_finished_run_is_served_without_a_tail(web: Stack) -> None:
    run = pending_run(web.services)
    cancelled = web.http.post(f"/runs/{run.id}/cancel").json()
    assert cancelled["status"] == "cancelled"
    with RawClient(web.port) as client:
        client.ask(f"/runs/{run.id}/events").to_the_end()
    assert client.ended_in_order
    assert json.loads(client.body.decode().rsplit("data: ", 1)[1])["type"] == "run.cancelled"
