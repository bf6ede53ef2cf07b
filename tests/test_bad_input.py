"""What is wrong with a request is said with a stable code, and changes nothing."""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from flask import Flask

from app.api.queries import PROBED
from app.identifiers import new_id
from app.protocol.events import encode
from app.protocol.reducer import initial, reduce
from app.storage.run_store import NewRun, Principal
from app.wiring import Services
from tests.harness import Stack, problem

TICKS = {"count": 3, "type": "custom.tick"}
UNKNOWN = "run_00000000000000000000000000"
MAX_BODY_BYTES = 1_000_000


def start(stack: Stack, body: Any) -> httpx.Response:
    """POST /runs with a body that httpx would make itself."""
    return stack.http.post("/runs", json=body)


def send(stack: Stack, content: bytes | Iterator[bytes], **headers: str) -> httpx.Response:
    """POST /runs with a body of one's own making."""
    return stack.http.post("/runs", content=content, headers={"Content-Type": "application/json", **headers})


# The body's fields.


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"agent": "nobody", "input": {}}, "unknown_agent"),
        ({"agent": "\0", "input": {}}, "unknown_agent"),
        ({"agent": "emit", "input": {}}, "invalid_input"),
        ({"agent": "emit"}, "invalid_input"),
        ({"agent": "emit", "input": {"count": "3"}}, "invalid_input"),
        ({"agent": "emit", "input": {"count": 5.0}}, "invalid_input"),
        ({"agent": "emit", "input": {"count": True}}, "invalid_input"),
        ({"agent": "emit", "input": {"count": None}}, "invalid_input"),
        ({"agent": "emit", "input": {"count": -1}}, "invalid_input"),
        ({"agent": "emit", "input": {"count": 1_000_001}}, "invalid_input"),
        ({"agent": "emit", "input": {**TICKS, "type": "run.completed"}}, "invalid_input"),
        ({"agent": "emit", "input": {**TICKS, "interval_ms": "1"}}, "invalid_input"),
        ({"agent": "emit", "input": {**TICKS, "stamp": "yes"}}, "invalid_input"),
        ({"agent": "emit", "input": {**TICKS, "unknown": 1}}, "invalid_input"),
        ({"agent": "emit", "input": [TICKS]}, "invalid_request"),
        ({"agent": "emit", "input": "text"}, "invalid_request"),
        ({"agent": "emit", "input": 3}, "invalid_request"),
        ({"agent": "emit", "input": None}, "invalid_request"),
        ({"input": TICKS}, "invalid_request"),
        ({"agent": "", "input": TICKS}, "invalid_request"),
        ({"agent": "a" * 101, "input": TICKS}, "invalid_request"),
        ({"agent": ["emit"], "input": TICKS}, "invalid_request"),
        ({"agent": None, "input": TICKS}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "surprise": 1}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "Input": {}}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "metadata": [1]}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "on_disconnect": "explode"}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "session_id": ""}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "session_id": "a b"}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "session_id": "a\n"}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "session_id": "a\r\nSet-Cookie: b"}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "session_id": "é"}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "session_id": "a" * 129}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "session_id": 7}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "timeout_s": 0}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "timeout_s": -1}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "timeout_s": 2_592_001}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "timeout_s": 1.5}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "timeout_s": "5"}, "invalid_request"),
        ({"agent": "emit", "input": TICKS, "timeout_s": True}, "invalid_request"),
        ([], "invalid_request"),
        ([{"agent": "emit", "input": TICKS}], "invalid_request"),
        ("text", "invalid_request"),
        (7, "invalid_request"),
        ({}, "invalid_request"),
    ],
)
def test_a_body_that_does_not_fit_is_refused(live: Stack, body: Any, code: str) -> None:
    problem(start(live, body), 422, code)


def test_what_is_wrong_is_said_by_its_path_and_not_at_length(live: Stack) -> None:
    assert "$.count" in start(live, {"agent": "emit", "input": {"count": "3"}}).json()["detail"]
    assert "timeout_s" in start(live, {"agent": "emit", "timeout_s": 0}).json()["detail"]
    long = {"agent": "emit", "input": {"count": "x" * 100_000}}
    assert len(start(live, long).json()["detail"]) <= 1_000
    long = {"agent": "emit", "input": TICKS, "x" * 100_000: 1}
    assert len(start(live, long).json()["detail"]) <= 1_000


@pytest.mark.parametrize("key", ["", "with space", "é", "a" * 256, "tab\tbed"])
def test_a_bad_idempotency_key_is_refused(live: Stack, key: str) -> None:
    headers = {"Idempotency-Key": key.encode()}
    answer = live.http.post("/runs", json={"agent": "emit", "input": TICKS}, headers=headers)
    problem(answer, 422, "invalid_request")


# The body's form.


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"agent=emit", "invalid_json"),
        (b'{"agent": "emit"}{}', "invalid_json"),
        (b"{'agent': 'emit'}", "invalid_json"),
        (b'{"agent": "emit",}', "invalid_json"),
        (b'{"agent": "emit\xc3', "invalid_json"),
        (b'{"agent": "emit", "input": {"text": "\xc3"}}', "invalid_json"),
        (b'{"agent": "emit", "input": {"text": "\xed\xa0\x80"}}', "invalid_json"),
        (b'{"agent": "emit", "input": {"text": "\xc0\x80"}}', "invalid_json"),
        (b'{"agent": "emit", "input": {"text": "a\x00b"}}', "invalid_json"),
        ('{"agent": "emit", "input": {"count": 3}}'.encode("utf-16"), "invalid_json"),
        (b'\xef\xbb\xbf{"agent": "emit", "input": {"count": 3}}', "invalid_json"),
        (b'{"agent": "emit", "input": {"count": NaN}}', "invalid_json"),
        (b'{"agent": "emit", "input": {"count": Infinity}}', "invalid_json"),
        (b'{"agent": "emit", "input": {"count": -Infinity}}', "invalid_json"),
        (b'{"agent": "emit", "input": {"count": 1e400}}', "invalid_json"),
        (b'{"agent": "emit", "input": {"count": 9007199254740992}}', "invalid_json"),
        (b'{"agent": "emit", "input": {"count": -9007199254740992}}', "invalid_json"),
        (b'{"agent": "emit", "input": {"count": ' + b"9" * 5_000 + b"}}", "invalid_json"),
        (b'{"agent": "emit", "input": {"count": 3, "count": 4}}', "invalid_json"),
        (b'{"agent": "emit", "agent": "support", "input": {"count": 3}}', "invalid_json"),
        (b'{"agent": "emit", "input": ' + b"[" * 100 + b"]" * 100 + b"}", "json_too_deep"),
        (b'{"agent": "emit", "input": {"a": ' + b'{"a":' * 99 + b"1" + b"}" * 100 + b"}", "json_too_deep"),
        (b'{"agent": "emit", "input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "json_too_deep"),
        (b'{"agent": "emit", "input": {"a": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001 + b"}", "json_too_deep"),
    ],
    ids=lambda value: value[:50].decode("latin-1") if isinstance(value, bytes) else value,
)
def test_a_body_that_is_not_the_json_that_all_readers_agree_on_is_refused(
    live: Stack, content: bytes, code: str
) -> None:
    problem(send(live, content), 400, code)


def test_unclosed_depth_is_refused_as_well(live: Stack) -> None:
    document = send(live, b"[" * 500_000).json()
    assert (document["status"], document["code"]) in {(400, "json_too_deep"), (400, "invalid_json")}


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"]
)
def test_a_body_that_is_not_declared_as_json_is_refused(live: Stack, content_type: str) -> None:
    body = json.dumps({"agent": "emit", "input": TICKS}).encode()
    problem(send(live, body, **{"Content-Type": content_type}), 415, "unsupported_media_type")


def test_null_is_not_a_missing_body(live: Stack) -> None:
    problem(send(live, b"null"), 422, "invalid_request")


def test_a_request_without_body_and_type_is_refused(live: Stack) -> None:
    problem(live.http.post("/runs"), 415, "unsupported_media_type")


def test_a_content_type_may_name_its_charset(live: Stack) -> None:
    body = json.dumps({"agent": "emit", "input": TICKS}).encode()
    assert send(live, body, **{"Content-Type": "application/json; charset=utf-8"}).status_code == 202


def body_of(size: int) -> bytes:
    head = b'{"agent": "emit", "input": {"count": 1, "text": "'
    return head + b"x" * (size - len(head) - 3) + b'"}}'


def test_a_body_of_exactly_the_limit_is_taken(live: Stack) -> None:
    answer = send(live, body_of(MAX_BODY_BYTES))
    assert answer.status_code == 202
    assert live.ended(answer.json()["run_id"])["status"] == "completed"


def test_a_larger_body_is_refused_by_its_declared_length(live: Stack) -> None:
    problem(send(live, body_of(MAX_BODY_BYTES + 1)), 413, "body_too_large")


def test_a_huge_declared_length_is_refused_before_the_body_is_sent(live: Stack) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=5) as sock:
        sock.sendall(
            b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100000000000\r\n\r\n{"
        )
        answer = b""
        while b"}" not in answer:
            answer += sock.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code": "body_too_large"' in answer


def test_a_larger_body_without_a_declared_length_is_refused(live: Stack) -> None:
    def chunks() -> Iterator[bytes]:
        body = body_of(MAX_BODY_BYTES + 1)
        yield from (body[at : at + 50_000] for at in range(0, len(body), 50_000))

    problem(send(live, chunks()), 413, "body_too_large")


def test_a_chunked_body_within_the_limit_is_taken(live: Stack) -> None:
    body = json.dumps({"agent": "emit", "input": TICKS}).encode()
    assert send(live, iter([body[:9], body[9:]])).status_code == 202


# Text that Postgres refuses is cleaned, not refused.


def test_nul_and_lone_surrogates_are_replaced_and_the_run_completes(live: Stack) -> None:
    content = (
        rb'{"agent": "emit", "input": {"count": 2, "text": "a\u0000b\ud800c\udc00d\ud83d\ude00"},'
        rb' "metadata": {"k\u0000\udfff": ["\u0000"]}, "session_id": "cleaned"}'
    )
    answer = send(live, content)
    assert answer.status_code == 202
    run = live.ended(answer.json()["run_id"])
    assert run["status"] == "completed"
    assert run["input"]["text"] == "a\ufffdb\ufffdc\ufffdd\U0001f600"
    assert run["metadata"] == {"k\ufffd\ufffd": ["\ufffd"]}
    assert run["state"]["answer"]["text"] == run["input"]["text"] * 2


def test_nul_and_lone_surrogates_in_an_unknown_field_are_refused_like_any_other(live: Stack) -> None:
    problem(send(live, rb'{"agent": "emit", "input": {"count": 1}, "\ud800\u0000": 1}'), 422, "invalid_request")
    problem(send(live, rb'{"agent": "emit", "input": {"count": 1, "\ud800": 1}}'), 422, "invalid_input")
    problem(send(live, rb'{"agent": "\ud800", "input": {}}'), 422, "unknown_agent")


# Queries.


@pytest.mark.parametrize(
    "query",
    [
        "status=finished",
        "status=",
        "agent=",
        "agent=%00",
        "agent=" + "a" * 101,
        "session=%00",
        "session=a%20b",
        "since=yesterday",
        "since=2026-06-12T12:00:00",
        "since=5",
        "since=%00",
        "cursor=",
        "cursor=%00",
        "cursor=" + "a" * 101,
        "cursor=%27;drop",
        "cursor=run_zzz",
        "cursor=%ff%fe",
        "since=2026-01-01T00:00:00%2B24:00",
        "since=0001-01-01T00:00:00%2B10:00",
        "unknown=1",
        "limt=2",
        "limit=2&Limit=3",
        "limit=0",
        "limit=-1",
        "limit=201",
        "limit=ten",
        "limit=1.5",
        "limit=99999999999999999999",
        "limit=",
    ],
)
def test_a_list_query_that_does_not_fit_is_refused(live: Stack, query: str) -> None:
    problem(live.http.get(f"/runs?{query}"), 422, "invalid_request")


@pytest.mark.parametrize(
    "query",
    [
        "cursor=run_00000000000000000000000000",
        "agent=%f0%9f%98%80",
        "since=0001-01-01T00:00:00Z",
        "since=2026-01-01T00:00:00%2B17:02",
        "since=2026-01-01T00:00:00-23:59",
    ],
)
def test_a_list_query_that_merely_finds_nothing_or_all_is_answered(live: Stack, query: str) -> None:
    assert live.http.get(f"/runs?{query}").status_code == 200


@pytest.mark.parametrize(
    "query",
    ["named=2", "named=", "limit=0", "limit=1001", "limit=x"],
)
def test_an_events_query_that_does_not_fit_is_refused(live: Stack, query: str) -> None:
    run_id = live.start("emit", TICKS)
    problem(live.http.get(f"/runs/{run_id}/events?{query}"), 422, "invalid_request")


# Runs that are not there, or not the caller's, on every route.


@pytest.fixture(scope="module")
def routes(app: Flask) -> list[tuple[str, str]]:
    """Every method and path of the app that names a run, but for those of external writers, who have no key."""
    found = [
        (method, re.sub(r"<(?:\w+:)?run_id>", "{}", rule.rule).replace("<approval_id>", "apr_1"))
        for rule in app.url_map.iter_rules()
        if "run_id" in rule.arguments and not rule.endpoint.startswith("external.")
        for method in sorted((rule.methods or set()) - {"OPTIONS", "HEAD"})
    ]
    assert {("GET", "/runs/{}"), ("DELETE", "/runs/{}"), ("GET", "/runs/{}/events")} <= set(found)
    assert all(path.count("{") == 1 and "<" not in path for _, path in found), "extend this fixture"
    return found


@pytest.fixture(scope="module")
def foreign(services: Services) -> str:
    """A pending run of another user of the same tenant."""
    run_id = new_id("run")
    created = encode(run_id, 1, "run.created", {"agent": "emit", "input_preview": {}})
    new = NewRun(
        id=run_id,
        principal=Principal("dev", "somebody-else"),
        session_id="theirs",
        agent="emit",
        input={},
        metadata={},
        on_disconnect="continue",
        timeout_s=None,
        idempotency_key=None,
        request_hash="",
        state=reduce(initial(run_id), created.envelope()),
    )
    services.store.create(new, created)
    return run_id


def fitting(path: str) -> Any:
    """A body that the route takes; None: it takes none."""
    return {"input": {"text": "hello"}, "apr_1": {"decision": "approved"}}.get(path.rpartition("/")[2])


def test_another_users_run_is_unknown_on_every_route(
    live: Stack, routes: list[tuple[str, str]], foreign: str, services: Services
) -> None:
    before = services.store.get(foreign)
    for method, path in routes:
        for headers in ({}, {"Accept": "application/json"}, {"Last-Event-ID": "1"}):
            theirs = live.http.request(method, path.format(foreign), headers=headers, json=fitting(path))
            problem(theirs, 404, "run_not_found")
            unknown = live.http.request(method, path.format(UNKNOWN), headers=headers, json=fitting(path))
            assert theirs.text.replace(foreign, UNKNOWN) == unknown.text
            assert {*theirs.headers} == {*unknown.headers}
    assert services.store.get(foreign) == before
    assert foreign not in live.http.get("/runs", params={"limit": 200}).text


@pytest.mark.parametrize(
    "junk",
    [
        "%00",
        "a%00b",
        "%ff%fe",
        "%F0%9F%98%80",
        "%E2%80%A8",
        "..",
        "%2e%2e",
        "%25",
        "'%20OR%201=1",
        "a" * 3_000,
        "%0d%0aX:%20y",
    ],
)
def test_junk_in_the_place_of_a_run_id_is_an_unknown_run_on_every_route(
    live: Stack, routes: list[tuple[str, str]], junk: str
) -> None:
    for method, path in routes:
        with socket.create_connection(("127.0.0.1", live.port), timeout=5) as sock:  # httpx would tidy the path up
            request = f"{method} {path.format(junk)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            body = json.dumps(fitting(path))
            request += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
            sock.sendall(request.encode())
            head, _, body = b"".join(iter(lambda sock=sock: sock.recv(65_536), b"")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 404 "), head
        assert json.loads(body)["code"] == "run_not_found"
        assert len(body) < 1_000


def test_an_encoded_slash_does_not_lead_elsewhere(live: Stack) -> None:
    run_id = live.start("emit", TICKS)
    problem(live.http.get(f"/runs/x%2f..%2f{run_id}"), 404, "not_found")


# Parameters, and what is asked for, on every route.


def test_unknown_query_parameters_are_refused_on_every_route(live: Stack, app: Flask) -> None:
    run_id = live.start("emit", TICKS)
    document = live.http.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        if path in PROBED:
            continue
        asked = path.replace("{run_id}", run_id).replace("{approval_id}", "apr_1") + "?surprise=1"
        for method in {"get", "post", "delete"} & set(methods):
            answer = live.http.request(method, asked, json={} if method == "post" else None)
            if path.endswith(("/heartbeat", "/finish")) or (method == "post" and path.endswith("/events")):
                assert answer.status_code in (401, 422), path
            assert "surprise" in problem(answer, 422, "invalid_request")["detail"]
    assert live.http.get(f"/runs/{run_id}", params={"watch_token": "x"}).status_code == 422
    assert live.http.get("/?run=1").status_code == 200


def test_what_is_wrong_is_said_in_words(live: Stack) -> None:
    for body in ({"agent": 1, "timeout_s": 0}, {"agent": "emit", "metadata": {"a": 1}, "x": {"y": 1}}, [1]):
        detail = problem(start(live, body), 422, "invalid_request")["detail"]
        assert not set(detail) & set('{}[]"'), detail
    detail = start(live, {"agent": 1, "timeout_s": 0}).json()["detail"]
    assert "agent: " in detail
    assert "timeout_s: " in detail
    assert "limit: " in live.http.get("/runs?limit=0").json()["detail"]


@pytest.mark.parametrize("path", ["/runs//events", "/runs//", "/runs/a//events", "/runs/", "/healthz/"])
def test_a_path_that_is_none_is_answered_with_no_page(live: Stack, path: str) -> None:
    problem(live.http.get(f"{live.url}{path}", follow_redirects=False), 404, "not_found")


JSON = "application/json"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/json; charset=utf-8", JSON),
        ("APPLICATION/JSON;version=2", JSON),
        ("text/html, application/json;charset=utf-8;q=0.5", JSON),
        ("application/*", "application/x-ndjson"),
        ("application/x-ndjson; charset=utf-8, application/json;q=0.9", "application/x-ndjson"),
        ("text/event-stream;charset=utf-8", "text/event-stream"),
        ("text/html;q=0.9, */*;q=0.1", "text/event-stream"),
        ("application/json, */*", JSON),
        ("text/event-stream;q=0, */*", "application/x-ndjson"),
    ],
)
def test_parameters_of_what_is_accepted_are_ignored(live: Stack, accept: str, media_type: str) -> None:
    run_id = live.start("emit", TICKS)
    live.ended(run_id)
    answer = live.http.get(f"/runs/{run_id}/events", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith(media_type)


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/*", "application/jsonx;charset=utf-8"])
def test_what_cannot_be_produced_is_not(live: Stack, accept: str) -> None:
    problem(
        live.http.post("/runs", json={"agent": "emit", "input": TICKS}, headers={"Accept": accept}),
        406,
        "not_acceptable",
    )


def test_the_documentation_has_a_policy_a_way_to_authorise_and_agents_to_try(live: Stack) -> None:
    page = live.http.get("/docs/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    document = live.http.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    body = document["paths"]["/runs"]["post"]["requestBody"]["content"][JSON]
    known = {agent["name"] for agent in live.http.get("/agents").json()}
    assert set(body["examples"]) - {"external"} <= known
    assert live.http.post("/runs", json=body["examples"]["emit"]["value"]).status_code == 202
