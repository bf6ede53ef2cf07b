"""Runs as resources: start, read, list, and what is served beside them, over HTTP against real processes."""

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx
import pytest
from flask import Flask
from jsonschema import Draft202012Validator

from app.dev.services import EmbeddedServices
from app.storage.run_store import migrate
from app.wiring import Services
from tests.conftest import StackMaker, execute
from tests.harness import Process, Stack, eventually, free_port, problem
from tests.raw_client import RawClient

RUN_FIELDS = {
    *("run_id", "status", "agent", "input", "output", "error", "usage", "attempt", "session_id", "client_run_id"),
    *("state_seq", "digest", "created_at", "started_at", "finished_at", "metadata", "cancel_requested"),
}
TICKS = {"count": 3, "type": "custom.tick"}
ENDLESS = {"count": 100_000, "interval_ms": 1_000, "type": "custom.tick"}
SSE, NDJSON, JSON = "text/event-stream", "application/x-ndjson", "application/json"


def post(stack: Stack, body: Any = None, **headers: str) -> httpx.Response:
    return stack.http.post("/runs", json=body or {"agent": "emit", "input": TICKS}, headers=headers)


# The wire.


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("path", "version"), [("/healthz", "1.1"), ("/healthz", "1.0"), ("/runs/none", "1.1")])
def test_an_answer_comes_in_one_piece(live: Stack, method: str, path: str, version: str) -> None:
    for _ in range(20):
        with RawClient(live.port) as client:
            client.ask(path, method=method, version=version).read()
            length = int(re.findall(rb"content-length: (\d+)", client.head.lower())[0])
            assert len(client.body) == (0 if method == "HEAD" else length)


def test_many_answers_on_one_connection_are_each_complete(live: Stack) -> None:
    ended = live.ended(post(live).json()["run_id"])["run_id"]
    wanted = [
        *(("GET", path) for path in ("/healthz", f"/runs/{ended}", "/runs/none", "/docs/", "/openapi.json")),
        *(("HEAD", path) for path in ("/healthz", f"/runs/{ended}/events")),
        *(("GET", f"/runs/{ended}/events?since_seq={cursor}") for cursor in (0, 1)),
        ("GET", f"/events?runs={ended}"),
    ]
    alone = [live.http.request(method, path).content for method, path in wanted]
    with httpx.Client(base_url=live.url) as client:
        for _ in range(3):
            assert [client.request(method, path).content for method, path in wanted] == alone


# Starting a run.


def test_starting_a_run_answers_202_and_says_where_it_is(live: Stack) -> None:
    answer = post(live)
    assert answer.status_code == 202
    body = answer.json()
    assert set(body) == {"run_id", "status", "session_id", "urls"}
    assert body["status"] == "pending"
    assert answer.headers["X-Run-Id"] == body["run_id"]
    assert answer.headers["X-Session-Id"] == body["session_id"]
    assert answer.headers["Location"] == body["urls"]["self"] == f"/runs/{body['run_id']}"
    assert live.http.get(answer.headers["Location"]).json()["run_id"] == body["run_id"]
    assert live.http.get(body["urls"]["events"]).status_code == 200
    assert live.http.post(body["urls"]["cancel"]).status_code == 200


def test_a_run_without_a_session_gets_a_fresh_one(live: Stack) -> None:
    sessions = {post(live).headers["X-Session-Id"] for _ in range(3)}
    assert len(sessions) == 3
    assert all(re.fullmatch(r"ses_[0-9A-Z]{26}", session) for session in sessions)


def test_a_given_session_is_echoed_and_stored(live: Stack) -> None:
    answer = post(live, {"agent": "emit", "input": TICKS, "session_id": "chat:7.a-b_c"})
    assert answer.headers["X-Session-Id"] == "chat:7.a-b_c"
    assert live.read(answer.json()["run_id"])["session_id"] == "chat:7.a-b_c"


def test_by_default_the_answer_to_a_start_is_json(live: Stack) -> None:
    for accept in ("*/*", "application/json", "text/event-stream;q=0.5, application/json", "application/*"):
        answer = post(live, Accept=accept)
        assert (answer.status_code, answer.headers["Content-Type"]) == (202, JSON)
        assert answer.headers["Vary"] == "Accept"
    request = live.http.build_request("POST", "/runs", json={"agent": "emit", "input": TICKS})
    del request.headers["Accept"]
    assert live.http.send(request).json()["status"] == "pending"


@pytest.mark.parametrize("accept", [SSE, NDJSON, "application/json;q=0.5, application/x-ndjson"])
def test_a_start_that_accepts_a_stream_is_answered_by_the_window_itself(live: Stack, accept: str) -> None:
    with live.http.stream(
        "POST", "/runs", json={"agent": "emit", "input": TICKS}, headers={"Accept": accept}
    ) as window:
        assert window.status_code == 200
        assert window.headers["Content-Type"] == f"{accept.split()[-1]}; charset=utf-8"
        assert window.headers["Vary"] == "Accept"
        run_id = window.headers["X-Run-Id"]
        assert window.headers["Location"] == f"/runs/{run_id}"
        assert window.headers["X-Session-Id"]
        received = window.read()
    assert received == live.http.get(f"/runs/{run_id}/events", headers={"Accept": accept}).content
    assert received.count(b'"type":"custom.tick","ts"') == 3
    assert received.count(b'"type":"run.completed"') == 1


def test_a_start_for_which_nothing_acceptable_exists_starts_nothing(live: Stack) -> None:
    body = {"agent": "emit", "input": TICKS, "session_id": "not-acceptable"}
    problem(post(live, body, Accept="text/html"), 406, "not_acceptable")
    assert live.http.get("/runs", params={"session": "not-acceptable"}).json()["runs"] == []


def test_a_start_may_wait_for_the_end_of_the_run(live: Stack) -> None:
    answer = post(live, Prefer="wait=10")
    assert answer.status_code == 200
    assert answer.headers["Preference-Applied"] == "wait=10"
    assert answer.headers["X-Run-Id"] == answer.json()["run_id"]
    assert answer.json() == live.read(answer.json()["run_id"])
    assert answer.json()["status"] == "completed"


def test_a_start_that_waited_in_vain_is_answered_202(live: Stack) -> None:
    started = time.monotonic()
    answer = post(live, {"agent": "emit", "input": ENDLESS}, Prefer="wait=1")
    assert 0.9 < time.monotonic() - started < 3
    assert answer.status_code == 202
    assert set(answer.json()) == {"run_id", "status", "session_id", "urls"}
    live.http.post(answer.json()["urls"]["cancel"])


@pytest.mark.parametrize("prefer", ["wait=soon", "wait=-1", "respond-async", "wait=0"])
def test_a_preference_that_means_nothing_here_is_ignored(live: Stack, prefer: str) -> None:
    answer = post(live, Prefer=prefer)
    assert answer.status_code == 202


# Idempotency keys.


def test_the_same_key_and_body_give_the_same_run(live: Stack) -> None:
    body = {"agent": "emit", "input": {"type": "custom.tick", "count": 3}, "metadata": {"a": 1, "b": [2]}}
    first = post(live, body, **{"Idempotency-Key": "same-1"})
    live.ended(first.json()["run_id"])
    reordered = {"metadata": {"b": [2], "a": 1}, "input": {"count": 3, "type": "custom.tick"}, "agent": "emit"}
    second = post(live, reordered, **{"Idempotency-Key": "same-1"})
    assert second.status_code == 202
    assert second.json()["run_id"] == first.json()["run_id"]
    assert second.headers["X-Session-Id"] == first.headers["X-Session-Id"]
    assert second.json()["status"] == "completed"


@pytest.mark.parametrize(
    "change", [{"input": {"count": 4}}, {"metadata": {"x": 1}}, {"session_id": "other"}, {"timeout_s": 9}]
)
def test_the_same_key_with_another_body_is_a_conflict(live: Stack, change: dict[str, Any]) -> None:
    key = f"conflict-{next(iter(change))}"
    body = {"agent": "emit", "input": TICKS}
    first = post(live, body, **{"Idempotency-Key": key})
    assert first.status_code == 202
    second = post(live, {**body, **change}, **{"Idempotency-Key": key})
    document = problem(second, 409, "idempotency_conflict")
    assert first.json()["run_id"] in document["detail"]


def test_concurrent_starts_with_one_key_make_one_run(live: Stack) -> None:
    body = {"agent": "emit", "input": TICKS, "session_id": "concurrent"}
    barrier = threading.Barrier(12)

    def start(_: int) -> httpx.Response:
        barrier.wait()
        return httpx.post(f"{live.url}/runs", json=body, headers={"Idempotency-Key": "concurrent-1"})

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(start, range(12)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["run_id"] for answer in answers}) == 1
    assert len(live.http.get("/runs", params={"session": "concurrent"}).json()["runs"]) == 1


# Reading a run.


def test_a_run_has_exactly_the_documented_fields(live: Stack) -> None:
    before = time.time()
    run = live.ended(live.start("emit", TICKS, metadata={"ticket": 7}))
    assert set(run) == {*RUN_FIELDS, "state"}
    assert (run["agent"], run["attempt"], run["status"]) == ("emit", 1, "completed")
    assert (run["input"], run["metadata"], run["output"]) == (TICKS, {"ticket": 7}, {"count": 3})
    assert (run["error"], run["cancel_requested"]) == (None, False)
    assert run["digest"] == run["state"]["digest"]
    assert run["state_seq"] == run["state"]["last_seq"] == live.events(run["run_id"])[-1]["seq"]
    assert before - 1 < seconds(run["created_at"]) <= seconds(run["started_at"])
    assert seconds(run["started_at"]) <= seconds(run["finished_at"])


def seconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    assert moment.utcoffset() is not None
    return moment.timestamp()


def test_the_state_of_a_running_run_follows_its_events(live: Stack) -> None:
    run_id = live.start("emit", {"count": 1_000, "interval_ms": 5, "text": "x"})
    first = eventually(lambda: live.read(run_id)["state"]["answer"]["text"])
    eventually(lambda: len(live.read(run_id)["state"]["answer"]["text"]) > len(first))
    run = live.read(run_id)
    assert (run["status"], run["finished_at"], run["output"]) == ("running", None, None)
    assert run["state"]["answer"] == {"text": run["state"]["messages"][0]["text"], "status": "draft"}
    assert run["state_seq"] == run["state"]["last_seq"]
    live.http.post(f"/runs/{run_id}/cancel")


def test_a_run_that_has_not_changed_is_answered_304(live: Stack) -> None:
    run = live.ended(live.start("emit", TICKS))
    path = f"/runs/{run['run_id']}"
    etag = live.http.get(path).headers["ETag"]
    assert re.fullmatch(r'"[^"]+"', etag), "a strong validator"
    for condition in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        answer = live.http.get(path, headers={"If-None-Match": condition})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["ETag"] == etag
    assert live.http.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_run_that_has_changed_has_another_etag(live: Stack) -> None:
    run_id = live.start("emit", ENDLESS)
    eventually(lambda: live.read(run_id)["status"] == "running")
    etag = live.http.get(f"/runs/{run_id}").headers["ETag"]
    assert live.http.post(f"/runs/{run_id}/cancel").json()["status"] == "cancelled"
    answer = live.http.get(f"/runs/{run_id}", headers={"If-None-Match": etag})
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


def test_delete_cancels_as_the_cancel_call_does(live: Stack) -> None:
    run_id = live.start("emit", ENDLESS)
    eventually(lambda: live.read(run_id)["status"] == "running")
    first = live.http.delete(f"/runs/{run_id}")
    assert (first.status_code, first.json()["status"]) == (200, "cancelled")
    assert set(first.json()) == RUN_FIELDS
    assert live.http.post(f"/runs/{run_id}/cancel").json() == first.json()


def test_an_ended_run_can_be_erased_and_is_gone(live: Stack, services: Services) -> None:
    run_id = live.ended(live.start("emit", TICKS))["run_id"]
    answer = live.http.post(f"/runs/{run_id}/erase")
    assert (answer.status_code, answer.content) == (204, b"")
    problem(live.http.get(f"/runs/{run_id}"), 404, "run_not_found")
    problem(live.http.get(f"/runs/{run_id}/events"), 404, "run_not_found")
    problem(live.http.post(f"/runs/{run_id}/erase"), 404, "run_not_found")
    assert services.store.events(run_id, 0, 10) == services.log.read(run_id, 0, 10) == []


def test_a_run_that_has_not_ended_cannot_be_erased(live: Stack) -> None:
    run_id = live.start("emit", ENDLESS)
    problem(live.http.post(f"/runs/{run_id}/erase"), 409, "run_not_terminal")
    assert live.http.post(f"/runs/{run_id}/cancel").status_code == 200


# Listing runs.


def listed(stack: Stack, **query: Any) -> list[str]:
    answer = stack.http.get("/runs", params=query)
    assert answer.status_code == 200, answer.text
    return [run["run_id"] for run in answer.json()["runs"]]


def test_the_list_is_newest_first_and_without_states(live: Stack) -> None:
    made = [live.start("emit", TICKS, session_id="order") for _ in range(4)]
    answer = live.http.get("/runs", params={"session": "order"}).json()
    assert set(answer) == {"runs", "next_cursor"}
    assert [run["run_id"] for run in answer["runs"]] == made[::-1]
    assert all(set(run) == RUN_FIELDS for run in answer["runs"])
    assert answer["next_cursor"] is None


def test_pages_by_cursor_show_every_run_once_whatever_is_started_meanwhile(live: Stack) -> None:
    made = [live.start("emit", TICKS, session_id="pages") for _ in range(5)]
    found: list[str] = []
    query: dict[str, Any] = {"session": "pages", "limit": 2}
    while True:
        page = live.http.get("/runs", params=query).json()
        found += [run["run_id"] for run in page["runs"]]
        live.start("emit", TICKS, session_id="pages")
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert found == made[::-1]


def test_the_list_filters_by_status_agent_session_and_time(live: Stack) -> None:
    completed = live.ended(live.start("emit", TICKS, session_id="filters"))
    cancelled = live.start("emit", ENDLESS, session_id="filters")
    live.http.post(f"/runs/{cancelled}/cancel")
    here = {"session": "filters"}
    assert listed(live, **here) == [cancelled, completed["run_id"]]
    assert listed(live, **here, status="completed") == [completed["run_id"]]
    assert listed(live, **here, status="cancelled") == listed(live, **here, status="canceled") == [cancelled]
    assert listed(live, **here, status="failed") == []
    assert listed(live, **here, agent="emit") == [cancelled, completed["run_id"]]
    assert listed(live, **here, agent="nobody") == []
    assert listed(live, session="nobody") == []
    assert listed(live, **here, since=completed["created_at"]) == [cancelled, completed["run_id"]]
    assert listed(live, **here, since=completed["finished_at"]) == [cancelled]
    assert listed(live, **here, since="2100-01-01T00:00:00Z") == []


# What is served beside runs.


def test_agents_are_listed_with_the_schema_of_their_input(live: Stack) -> None:
    agents = {agent["name"]: agent for agent in live.http.get("/agents").json()}
    emit = agents["emit"]
    assert set(emit) == {"name", "version", "isolation", "input_schema", "error"}
    Draft202012Validator.check_schema(emit["input_schema"])
    assert Draft202012Validator(emit["input_schema"]).is_valid(TICKS)
    assert not Draft202012Validator(emit["input_schema"]).is_valid({"count": "three"})


def test_every_event_of_a_real_run_fits_the_published_schema(live: Stack) -> None:
    answer = live.http.get("/schema/events.json")
    assert answer.headers["Content-Type"] == "application/schema+json"
    schema = answer.json()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    for input in (TICKS, {"count": 3, "text": "hello"}, ENDLESS):
        run_id = live.start("emit", input)
        if input is ENDLESS:
            eventually(lambda run_id=run_id: live.read(run_id)["status"] == "running")
            live.http.post(f"/runs/{run_id}/cancel")
        live.ended(run_id)
        for event in live.events(run_id):
            validator.validate(event)
    snapshot = json.loads(next(live.follow(run_id, "latest")))
    validator.validate(snapshot)
    assert not validator.is_valid({**snapshot, "type": "run.started"})


def test_the_openapi_document_lists_every_route_and_only_valid_schemas(live: Stack, app: Flask) -> None:
    answer = live.http.get("/openapi.json")
    document = answer.json()
    assert document["openapi"].startswith("3.1")
    undocumented = ("console.", "swagger_ui.", "api-docs.")
    for rule in app.url_map.iter_rules():
        if not rule.endpoint.startswith(undocumented):
            operations = document["paths"][re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule)]
            assert (rule.methods or set()) - {"HEAD", "OPTIONS"} <= {method.upper() for method in operations}
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for reference in re.findall(r'"\$ref": ?"#/([^"]+)"', answer.text):
        target = document
        for part in reference.split("/"):
            target = target[part]


def test_the_openapi_document_describes_errors_as_they_are(live: Stack) -> None:
    document = live.http.get("/openapi.json").json()
    content = document["components"]["responses"]["DEFAULT_ERROR"]["content"]
    name = content["application/problem+json"]["schema"]["$ref"].rpartition("/")[2]
    error = live.http.get("/runs/nothing").json()
    assert set(document["components"]["schemas"][name]["properties"]) == set(error)
    Draft202012Validator(document["components"]["schemas"][name]).validate(error)


def test_the_documentation_page_needs_nothing_from_elsewhere(live: Stack) -> None:
    page = live.http.get("/docs", follow_redirects=True)
    assert page.status_code == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) > 3
    for path in loaded:
        assert path.startswith("/docs/")
        assert live.http.get(path).status_code == 200


def test_a_healthy_server_says_so(live: Stack) -> None:
    assert live.http.get("/healthz").json() == {"status": "ok"}
    ready = live.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert ready.json()["checks"] == {"postgres": True, "redis": True}


def test_unknown_routes_and_methods_are_problems_too(live: Stack) -> None:
    for path in ("/nothing", "/runs/", "/runs/x/y/z", "/docs/nothing"):
        problem(live.http.get(path), 404, "not_found")
    for method, path, allowed in (
        ("PUT", "/runs", {"GET", "POST"}),
        ("PUT", "/runs/x/events", {"GET", "POST"}),
        ("GET", "/runs/x/cancel", {"POST"}),
        ("PATCH", "/runs/x", {"GET", "DELETE"}),
        ("POST", "/healthz", {"GET"}),
    ):
        answer = live.http.request(method, path)
        problem(answer, 405, "method_not_allowed")
        assert allowed <= set(answer.headers["Allow"].split(", "))


# When a storage service is away.


@pytest.fixture(scope="module")
def redisless(module_stack: StackMaker) -> tuple[Stack, Process]:
    """A web process whose Redis is nowhere."""
    stack = module_stack(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    return stack, stack.start_web(until="/healthz")


def test_without_redis_the_server_is_degraded_but_alive(redisless: tuple[Stack, Process]) -> None:
    server, _ = redisless
    assert server.http.get("/healthz").status_code == 200
    ready = server.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "degraded")
    assert ready.json()["checks"] == {"postgres": True, "redis": False}
    assert server.http.get("/runs").json()["runs"] == []


def test_an_unforeseen_error_shows_no_details_outside(redisless: tuple[Stack, Process]) -> None:
    server, web = redisless
    execute(server.env["DATABASE_URL"], "ALTER TABLE runs RENAME tenant_id TO gone")
    try:
        document = problem(server.http.get("/runs"), 500, "store_failed")
    finally:
        execute(server.env["DATABASE_URL"], "ALTER TABLE runs RENAME gone TO tenant_id")
    assert "gone" not in str(document)
    assert 'column "tenant_id" does not exist' in web.log.read_text()


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedServices, Stack]]:
    """A stack on a PostgreSQL and a Redis of its own, which tests may kill and must start again."""
    with EmbeddedServices(tmp_path_factory.mktemp("fragile")) as servers:
        migrate(servers.database_url)
        urls = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
        with Stack(urls, tmp_path_factory.mktemp("fragile-logs")) as server:
            server.start_web()
            server.start_worker()
            yield servers, server


def test_a_run_started_while_redis_is_away_completes_once_it_is_back(
    fragile: tuple[EmbeddedServices, Stack],
) -> None:
    servers, server = fragile
    servers.kill("redis")
    answer = post(server)
    assert answer.status_code == 202
    run_id = answer.json()["run_id"]
    assert server.read(run_id)["status"] == "pending"
    assert [event["type"] for event in server.events(run_id)] == ["run.created"]
    assert server.http.get("/readyz").status_code == 503
    servers.start("redis")
    assert server.ended(run_id, 20)["status"] == "completed"
    assert server.http.get("/readyz").status_code == 200


def test_while_postgres_is_away_nothing_is_started_and_the_client_is_told_when_to_come_back(
    fragile: tuple[EmbeddedServices, Stack],
) -> None:
    servers, server = fragile
    run_id = server.ended(server.start("emit", TICKS))["run_id"]
    servers.kill("postgres")
    try:
        for answer in (post(server), server.http.get("/runs"), server.http.get(f"/runs/{run_id}/events")):
            problem(answer, 503, "store_unavailable")
            assert int(answer.headers["Retry-After"]) >= 1
        assert server.http.get("/readyz").json()["checks"] == {"postgres": False, "redis": True}
        assert server.http.get("/healthz").status_code == 200
    finally:
        servers.start("postgres")
    eventually(lambda: post(server).status_code == 202, 10, "a start")
    assert server.read(run_id)["status"] == "completed"
