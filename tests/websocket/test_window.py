"""Windows as WebSockets, over real sockets: the handshake, what arrives, and how it ends."""

import fcntl
import signal
import socket
import struct
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil
import pytest

from app.dev.services import EmbeddedServices
from app.storage.run_store import Principal
from app.streaming.windows.websocket import CLOSE_SECONDS
from tests.conftest import StackMaker, own_databases
from tests.harness import READY_SECONDS, ROOT, Process, Stack, eventually, free_port, pending_run, problem
from tests.log_author import LogAuthor
from tests.raw_client import RawClient
from tests.socket_client import SocketClient, masked
from tests.test_hub import LONG, SMALL_BUFFER, UNLIMITED, open_windows
from tests.websocket.conftest import ORIGIN, Connect, texts

MEGABYTE = "🚚" * 250_000
NONCE = "AAAAAAAAAAAAAAAAAAAAAA=="
CERTIFICATE = str(ROOT / "tests" / "localhost.pem")


def refused(client: SocketClient, status: int, code: str) -> dict[str, str]:
    """The headers of a handshake that was answered with that problem."""
    client.until(b"\r\n\r\n")
    head = client.head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
    while len(client.body) < int(headers["content-length"]):
        assert client.read()
    problem(httpx.Response(client.status or 0, headers=headers, content=client.body), status, code)
    return headers


# The handshake.


def test_what_is_no_handshake_is_told_what_to_upgrade_to(web: Stack, author: LogAuthor) -> None:
    path = f"/runs/{author.run_id}/ws"
    answer = web.http.get(path)
    problem(answer, 426, "upgrade_required")
    assert answer.headers["Upgrade"] == "websocket"
    assert answer.headers["Connection"].lower() == "upgrade"
    assert answer.headers["Sec-WebSocket-Version"] == "13"
    assert web.http.head(path).status_code == 426
    assert web.http.post(path).status_code == 405
    with RawClient(web.port) as old:
        lines = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        request = f"GET {path} HTTP/1.0\r\nHost: localhost\r\n{lines}Sec-WebSocket-Key: {NONCE}\r\n\r\n"
        old.socket.sendall(request.encode())
        assert old.to_the_end().head.split()[1] == b"426"


@pytest.mark.parametrize("version", ["8", "12", "14", "x", "", "13, 8", None])
def test_another_version_is_told_ours(web: Stack, author: LogAuthor, connect: Connect, version: str | None) -> None:
    client = connect(web).shake(author.run_id, Sec_WebSocket_Version=version)
    assert refused(client, 426, "upgrade_required")["sec-websocket-version"] == "13"


@pytest.mark.parametrize("key", [None, "", "x", "AAAA", NONCE[:-1], NONCE + "AAAA", "é"])
def test_a_handshake_without_a_proper_key_is_refused(
    web: Stack, author: LogAuthor, connect: Connect, key: str | None
) -> None:
    refused(connect(web).shake(author.run_id, Sec_WebSocket_Key=key), 400, "bad_request")


def test_a_handshake_with_a_body_is_refused(web: Stack, author: LogAuthor, connect: Connect) -> None:
    refused(connect(web).shake(author.run_id, behind=b"abc", Content_Length="3"), 400, "bad_request")
    chunked = connect(web).shake(author.run_id, behind=b"0\r\n\r\n", Transfer_Encoding="chunked")
    refused(chunked, 400, "bad_request")


def test_a_handshake_is_taken_as_browsers_and_libraries_spell_it(
    web: Stack, author: LogAuthor, connect: Connect
) -> None:
    connect(web).open(author.run_id, Upgrade="WebSocket", Connection="keep-alive, Upgrade")
    with_extensions = connect(web).open(
        author.run_id, Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits"
    )
    assert b"Extensions" not in with_extensions.head


@pytest.mark.parametrize("cursor", ["x", "-1", "1.0", "9" * 16])
def test_a_cursor_that_is_no_seq_is_refused(web: Stack, author: LogAuthor, connect: Connect, cursor: str) -> None:
    refused(connect(web).shake(author.run_id, f"?since_seq={cursor}"), 400, "invalid_cursor")


def test_a_cursor_beyond_the_end_of_a_finished_run_is_refused(web: Stack, author: LogAuthor, connect: Connect) -> None:
    author.commit_end()
    author.publish_end()
    refused(connect(web).shake(author.run_id, f"?since_seq={author.head + 1}"), 400, "invalid_cursor")
    assert connect(web).open(author.run_id, f"?since_seq={author.head}").to_the_end().code == 1000


@pytest.mark.parametrize(
    "arguments",
    [["--worker-class", "gthread", "--threads", "4"], ["--certfile", CERTIFICATE, "--keyfile", CERTIFICATE]],
    ids=["threads", "TLS"],
)
def test_where_the_connection_is_not_ours_it_is_said_and_the_slot_is_free_again(
    web: Stack, author: LogAuthor, tmp_path: Path, arguments: list[str]
) -> None:
    port = free_port()
    env = {**web.env, "PORT": str(port), "STREAM_MAX_PER_USER": "1"}
    process = Process("other", [sys.executable, "-m", "gunicorn", "wsgi:app", *arguments], env, tmp_path)
    scheme = "https" if "--certfile" in arguments else "http"
    headers = {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": NONCE,
    }
    try:
        with httpx.Client(base_url=f"{scheme}://127.0.0.1:{port}", verify=False) as http:

            def ready() -> bool:
                with suppress(httpx.TransportError):
                    return http.get("/healthz").status_code == 200
                return False

            eventually(ready, READY_SECONDS, "readiness")
            for _ in range(2):
                problem(http.get(f"/runs/{author.run_id}/ws", headers=headers), 501, "websocket_unavailable")
            assert "runtail_open_windows 0.0" in http.get("/metrics").text
    finally:
        process.stop()


# Who may open one.


@pytest.fixture
def ann(guarded: Stack) -> tuple[str, str]:
    """A key, and a run of its user."""
    who = Principal("acme", "ann")
    return guarded.services.registry.create_key(who), pending_run(guarded.services, principal=who).id


def test_a_key_comes_in_the_header_or_as_a_subprotocol(guarded: Stack, connect: Connect, ann: tuple[str, str]) -> None:
    key, run_id = ann
    client = connect(guarded).open(run_id, Authorization=f"Bearer {key}")
    assert b"Sec-WebSocket-Protocol" not in client.head
    client = connect(guarded).open(run_id, Sec_WebSocket_Protocol=f"runtail.v1, bearer.{key}")
    assert b"\r\nSec-WebSocket-Protocol: runtail.v1\r\n" in client.received
    assert client.messages(1)[0]["seq"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer rt_00000000_unknown"},
        {"Sec_WebSocket_Protocol": "runtail.v1"},
        {"Sec_WebSocket_Protocol": "runtail.v1, bearer."},
        {"Sec_WebSocket_Protocol": "runtail.v1, bearer.rt_00000000_unknown"},
        {"Authorization": "Bearer x", "Sec_WebSocket_Protocol": "runtail.v1, bearer.KEY"},
    ],
)
def test_without_a_good_key_nothing_is_told(
    guarded: Stack, connect: Connect, ann: tuple[str, str], headers: dict[str, str]
) -> None:
    key, run_id = ann
    said = {name: value.replace("KEY", key) for name, value in headers.items()}
    refused(connect(guarded).shake(run_id, **said), 401, "unauthorized")
    refused(connect(guarded).shake(run_id, "?since_seq=x", **{**said, "Upgrade": None}), 401, "unauthorized")


def test_the_run_of_somebody_else_is_not_there(guarded: Stack, connect: Connect, ann: tuple[str, str]) -> None:
    key, _ = ann
    of_bob = pending_run(guarded.services, principal=Principal("acme", "bob")).id
    for run_id in (of_bob, "run_00000000000000000000000000"):
        refused(connect(guarded).shake(run_id, Authorization=f"Bearer {key}"), 404, "run_not_found")


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.com",
        "null",
        "",
        "file://",
        "http://127.0.0.1",
        "http://127.0.0.1:PORT.evil.com",
        "http://127.0.0.1:99999",
        "http://user@evil.com:PORT",
        "http://evil-127.0.0.1:PORT",
        "https://console.example.com.evil.com",
        "http://console.example.com",
    ],
)
def test_the_page_of_another_origin_is_turned_away_before_anything_else_is_told(
    web: Stack, guarded: Stack, author: LogAuthor, connect: Connect, ann: tuple[str, str], origin: str
) -> None:
    key, run_id = ann
    for server, known in ((web, author.run_id), (guarded, run_id)):
        host = f"127.0.0.1:{server.port}"
        foreign = {"Origin": origin.replace("PORT", str(server.port)), "Host": host}
        for asked in (known, "run_00000000000000000000000000"):
            refused(connect(server).shake(asked, **foreign), 403, "origin_not_allowed")
        refused(connect(server).shake(known, Authorization=f"Bearer {key}", **foreign), 403, "origin_not_allowed")


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (ORIGIN, "127.0.0.1:PORT"),
        ("http://127.0.0.1:PORT", "127.0.0.1:PORT"),
        ("http://LOCALHOST:PORT", "localhost:PORT"),
        ("https://localhost", "localhost"),
        ("http://localhost", "localhost:80"),
        ("https://localhost", "localhost:443"),
        ("http://[::1]:PORT", "[::1]:PORT"),
    ],
)
def test_pages_of_this_server_and_those_that_are_named_may_open_one(
    web: Stack, author: LogAuthor, connect: Connect, origin: str, host: str
) -> None:
    port = str(web.port)
    connect(web).open(author.run_id, Origin=origin.replace("PORT", port), Host=host.replace("PORT", port))


def test_both_kinds_of_windows_count_together_and_who_is_too_many_is_told_so_on_the_websocket(
    stack: StackMaker, connect: Connect
) -> None:
    web = stack(STREAM_MAX_PER_USER="2")
    web.start_web()
    author = LogAuthor(web)
    with RawClient(web.port) as sse:
        sse.ask(author.path).until(b"run.created")
        second = connect(web).open(author.run_id)
        third = connect(web).open(author.run_id).to_the_end()
        (told,) = third.envelopes
        assert (told["type"], told["run_id"], third.code) == ("stream.rejected", author.run_id, 1013)
        assert told["payload"]["code"] == "too_many_streams"
        assert 2_000 <= told["payload"]["retry_ms"] <= 5_000
        with RawClient(web.port) as another:
            another.ask(author.path).until(b"too_many_streams")
        second.socket.close()
        eventually(lambda: open_windows(web) == 1)
        assert connect(web).open(author.run_id).messages(1)[0]["seq"] == 1


def test_who_is_turned_away_is_told_so_even_while_it_speaks(stack: StackMaker, connect: Connect) -> None:
    web = stack(STREAM_MAX_PER_USER="1")
    web.start_web()
    author = LogAuthor(web)
    connect(web).open(author.run_id)
    speaking = connect(web).shake(author.run_id, behind=masked(0x1, b"x" * 200_000))
    speaking.polite = False
    assert speaking.to_the_end().code == 1013


def test_that_postgres_is_away_is_told_on_the_websocket(tmp_path: Path, connect: Connect) -> None:
    with EmbeddedServices(tmp_path / "services") as servers:
        urls = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
        with own_databases(urls) as own, Stack(own, tmp_path) as web:
            web.start_web()
            author = LogAuthor(web)
            servers.kill("postgres")
            client = connect(web).open(author.run_id).to_the_end()
            assert client.envelopes[0]["payload"]["code"] == "store_unavailable"
            assert client.code == 1013
            problem(web.http.get(author.path.replace("events", "ws")), 503, "store_unavailable")
            servers.start("postgres")


# What arrives.


def test_every_event_is_one_text_message_as_it_is_stored_and_the_end_is_a_normal_closure(
    web: Stack, author: LogAuthor, connect: Connect
) -> None:
    author.append(3, "é\r\n\u2028🚚")
    early = connect(web).open(author.run_id)
    early.messages(4)
    author.append(40, LONG[:1_000])
    author.end()
    late = connect(web).open(author.run_id).to_the_end()
    assert early.to_the_end().texts == late.texts == texts(author)
    assert early.code == late.code == 1000


def test_a_window_begins_after_its_cursor_or_with_a_snapshot_at_the_head(
    web: Stack, author: LogAuthor, connect: Connect
) -> None:
    author.append(9)
    author.archive()
    resumed = connect(web).open(author.run_id, "?since_seq=7")
    assert [message["seq"] for message in resumed.messages(3)] == [8, 9, 10]
    latest = connect(web).open(author.run_id, "?since_seq=latest")
    (snapshot,) = latest.messages(1)
    assert snapshot["type"] == "stream.snapshot"
    assert snapshot["payload"]["seq"] == snapshot["payload"]["state"]["last_seq"] == 10
    author.append()
    assert latest.messages(2)[1]["seq"] == resumed.messages(4)[3]["seq"] == 11


def test_who_is_far_behind_is_given_a_snapshot_as_in_sse(stack: StackMaker, connect: Connect) -> None:
    web = stack(REPLAY_MAX_EVENTS="10")
    web.start_web()
    author = LogAuthor(web)
    author.append(20)
    author.archive()
    client = connect(web).open(author.run_id)
    assert client.messages(1)[0]["type"] == "stream.snapshot"
    author.append()
    assert client.messages(2)[1]["seq"] == 22


def test_frames_have_a_header_of_each_length(web: Stack, author: LogAuthor, client: SocketClient) -> None:
    for size in (0, 100, 65_300, 65_400, 66_000, 200_000):
        author.append(1, "a" * size)
    assert [m["seq"] for m in client.messages(7)] == list(range(1, 8))
    assert client.texts == texts(author)


def test_an_event_of_a_megabyte_arrives_whole_whatever_the_client_reads_at_a_time(
    web: Stack, author: LogAuthor, connect: Connect
) -> None:
    clients = [connect(web).open(author.run_id), connect(web, receive_buffer=SMALL_BUFFER).open(author.run_id)]
    author.append(1, MEGABYTE)
    author.end()
    for client, most in zip(clients, (65_536, 1_000), strict=True):
        assert client.to_the_end(most).texts == texts(author)
        assert client.code == 1000


def test_a_client_that_reads_byte_by_byte_gets_everything(web: Stack, author: LogAuthor, connect: Connect) -> None:
    client = connect(web, receive_buffer=SMALL_BUFFER).open(author.run_id)
    author.append(3, LONG[:5_000])
    author.end()
    assert client.to_the_end(1).texts == texts(author)
    assert client.code == 1000


def test_a_handshake_behind_an_answer_that_was_not_read_yet_is_answered(web: Stack, author: LogAuthor) -> None:
    author.append(1, LONG)
    handshake = f"GET /runs/{author.run_id}/ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    handshake += f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {NONCE}\r\n\r\n"
    before = open_windows(web)
    with RawClient(web.port, receive_buffer=SMALL_BUFFER) as client:
        client.ask(author.path, "application/json").socket.sendall(handshake.encode())
        eventually(lambda: open_windows(web) == before + 1)
        client.until(b"HTTP/1.1 101 ")
        while b'"seq":2,' not in client.received.partition(b"HTTP/1.1 101 ")[2]:
            assert client.read()
    eventually(lambda: open_windows(web) == before)


def test_a_client_that_takes_its_time_over_the_end_and_says_something_meanwhile_loses_nothing(
    web: Stack, author: LogAuthor, connect: Connect
) -> None:
    client = connect(web, receive_buffer=SMALL_BUFFER).open(author.run_id)
    author.append(1, LONG[:6_000])
    author.end()
    time.sleep(CLOSE_SECONDS + 1.5)  # the server has nothing left to send, and the kernel has
    client.socket.sendall(masked(0x8A, b"still here"))  # a pong: were the connection closed, this would reset it
    time.sleep(0.5)
    assert client.to_the_end().texts == texts(author)
    assert client.code == 1000


def test_a_client_that_broke_a_rule_does_not_keep_its_place_by_reading_nothing(
    stack: StackMaker, connect: Connect
) -> None:
    web = stack()
    web.start_web()
    author = LogAuthor(web)
    client = connect(web, receive_buffer=SMALL_BUFFER).open(author.run_id)
    author.append(1, LONG[:6_000])
    eventually(lambda: unread(client) > SMALL_BUFFER / 2, what="the beginning of the event")
    client.socket.sendall(masked(0x1, b"{}", mask=False))
    assert holds(web, client)
    eventually(lambda: not holds(web, client), 3 * CLOSE_SECONDS, "the end of its connection")
    assert open_windows(web) == 0


def unread(client: SocketClient) -> int:
    """Bytes that have arrived, and that the client has not read."""
    (count,) = struct.unpack("i", fcntl.ioctl(client.socket, termios.FIONREAD, bytes(4)))
    return int(count)


def holds(web: Stack, client: SocketClient) -> bool:
    """Whether the server still has the connection of the client, whose window may have ended."""
    port = client.socket.getsockname()[1]
    (worker,) = psutil.Process(web.web_pid).children()
    return any(held.raddr and held.raddr.port == port for held in worker.net_connections("tcp"))


def test_a_quiet_window_is_pinged_and_stays(stack: StackMaker, connect: Connect) -> None:
    web = stack(STREAM_HEARTBEAT_SECONDS="1")
    web.start_web()
    author = LogAuthor(web)
    polite, rude = connect(web).open(author.run_id), connect(web).open(author.run_id)
    rude.polite = False
    for client in (polite, rude):
        while client.pings < 2:
            assert client.read()
    author.append()
    for client in (polite, rude):
        assert client.messages(2)[1]["seq"] == 2


# How it ends.


def test_a_window_that_was_open_for_long_is_told_to_come_back(stack: StackMaker, connect: Connect) -> None:
    web = stack(STREAM_MAX_SECONDS="1")
    web.start_web()
    author = LogAuthor(web)
    client = connect(web).open(author.run_id).to_the_end()
    assert [message["type"] for message in client.envelopes] == ["run.created", "stream.expired"]
    assert client.code == 1001
    client.socket.close()
    eventually(lambda: open_windows(web) == 0)
    assert "runtail_rotations_total 1.0" in web.http.get("/metrics").text


def test_sigterm_ends_every_window_with_a_code_within_a_second(stack: StackMaker, connect: Connect) -> None:
    web = stack(**UNLIMITED)
    process = web.start_web()
    author = LogAuthor(web)
    clients = [connect(web).open(author.run_id) for _ in range(20)]
    for client in clients:
        client.messages(1)
    started = time.monotonic()
    process.send(signal.SIGTERM)
    for client in clients:
        client.to_the_end()
    assert time.monotonic() - started < 1
    assert {client.code for client in clients} == {1012}
    assert process.stop() == 0


@pytest.fixture(scope="module")
def impatient(module_stack: StackMaker) -> Stack:
    """A web process that gives up slow readers soon."""
    stack = module_stack(**UNLIMITED, STREAM_MAX_LAG_SECONDS="1", REPLAY_MAX_BYTES="0")
    stack.start_web()
    return stack


def lagging(web: Stack, author: LogAuthor, client: SocketClient) -> SocketClient:
    """A window whose client does not read, and has been given up."""
    closes = lag_closes(web)
    client.open(author.run_id).messages(1)
    for _ in range(20):
        author.append(1, LONG)
    eventually(lambda: lag_closes(web) > closes)
    return client


def lag_closes(web: Stack) -> float:
    (line,) = [x for x in web.http.get("/metrics").text.split("\n") if x.startswith("runtail_lag_closes_total")]
    return float(line.split()[-1])


@pytest.mark.parametrize("buffer", [2_048, SMALL_BUFFER, 60_000])
def test_a_slow_reader_gets_a_whole_frame_and_a_code_of_its_own_and_resumes_complete(
    impatient: Stack, connect: Connect, buffer: int
) -> None:
    author = LogAuthor(impatient)
    client = lagging(impatient, author, connect(impatient, receive_buffer=buffer)).to_the_end()
    assert client.code == 4008
    cursor = client.envelopes[-1]["seq"]
    assert client.texts == texts(author)[:cursor]
    assert cursor < author.head
    author.end()
    again = connect(impatient).open(author.run_id, f"?since_seq={cursor}").to_the_end()
    assert [*client.texts, *again.texts] == texts(author)


def test_a_client_that_reads_nothing_more_is_reset_in_the_end(impatient: Stack, connect: Connect) -> None:
    client = lagging(impatient, LogAuthor(impatient), connect(impatient, receive_buffer=SMALL_BUFFER))
    eventually(lambda: open_windows(impatient) == 0)
    with pytest.raises(ConnectionResetError):
        client.to_the_end()
    assert client.code is None


@pytest.mark.parametrize("leave", ["close", "reset", "half"])
def test_a_client_that_leaves_is_noticed_at_once(web: Stack, author: LogAuthor, connect: Connect, leave: str) -> None:
    before = open_windows(web)
    client = connect(web).open(author.run_id)
    assert open_windows(web) == before + 1
    if leave == "half":
        client.socket.shutdown(socket.SHUT_WR)
    else:
        client.reset() if leave == "reset" else client.socket.close()
    eventually(lambda: open_windows(web) == before, 1)


@pytest.mark.parametrize(("code", "answered"), [(1000, 1000), (1001, 1001), (4711, 4711), (None, 1005)])
def test_a_close_frame_is_answered_and_the_window_ends(
    web: Stack, client: SocketClient, code: int | None, answered: int
) -> None:
    before = open_windows(web)
    client.polite = False
    client.socket.sendall(masked(0x8, struct.pack("!H", code) + b"bye" if code else b""))
    assert client.to_the_end().code == answered
    client.socket.close()
    eventually(lambda: open_windows(web) == before - 1, 1)


@pytest.mark.parametrize("said", [b"garbage", b"\x88\x80mask"], ids=["1002", "a close frame"])
def test_a_client_that_does_not_hang_up_is_closed_all_the_same(web: Stack, client: SocketClient, said: bytes) -> None:
    before = open_windows(web)
    client.polite = False
    client.socket.sendall(said)
    client.to_the_end()
    eventually(lambda: open_windows(web) == before - 1, CLOSE_SECONDS + 3)
