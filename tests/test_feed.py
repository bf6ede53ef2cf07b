"""The admin feed: who sees what, which sample, the account of what was left out, and what it costs the others."""

import json
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from socket import SHUT_RDWR
from typing import Any

import httpx
import pytest
from redis import Redis

from app.dev.services import EmbeddedServices
from app.errors import StoreUnavailable
from app.factory import create_app
from app.protocol.events import Event, encode
from app.storage import feed_log
from app.storage.event_log import Append, EventLog
from app.storage.feed_log import FEED, HIGHEST, WANTED, Entry, FeedReader, FeedWriter, is_shown
from app.storage.redis_connections import connect
from app.storage.run_store import Principal
from app.streaming import feed as module
from app.streaming import feeds
from app.streaming.admission import Ticket
from app.streaming.feed import Feed
from app.streaming.windows.base import Closing, Limits
from app.streaming.wire import NDJSON as NDJSON_FORMAT
from tests.conftest import StackMaker, own_databases
from tests.harness import DEV, Stack, eventually, pending_run, problem
from tests.log_author import LogAuthor
from tests.raw_client import Incoming, RawClient

SSE, NDJSON = "text/event-stream", "application/x-ndjson"
ACME = Principal("acme", "ada", admin=True)
LIMITS = Limits(15, 30, 0, 0, 0)


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """A web process that wants keys, and no worker: logs are written by the tests."""
    stack = module_stack(RUNTAIL_DEV="", STREAM_MAX_PER_USER="4")
    stack.start_web("/healthz")
    return stack


def key(stack: Stack, principal: Principal) -> str:
    return stack.services.registry.create_key(principal)


class Follower:
    """A client of a feed, in a thread of its own."""

    def __init__(self, stack: Stack, principal: Principal = DEV, sample: float = 1, accept: str = NDJSON) -> None:
        self.sample = sample
        self.lines: list[dict[str, Any]] = []
        self._client = httpx.Client(base_url=stack.url, timeout=30)
        authorization = {} if stack.env["RUNTAIL_DEV"] else {"Authorization": f"Bearer {key(stack, principal)}"}
        request = self._client.build_request(
            "GET", f"/admin/feed?sample={sample}", headers={"Accept": accept, **authorization}
        )
        self.answer = self._client.send(request, stream=True)
        assert self.answer.status_code == 200, self.answer.read()
        self.ended = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for line in self.answer.iter_lines():
                if line.startswith(("{", "data: ")):
                    self.lines.append(json.loads(line.removeprefix("data: ")))
        except httpx.TransportError:
            pass  # the server was killed, or the test has closed it
        self.ended.set()

    def close(self) -> None:
        with suppress(OSError):  # a thread that reads keeps a socket open that is only closed
            self.answer.extensions["network_stream"].get_extra_info("socket").shutdown(SHUT_RDWR)
        self.ended.wait(5)
        self._client.close()

    def of(self, run_id: str) -> list[dict[str, Any]]:
        """The events of a run so far."""
        return [line for line in list(self.lines) if line["run_id"] == run_id]

    def seqs(self, run_id: str) -> list[int]:
        return [line["seq"] for line in self.of(run_id)]

    @property
    def statuses(self) -> list[dict[str, Any]]:
        return [line["payload"] for line in list(self.lines) if line["type"] == "feed.status"]


def accounts(*followers: Follower) -> list[dict[str, Any]]:
    """The next account of each: what was sent before it stands before it."""
    told = [len(follower.statuses) for follower in followers]
    eventually(lambda: all(len(f.statuses) > count for f, count in zip(followers, told, strict=True)), what="accounts")
    return [follower.statuses[count] for follower, count in zip(followers, told, strict=True)]


@contextmanager
def following(*followers: Follower) -> Iterator[None]:
    with ExitStack() as opened:
        for follower in followers:
            opened.callback(follower.close)
        yield


@pytest.fixture
def heard(web: Stack) -> Callable[..., None]:
    """Waits until these feeds get what is written from here on. Writers ask once a second what is wanted."""

    def wait(*followers: Follower, principal: Principal = DEV) -> None:
        def arrives() -> bool:
            author = LogAuthor(web, principal=principal)
            author.append(60)
            return comes_true(
                lambda: all(
                    f.seqs(author.run_id) == expected(author.run_id, author.events, f.sample) for f in followers
                )
            )

        eventually(arrives, what="an event in the feed")

    return wait


def comes_true(condition: Callable[[], bool]) -> bool:
    """Whether it does within a moment: what was written just now may be what no writer knew to be wanted."""
    deadline = time.monotonic() + 2 * feeds.PACE_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def expected(run_id: str, events: list[Event], sample: float) -> list[int]:
    return [event.seq for event in events if is_shown(run_id, event.seq, event.type, sample)]


# Who sees what.


@pytest.mark.parametrize("path", ["/admin/feed", "/admin/feed?sample=2"])
def test_a_feed_is_for_administrators(web: Stack, path: str) -> None:
    headers = {"Authorization": f"Bearer {key(web, Principal('dev', 'dev'))}"}
    problem(web.http.get(path, headers=headers), 403, "admin_required")


@pytest.mark.parametrize("sample", ["0", "-0.1", "1.001", "nan", "inf", "many", ""])
def test_a_sample_that_is_no_share_is_refused(web: Stack, sample: str) -> None:
    headers = {"Authorization": f"Bearer {key(web, DEV)}"}
    problem(web.http.get("/admin/feed", params={"sample": sample}, headers=headers), 422, "invalid_request")


def test_pages_are_not_acceptable_and_a_head_request_opens_nothing(web: Stack) -> None:
    headers = {"Authorization": f"Bearer {key(web, DEV)}"}
    answer = web.http.get("/admin/feed", headers={**headers, "Accept": "application/json"})
    problem(answer, 406, "not_acceptable")
    answer = web.http.head("/admin/feed", headers=headers)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")


def test_a_feed_shows_every_user_of_its_tenant_and_never_another_tenant(web: Stack, heard: Callable[..., None]) -> None:
    ours, theirs = Follower(web), Follower(web, ACME)
    with following(ours, theirs):
        heard(ours)
        heard(theirs, principal=ACME)
        tenants = {"dev": Principal("dev", "somebody"), "acme": Principal("acme", "else")}
        authors = {name: LogAuthor(web, principal=principal) for name, principal in tenants.items()}
        for author in authors.values():
            author.append(10)
            author.commit_end()
            author.publish_end()
        for follower, mine in ((ours, "dev"), (theirs, "acme")):
            author = authors[mine]
            eventually(lambda f=follower, a=author: len(f.of(a.run_id)) == a.head)  # type: ignore[misc]
            runs = {line["run_id"] for line in follower.lines if line["run_id"]}
            with web.services.database.session() as db:
                sql = "SELECT DISTINCT tenant_id FROM runs WHERE id = ANY (%s)"
                assert db.execute_sql(sql, (list(runs),)).fetchall() == [(mine,)]


def test_envelopes_are_verbatim_and_without_an_id(web: Stack, heard: Callable[..., None]) -> None:
    other = Follower(web)
    with following(other), RawClient(web.port) as client:
        head = f"GET /admin/feed HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key(web, DEV)}\r\n\r\n"
        client.socket.sendall(head.encode())
        client.until(b"retry: 1000\n")
        heard(other)
        author = LogAuthor(web)
        author.append(1, "é\r\n\u2028🚚")
        for event in author.events:
            client.until(f"event: {event.type}\ndata: {event.text}\n\n".encode())
        assert b"id:" not in client.body


# The sample.


def test_which_events_are_shown_is_a_share_and_the_same_everywhere() -> None:
    for sample in (0.001, 0.1, 0.5):
        shown = [(run, seq) for run in range(40) for seq in range(1, 2_501) if is_shown(f"run_{run}", seq, "x", sample)]
        wanted = sample * 100_000
        assert abs(len(shown) - wanted) < 4 * math.sqrt(wanted)
        per_run = Counter(run for run, _ in shown)
        assert max(per_run.values()) < 2_500 * sample + 6 * math.sqrt(2_500 * sample)
        assert all(is_shown(f"run_{run}", seq, "x", 0.5) for run, seq in shown)
    assert is_shown("run_1", 1, "run.created", 1e-9)
    assert not is_shown("run_1", 1, "message.delta", 1)


def test_two_feeds_show_their_shares_lifecycles_always_and_deltas_never(web: Stack, heard: Callable[..., None]) -> None:
    small, large = Follower(web, sample=0.1), Follower(web, sample=0.5)
    with following(small, large):
        heard(small, large)
        before = accounts(small, large)
        author = LogAuthor(web)
        for _ in range(15):
            author.append(200)
            deltas = [
                encode(author.run_id, author.head + n, "message.delta", {"message_id": "m", "text": "x"})
                for n in range(1, 101)
            ]
            author.events += deltas
            web.services.log.append(Append(author.run_id, 0, deltas))
        author.commit_end()
        author.publish_end()
        ticks = 15 * 200
        eventually(lambda: all(f.seqs(author.run_id)[-1:] == [author.head] for f in (small, large)))
        after = accounts(small, large)
        for follower, sample, earlier, status in zip((small, large), (0.1, 0.5), before, after, strict=True):
            assert follower.seqs(author.run_id) == expected(author.run_id, author.events, sample)
            texts = {event.seq: event.text for event in author.events}
            assert all(line == json.loads(texts[line["seq"]]) for line in follower.of(author.run_id))
            types = Counter(line["type"] for line in follower.of(author.run_id))
            assert types["run.created"] == types["run.failed"] == 1
            assert types["message.delta"] == 0
            assert abs(types["custom.tick"] - ticks * sample) < 5 * math.sqrt(ticks * sample * (1 - sample))
            grown = {name: status[name] - earlier[name] for name in ("sent", "left_out", "dropped")}
            assert grown == {
                "sent": len(follower.of(author.run_id)),
                "left_out": author.head - len(follower.of(author.run_id)),
                "dropped": 0,
            }
            assert status["sample"] == sample


# Slow readers.


def test_a_slow_reader_drops_what_is_too_much_and_holds_up_nobody(web: Stack, heard: Callable[..., None]) -> None:
    quick = Follower(web)
    with following(quick), RawClient(web.port, receive_buffer=2_048) as slow:
        head = (
            f"GET /admin/feed HTTP/1.1\r\nHost: h\r\nAccept: {NDJSON}\r\nAuthorization: Bearer {key(web, DEV)}\r\n\r\n"
        )
        slow.socket.sendall(head.encode())
        heard(quick)
        author, text = LogAuthor(web), "x" * 2_000
        for _ in range(40):
            author.append(100, text)
            eventually(lambda: quick.seqs(author.run_id)[-1:] == [author.head], 5, "the others' events")
        assert quick.seqs(author.run_id) == list(range(1, author.head + 1))

        lines, status = read_until_dropped(slow)
        mine = [line for line in lines if line["run_id"] == author.run_id]
        assert status["sent"] == sum("seq" in line for line in lines)
        assert status["dropped"] == author.head - len(mine)


def read_until_dropped(client: RawClient) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Read until an account tells of dropped events: the lines before it, and what it tells."""
    incoming, lines, rest = Incoming(), [], b""
    while True:
        *whole, rest = (rest + incoming.feed(client.read(1 << 20))).split(b"\n")
        for line in whole:
            if line:
                lines.append(json.loads(line))
                if lines[-1]["type"] == "feed.status" and lines[-1]["payload"]["dropped"]:
                    return lines[:-1], lines[-1]["payload"]


@pytest.fixture
def feed() -> Feed:
    """A feed that nobody reads."""
    ticket = Ticket((), "", "")
    return Feed("dev", 1, NDJSON_FORMAT, LIMITS, ticket, leave=lambda *_: None, draining=lambda: True, connection=None)


def offer(feed: Feed, *seqs: int, run_id: str = "run_1") -> None:
    for seq in seqs:
        feed.offer(Entry(run_id, seq, "custom.tick", f'{{"seq":{seq}}}'), lambda _, entry: entry.text.encode() + b"\n")


def account(feed: Feed) -> tuple[int, int, int]:
    """(sent, left out, dropped) at its end."""
    last = [line for line in b"".join(feed).split(b"\n") if b"feed.status" in line][-1]
    payload = json.loads(last)["payload"]
    return payload["sent"], payload["left_out"], payload["dropped"]


def test_what_does_not_fit_into_the_queue_is_dropped(feed: Feed) -> None:
    offer(feed, *range(1, module.QUEUE_FRAMES + 11))
    assert account(feed) == (module.QUEUE_FRAMES, 0, 10)


def test_large_events_fill_the_queue_before_their_number_does(feed: Feed) -> None:
    feed._draining = lambda: False
    large, body = b"x" * (module.QUEUE_BYTES // 4), iter(feed)
    next(body)  # its opening
    for seq in range(1, 7):
        feed.offer(Entry("run_1", seq, "custom.tick", ""), lambda *_: large)
    assert next(body) == 4 * large
    feed.offer(Entry("run_1", 7, "custom.tick", ""), lambda *_: large)
    assert next(body) == large
    feed._draining = lambda: True
    assert account(feed) == (5, 0, 2)


def test_a_gap_is_what_was_left_out_and_after_a_loss_what_was_dropped(feed: Feed) -> None:
    offer(feed, 3, 4, 7)  # it was opened when the run was at 2
    feed.lose()
    offer(feed, 10, 12)
    offer(feed, 1, 2, run_id="run_2")
    assert account(feed) == (7, 2 + 1, 2)


def test_an_event_that_is_told_again_is_not_shown_again(feed: Feed) -> None:
    offer(feed, 1, 2, 3, 2, 3, 4)
    assert account(feed) == (4, 0, 0)


def test_the_runs_that_a_feed_remembers_are_bounded(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SEEN_RUNS", 2)
    for run_id in ("run_1", "run_2", "run_1", "run_3"):  # run_2 was quiet for longest
        offer(feed, 1 if run_id != "run_1" else len(feed._queue) + 1, run_id=run_id)
    offer(feed, 5, run_id="run_2")  # as if it were new
    offer(feed, 5, run_id="run_3")
    assert account(feed) == (6, 1 + 3, 0)


def test_the_tenant_of_a_run_is_not_forgotten_while_its_events_are_handed_out(
    web: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "TENANTS", 2)
    parts = create_app(web.services.config, web.services).extensions["runtail"]
    ticket = parts.windows.admission.admit(Principal("dev", "reader"), "")
    feed = parts.feeds.open("dev", 1, NDJSON_FORMAT, ticket, None)
    shown: set[tuple[str, int]] = set()

    def read() -> None:
        for body in feed:
            shown.update((line["run_id"], line.get("seq")) for line in map(json.loads, filter(None, body.splitlines())))

    def is_shown_to_its_end(author: LogAuthor) -> bool:
        return (author.run_id, author.head) in shown

    def arrives() -> bool:
        first.append()
        return comes_true(lambda: is_shown_to_its_end(first))

    reading = threading.Thread(target=read)
    reading.start()
    try:
        first, second, third = (LogAuthor(web) for _ in range(3))
        eventually(arrives, what="the first run's events")
        second.append()
        eventually(lambda: is_shown_to_its_end(second), what="the second run's event")
        together = [Append(author.run_id, 0, author.make()) for author in (third, first)]
        web.services.log.append_all(together)
        eventually(lambda: is_shown_to_its_end(third), what="the third run's event")
        assert is_shown_to_its_end(first)
    finally:
        feed.closing = Closing.LEFT, b""
        reading.join(5)


# Its end, and its place among the windows.


def test_a_feed_counts_as_a_window_and_frees_its_place(stack: StackMaker) -> None:
    web = stack(STREAM_MAX_PER_USER="1", STREAM_MAX_SECONDS="2")
    web.start_web()
    follower = Follower(web, accept=SSE)
    with following(follower):
        refused = web.http.get("/admin/feed", headers={"Accept": SSE})
        assert b"stream.rejected" in refused.content
        problem(web.http.get("/admin/feed", headers={"Accept": NDJSON}), 429, "too_many_streams")
        assert follower.ended.wait(10)
        assert [line["type"] for line in follower.lines][-2:] == ["feed.status", "stream.expired"]
        assert all(line["run_id"] == "" for line in follower.lines[-2:])
    again = Follower(web)
    again.close()


def test_the_process_that_ends_gives_a_last_account(stack: StackMaker) -> None:
    web = stack()
    process = web.start_web()
    follower = Follower(web)
    with following(follower):
        process.send(signal.SIGTERM)
        assert follower.ended.wait(5)
        assert [line["type"] for line in follower.lines] == ["feed.status"]
    process.stop()


def test_a_client_that_does_not_read_does_not_hold_up_the_end_of_the_process(stack: StackMaker) -> None:
    web = stack(RUNTAIL_DEV="")
    process, author = web.start_web("/healthz"), LogAuthor(web)
    quick = Follower(web)
    with following(quick), RawClient(web.port, receive_buffer=2_048) as stuck:
        authorization = f"Authorization: Bearer {key(web, DEV)}"
        stuck.socket.sendall(f"GET /admin/feed HTTP/1.1\r\nHost: h\r\n{authorization}\r\n\r\n".encode())

        def is_heard() -> bool:
            author.append()
            return comes_true(lambda: quick.seqs(author.run_id)[-1:] == [author.head])

        eventually(is_heard, what="an event in the feed")
        for _ in range(40):
            author.append(100, "x" * 2_000)
            eventually(lambda: quick.seqs(author.run_id)[-1:] == [author.head], 5, "the events")
        told = time.monotonic()
        process.stop(seconds=15)
        assert time.monotonic() - told < 3.5  # gunicorn waits for 5 s, and kills it then


def test_the_reader_goes_with_the_last_feed_and_comes_with_the_next(web: Stack, heard: Callable[..., None]) -> None:
    with Redis.from_url(web.env["REDIS_URL"]) as redis:
        for _ in range(2):
            follower = Follower(web)
            with following(follower):
                heard(follower)
                assert redis.exists(WANTED, FEED) == 2
            eventually(lambda: not redis.exists(WANTED), feed_log.WANTED_SECONDS + 2, "the end of the wish")
            assert 0 < redis.ttl(FEED) <= feed_log.STREAM_SECONDS


def test_a_feed_goes_on_when_redis_was_restarted(stack: StackMaker, tmp_path: Path) -> None:
    with EmbeddedServices(tmp_path / "own") as servers:
        web = stack(REDIS_URL=servers.redis_url)
        web.start_web()
        follower = Follower(web)
        with following(follower):

            def arrives() -> bool:
                run = pending_run(web.services, announce=False)
                created = web.services.store.events(run.id, 0, 1)
                try:
                    web.services.log.append(Append(run.id, 0, created, archived=1))
                except Exception:
                    return False
                return comes_true(lambda: bool(follower.of(run.id)))

            eventually(arrives, what="an event in the feed")
            servers.kill("redis")
            servers.start("redis")
            eventually(arrives, 15, "an event after the restart")
            assert not follower.ended.is_set()


# The writing side.


@pytest.fixture
def url(environment: dict[str, str]) -> Iterator[str]:
    with own_databases(environment, migrated=False) as urls:
        yield urls["REDIS_URL"]


@pytest.fixture
def redis(url: str) -> Iterator[Redis]:
    with Redis.from_url(url) as client:
        yield client


@pytest.fixture
def reader(url: str) -> Iterator[FeedReader]:
    with closing(FeedReader(connect(url, 1))) as reader:
        yield reader


@pytest.fixture
def log(url: str) -> Iterator[EventLog]:
    with closing(EventLog(url, ttl_seconds=60, max_connections=2)) as log:
        yield log


def ticks(run_id: str, first: int, last: int) -> Append:
    return Append(run_id, 1, [encode(run_id, seq, "custom.tick", {"n": seq}) for seq in range(first, last + 1)])


def test_without_a_feed_a_writer_asks_once_a_second_and_writes_nothing(log: EventLog, redis: Redis) -> None:
    def asked() -> int:
        calls: int = redis.info("commandstats").get("cmdstat_hget", {}).get("calls", 0)  # type: ignore[union-attr]
        return calls

    before = asked()  # the append's own script asks by HMGET
    for seq in range(1, 51):
        log.append(ticks("run_1", seq, seq))
    assert asked() - before in (1, 2)
    assert not redis.exists(FEED)


def test_what_was_not_appended_is_not_in_the_feed(log: EventLog, reader: FeedReader) -> None:
    reader.want(1)
    reader.start()
    log.append(ticks("run_1", 1, 2))
    log.append_all([ticks("run_1", 5, 6), ticks("run_2", 1, 3)])
    entries, lost = reader.read(100, 10)
    assert [(entry.run_id, entry.seq) for entry in entries] == [
        *[("run_1", 1), ("run_1", 2)],
        *[("run_2", 1), ("run_2", 2), ("run_2", 3)],
    ]
    assert not lost


def test_writers_go_by_the_highest_sample_of_all_processes_until_nobody_wants_it(
    url: str, reader: FeedReader, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_log, "WANTED_SECONDS", 1)
    with closing(FeedReader(connect(url, 1))) as other:
        other.want(0.5)
        reader.want(0.1)
        assert redis.hget(WANTED, HIGHEST) == b"0.5"
        other.want(0.7)
        assert redis.hget(WANTED, HIGHEST) == b"0.7"

    def lower() -> bool:
        reader.want(0.1)
        return redis.hget(WANTED, HIGHEST) == b"0.1"

    eventually(lower, 5)
    eventually(lambda: not redis.exists(WANTED), 5)


def test_a_feed_that_cannot_be_written_is_warned_of_once_and_fails_no_append(
    log: EventLog, reader: FeedReader, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    reader.want(1)
    redis.set(FEED, "in the way")
    for seq in range(1, 6):
        assert log.append(ticks("run_1", seq, seq)) == seq
    warnings = [record for record in caplog.records if record.name == feed_log.__name__]
    assert len(warnings) == 1
    redis.delete(FEED)
    log.append(ticks("run_1", 6, 6))
    assert redis.xlen(FEED) == 1


def test_a_wish_that_cannot_be_read_is_none(log: EventLog, redis: Redis) -> None:
    redis.set(WANTED, "not ours")
    assert log.append(ticks("run_1", 1, 3)) == 3
    assert not redis.exists(FEED)


def test_what_redis_has_trimmed_before_it_was_read_is_a_loss(log: EventLog, reader: FeedReader, redis: Redis) -> None:
    reader.want(1)
    log.append(ticks("run_1", 1, 1))
    reader.start()
    log.append(ticks("run_1", 2, 3))
    assert [entry.seq for entry in reader.read(100, 10)[0]] == [2, 3]
    log.append(ticks("run_1", 4, 9))
    redis.xtrim(FEED, 3, approximate=False)
    entries, lost = reader.read(3, 10)
    assert ([entry.seq for entry in entries], lost) == ([7, 8, 9], True)
    assert reader.read(3, 10) == ([], False)


def test_what_goes_with_its_redis_is_a_loss(log: EventLog, reader: FeedReader, redis: Redis) -> None:
    reader.want(1)
    log.append(ticks("run_1", 1, 1))
    reader.start()
    redis.rename(FEED, "elsewhere")
    redis.set(FEED, "in the way")
    with pytest.raises(StoreUnavailable):
        reader.read(100, 10)
    redis.delete(FEED)
    assert reader.read(100, 10) == ([], False)
    log.append(ticks("run_1", 2, 3))
    entries, lost = reader.read(100, 10)
    assert ([entry.seq for entry in entries], lost) == ([2, 3], True)
    log.append(ticks("run_1", 4, 4))
    assert not reader.read(100, 10)[1]


def test_an_entry_is_kept_for_a_minute_and_its_end_is_no_loss(
    log: EventLog, reader: FeedReader, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.want(1)
    reader.start()
    log.append(ticks("run_1", 1, 3))
    assert len(reader.read(100, 10)[0]) == 3
    reader.want(1)
    assert redis.xlen(FEED) == 3
    monkeypatch.setattr(feed_log, "STREAM_SECONDS", 1)

    def forgotten() -> bool:
        reader.want(1)
        assert reader.read(100, 10) == ([], False)
        return redis.xlen(FEED) == 0

    eventually(forgotten, 5)
    log.append(ticks("run_1", 4, 4))
    entries, lost = reader.read(100, 10)
    assert ([entry.seq for entry in entries], lost) == ([4], False)


def test_the_stream_is_capped(url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_log, "ENTRIES", 300)
    writer = FeedWriter(redis)
    writer.learn(b"1")
    for first in range(1, 2_001, 100):
        writer.write([ticks("run_1", first, first + 99)])
    assert 300 <= redis.xlen(FEED) <= 500
    assert 0 < redis.ttl(FEED) <= feed_log.STREAM_SECONDS
