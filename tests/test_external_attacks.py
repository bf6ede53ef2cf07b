"""What writers, and those who pretend to be, may not do: each attempt is refused, and changes nothing."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from app.protocol.events import MAX_DEPTH, SCHEMAS
from app.storage.run_store import Principal
from tests.conftest import StackMaker
from tests.external_writer import ExternalWriter, Line, ndjson
from tests.harness import Stack, pending_run, problem
from tests.stored import events, row

CHECKED: Line = ("quality.checked", {"name": "tone", "passed": True})
RESERVED = sorted(name for name in SCHEMAS if name.startswith("run."))
MAX_BODY_BYTES = 1_000_000
GIVEN_UP = (BrokenPipeError, ConnectionResetError)


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """One web process."""
    stack = module_stack()
    stack.start_web()
    return stack


@pytest.fixture
def writer(web: Stack) -> Iterator[ExternalWriter]:
    """Of a run to which nothing may happen."""
    writer = ExternalWriter.start(web.http)
    writer.seq = 1
    yield writer
    assert [event.type for event in events(web, writer.run_id)] == ["run.created", "run.started"]
    assert row(web, writer.run_id).status == "running"
    assert writer.send(ndjson([CHECKED])).json()["producer_seq"] == 1, "its writer goes on undisturbed"


def lines(*texts: bytes) -> bytes:
    """A batch of these lines behind a good one."""
    return b"\n".join([ndjson([CHECKED])[:-1], *texts])


# Who writes.


def test_a_writer_does_not_write_into_anothers_run(web: Stack, writer: ExternalWriter) -> None:
    other = ExternalWriter.start(web.http)
    for call in ("events", "heartbeat", "finish"):
        headers = {**other.headers(1), "Content-Type": "application/x-ndjson"}
        answer = web.http.post(f"/runs/{writer.run_id}/{call}", content=ndjson([CHECKED]), headers=headers)
        assert problem(answer, 404, "run_not_found")["detail"] == f"There is no run {writer.run_id!r}."


@pytest.mark.parametrize("token", ["", "Bearer", "Basic abc"])
def test_without_a_token_nobody_writes(web: Stack, writer: ExternalWriter, token: str) -> None:
    problem(writer.send(ndjson([CHECKED]), Authorization=token), 401, "unauthorized")
    problem(writer.beat(Authorization=token), 401, "unauthorized")


def test_a_key_is_no_token_and_a_token_no_key(web: Stack, writer: ExternalWriter) -> None:
    key = web.services.registry.create_key(Principal("dev", "dev", admin=True, writer=True))
    problem(writer.send(ndjson([CHECKED]), Authorization=f"Bearer {key}"), 404, "run_not_found")
    problem(writer.send(ndjson([CHECKED]), Authorization=f"Bearer {writer.watch_token}"), 404, "run_not_found")
    for token in (writer.token, writer.watch_token):
        headers = {"Authorization": f"Bearer {token}"}
        for path in ("", f"/{writer.run_id}", f"/{writer.run_id}/events"):
            problem(web.http.get(f"/runs{path}", headers=headers), 401, "unauthorized")
        problem(web.http.post(f"/runs/{writer.run_id}/cancel", headers=headers), 401, "unauthorized")


@pytest.mark.parametrize("epoch", [2, 2_000_000_000])
def test_a_forged_epoch_is_stale(writer: ExternalWriter, epoch: int) -> None:
    headers = {"Producer-Epoch": str(epoch)}
    problem(writer.send(ndjson([CHECKED]), **headers), 403, "stale_epoch")
    problem(writer.beat(**headers), 403, "stale_epoch")


def test_an_old_writer_does_not_pass_with_the_new_ones_epoch(web: Stack) -> None:
    first = ExternalWriter.start(web.http, client_run_id="old")
    second = ExternalWriter.start(web.http, client_run_id="old")
    problem(first.send(ndjson([CHECKED]), seq=1, **{"Producer-Epoch": "2"}), 403, "stale_epoch")
    problem(second.send(ndjson([CHECKED]), seq=1, **{"Producer-Epoch": "1"}), 403, "stale_epoch")
    problem(first.complete(), 403, "stale_epoch")
    assert second.append(CHECKED).json()["head"] == 4


@pytest.mark.parametrize("name", ["Producer-Epoch", "Producer-Seq"])
@pytest.mark.parametrize(
    "value", ["", "0", "-1", "1.0", "one", "1e3", "+1", "0x1", "٣", "2147483648", "9" * 19, "9" * 5_000, "1,1"]
)
def test_a_number_that_is_none_is_refused(writer: ExternalWriter, name: str, value: str) -> None:
    sent = {k: v.encode() for k, v in {**writer.headers(), "Content-Type": "application/x-ndjson"}.items()}
    headers = {**sent, name: value.encode()}
    answer = writer.http.post(f"/runs/{writer.run_id}/events", content=ndjson([CHECKED]), headers=headers)
    problem(answer, 422, "invalid_request")


def test_a_huge_number_is_only_a_gap(writer: ExternalWriter) -> None:
    answer = writer.send(ndjson([CHECKED]), seq=2**31 - 1)
    assert (answer.status_code, answer.json()["expected"]) == (409, 1)


def test_missing_headers_are_named(writer: ExternalWriter) -> None:
    headers = {"Authorization": f"Bearer {writer.token}", "Content-Type": "application/x-ndjson"}
    path = f"/runs/{writer.run_id}/events"
    answer = writer.http.post(path, content=ndjson([CHECKED]), headers=headers)
    assert "Producer-Epoch" in problem(answer, 422, "invalid_request")["detail"]
    answer = writer.http.post(path, content=ndjson([CHECKED]), headers={**headers, "Producer-Epoch": "1"})
    assert "Producer-Seq" in problem(answer, 422, "invalid_request")["detail"]


@pytest.mark.parametrize("after", ["-1", "x", "1.5", "9" * 30, "\0"])
def test_inputs_after_something_that_is_no_number_are_refused(writer: ExternalWriter, after: str) -> None:
    query = {"inputs_after": after}
    answer = writer.http.post(f"/runs/{writer.run_id}/heartbeat", params=query, headers=writer.headers())
    problem(answer, 422, "invalid_request")


def test_a_run_of_a_worker_has_no_writer(web: Stack, writer: ExternalWriter) -> None:
    run = pending_run(web.services)
    for id in (run.id, "run_none", "x%00y", "%F0%9F%98%80"):
        answer = web.http.post(f"/runs/{id}/heartbeat", headers=writer.headers())
        problem(answer, 404, "run_not_found")


# What is written.


@pytest.mark.parametrize("type", [*RESERVED, "run.", "run.anything", "approval.resolved", "input.received"])
def test_what_only_the_server_writes_is_refused(writer: ExternalWriter, type: str) -> None:
    answer = writer.send(ndjson([CHECKED, (type, {})]))
    assert problem(answer, 422, "reserved_type")["detail"].startswith("Line 2: ")


@pytest.mark.parametrize(
    "line",
    [
        *(b"1", b"[]", b"null", b'"text"', b"{}", b'{"type":"custom.x"}', b'{"payload":{}}'),
        b'{"type":"custom.x","payload":{},"seq":7}',
        b'{"type":1,"payload":{}}',
        b'{"type":"custom.x","payload":[]}',
        b'{"type":"custom.x","payload":null}',
        b'{"type":"unknown.type","payload":{}}',
        b'{"type":"custom.Upper","payload":{}}',
        b'{"type":"custom.x\\u0000","payload":{}}',
        b'{"type":"\\ud800","payload":{}}',
        b'{"type":"stream.gap","payload":{"requested":1,"earliest":1,"head":1}}',
        b'{"type":"Run.completed","payload":{}}',
        b'{"type":"message.delta","payload":{"message_id":"m1"}}',
        b'{"type":"message.delta","payload":{"message_id":"m1","text":1}}',
        b'{"type":"step.progress","payload":{"step_id":"s","fraction":1.5}}',
        b'{"type":"approval.required","payload":{"approval_id":"a/b","label":"l","requires":"owner"}}',
        b'{"type":"approval.required","payload":{"approval_id":"","label":"l","requires":"owner"}}',
        b'{"type":"approval.required","payload":{"approval_id":"..","label":"l","requires":"owner"}}',
        b'{"type":"approval.required","payload":{"approval_id":"a\\n","label":"l","requires":"owner"}}',
        b'{"type":"approval.required","payload":{"approval_id":"a","label":"l","requires":"nobody"}}',
        b'{"type":"approval.required","payload":{"approval_id":"a","label":"l","requires":"owner","expires_at":"x"}}',
        b'{"type":"approval.required","payload":{"approval_id":"a","label":"l","requires":"owner",'
        b'"expires_at":"2026-01-01T00:00:00"}}',
        b'{"type":"approval.required","payload":{"approval_id":"a","label":"l","requires":"owner",'
        b'"expires_at":"0001-01-01T00:00:00+23:00"}}',
        b'{"type":"approval.required","payload":{"approval_id":"a","label":"l","requires":"owner",'
        b'"expires_at":"0001-12-31T23:59:59Z"}}',
        b'{"type":"approval.required","payload":{"approval_id":"a","label":"l","requires":"owner",'
        b'"expires_at":"9999-12-31T23:59:59Z"}}',
    ],
)
def test_one_bad_event_and_nothing_of_its_batch_is_appended(writer: ExternalWriter, line: bytes) -> None:
    answer = writer.send(lines(line, ndjson([CHECKED])))
    assert problem(answer, 422, "invalid_event")["detail"].startswith("Line 2: ")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"{", "invalid_json"),
        (b"\xff", "invalid_json"),
        (b'{"type":"custom.x","payload":{"n":NaN}}', "invalid_json"),
        (b'{"type":"custom.x","payload":{"n":-Infinity}}', "invalid_json"),
        (b'{"type":"custom.x","payload":{"n":1e999}}', "invalid_json"),
        (b'{"type":"custom.x","payload":{"n":9007199254740992}}', "invalid_json"),
        (b'{"type":"custom.x","payload":{"n":' + b"9" * 5_000 + b"}}", "invalid_json"),
        (b'{"type":"custom.x","payload":{"a":1,"a":2}}', "invalid_json"),
        (b'{"type":"custom.x","type":"custom.y","payload":{}}', "invalid_json"),
        (b'{"type":"custom.x","payload":' + b'{"a":' * MAX_DEPTH + b"{}" + b"}" * MAX_DEPTH + b"}", "json_too_deep"),
        (b'{"type":"custom.x","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json_too_deep"),
    ],
)
def test_json_that_readers_do_not_agree_on_is_refused(writer: ExternalWriter, line: bytes, code: str) -> None:
    answer = writer.send(lines(line))
    assert problem(answer, 400, code)["detail"].startswith("Line 2: ")


def test_nul_and_lone_surrogates_are_replaced(web: Stack) -> None:
    writer = ExternalWriter.start(web.http)
    writer.seq = 1
    line = b'{"type":"custom.x","payload":{"k\\u0000":"a\\u0000b\\ud800c\\ud83d\\ude00"}}'
    assert writer.send(line).status_code == 200
    assert events(web, writer.run_id)[-1].envelope()["payload"] == {"k\ufffd": "a\ufffdb\ufffdc\U0001f600"}


def test_a_finish_with_nul_and_lone_surrogates_ends_the_run(web: Stack) -> None:
    writer = ExternalWriter.start(web.http)
    content = b'{"status":"failed","error":{"message":"a\\u0000b\\ud800"}}'
    headers = {**writer.headers(1), "Content-Type": "application/json"}
    answer = web.http.post(f"/runs/{writer.run_id}/finish", content=content, headers=headers)
    assert answer.json()["error"]["message"] == "a\ufffdb\ufffd"


@pytest.mark.parametrize("type", ["", "application/json", "text/plain", "application/x-ndjsonx"])
def test_another_media_type_is_refused(writer: ExternalWriter, type: str) -> None:
    problem(writer.send(ndjson([CHECKED]), **{"Content-Type": type}), 415, "unsupported_media_type")


# How much is written.


def test_a_batch_that_is_too_large_is_refused(writer: ExternalWriter) -> None:
    body = ndjson([("custom.x", {"text": "x" * MAX_BODY_BYTES})])
    problem(writer.send(body), 413, "body_too_large")
    chunks = iter([body[:500_000], body[500_000:]])
    problem(writer.send(chunks), 413, "body_too_large")


def test_a_million_empty_lines_are_an_empty_batch(writer: ExternalWriter) -> None:
    problem(writer.send(b"\n" * MAX_BODY_BYTES), 422, "invalid_request")


def test_a_body_that_never_ends_is_answered_and_the_connection_closed(web: Stack, writer: ExternalWriter) -> None:
    with connected(web, writer, "Transfer-Encoding: chunked") as sock:
        chunk = b"ffff\r\n" + b"\n" * 0xFFFF + b"\r\n"
        with contextlib.suppress(*GIVEN_UP):
            while True:
                sock.sendall(chunk)
                if readable(sock):
                    break
        answer = everything(sock)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code": "body_too_large"' in answer


def test_a_body_that_trickles_in_is_given_up(web: Stack, writer: ExternalWriter) -> None:
    stop = threading.Event()
    with connected(web, writer, "Content-Length: 100000") as sock:
        trickle = threading.Thread(target=send_slowly, args=(sock, stop))
        trickle.start()
        answer = everything(sock)
        stop.set()
        trickle.join()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code": "body_timeout"' in answer


def test_from_somebody_unknown_not_even_a_body_is_read(web: Stack, writer: ExternalWriter) -> None:
    token = writer.token
    writer.token = "rtw_forged"
    with connected(web, writer, "Content-Length: 900000") as sock:
        answer = sock.recv(65_536)
    writer.token = token
    assert answer.startswith(b"HTTP/1.1 404 ")


# Who watches.


def test_a_watch_token_opens_nothing_but_its_runs_events(web: Stack) -> None:
    service = {"Authorization": f"Bearer {web.services.registry.create_key(Principal('acme', 'svc', writer=True))}"}
    mine, other = (ExternalWriter.start(web.http, service) for _ in range(2))
    query = {"watch_token": mine.watch_token}
    plain = {"Accept": "application/json"}
    assert web.http.get(f"/runs/{mine.run_id}/events", params=query, headers=plain).status_code == 200
    problem(web.http.get(f"/runs/{other.run_id}/events", params=query, headers=plain), 404, "run_not_found")
    for method, path in (
        *(("GET", f"/runs/{mine.run_id}"), ("DELETE", f"/runs/{mine.run_id}"), ("POST", f"/runs/{mine.run_id}/cancel")),
        *(("POST", f"/runs/{mine.run_id}/erase"), ("POST", f"/runs/{mine.run_id}/approvals/a1")),
    ):
        answer = web.http.request(method, path, params=query, json={"decision": "approved"})
        problem(answer, 422, "invalid_request")  # no other route has such a parameter
        bearer = {"Authorization": f"Bearer {mine.watch_token}"}
        problem(web.http.request(method, path, headers=bearer, json={"decision": "approved"}), 401, "unauthorized")
    problem(web.http.get("/runs", params=query), 422, "invalid_request")
    assert web.http.post(f"/runs/{mine.run_id}/events", params=query).status_code in (401, 422)


@pytest.mark.parametrize("token", ["", "rtv_forged", "\0", "x" * 2_000])
def test_a_forged_watch_token_opens_nothing(web: Stack, token: str) -> None:
    writer = ExternalWriter.start(web.http)
    for forged in (token, writer.token):
        answer = web.http.get(f"/runs/{writer.run_id}/events", params={"watch_token": forged})
        problem(answer, 404, "run_not_found")


# Several at once.


def test_what_one_writer_does_wrong_does_not_fail_the_others(web: Stack) -> None:
    writers = [ExternalWriter.start(web.http) for _ in range(8)]
    stale = ExternalWriter.start(web.http, client_run_id="stale")
    ExternalWriter.start(web.http, client_run_id="stale")
    done: list[tuple[int, int]] = []

    def write(n: int, writer: ExternalWriter) -> None:
        for _ in range(20):
            done.append((n, writer.append(CHECKED).status_code))

    def misbehave() -> None:
        for seq in (1, 7):
            for _ in range(10):
                done.append((-1, stale.send(ndjson([CHECKED]), seq=seq).status_code))

    threads = [threading.Thread(target=write, args=pair) for pair in enumerate(writers)]
    threads.append(threading.Thread(target=misbehave))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {status for n, status in done if n >= 0} == {200}
    assert {status for n, status in done if n < 0} == {403}
    for writer in writers:
        assert [event.seq for event in events(web, writer.run_id)] == list(range(1, 23))


@contextlib.contextmanager
def connected(web: Stack, writer: ExternalWriter, length: str) -> Iterator[socket.socket]:
    """A connection on which a batch has begun, but for its body."""
    head = [f"POST /runs/{writer.run_id}/events HTTP/1.1", "Host: localhost", "Content-Type: application/x-ndjson"]
    head += [f"{name}: {value}" for name, value in writer.headers(1).items()]
    with socket.create_connection(("127.0.0.1", web.port), timeout=60) as sock:
        sock.sendall("\r\n".join([*head, length, "", ""]).encode())
        yield sock


def readable(sock: socket.socket) -> bool:
    """There is an answer, or the connection is closed."""
    sock.setblocking(False)
    try:
        return sock.recv(1, socket.MSG_PEEK) is not None
    except BlockingIOError:
        return False
    finally:
        sock.settimeout(60)


def everything(sock: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    answer = b""
    with contextlib.suppress(*GIVEN_UP):
        while data := sock.recv(65_536):
            answer += data
    return answer


def send_slowly(sock: socket.socket, stop: threading.Event) -> None:
    """A byte now and then."""
    with contextlib.suppress(OSError):
        while not stop.wait(0.2):
            sock.sendall(b"\n")
