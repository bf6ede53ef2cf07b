"""The OpenAPI document admits what the server takes, and nothing that it refuses. tests/contract tries it at random."""

from collections.abc import Mapping
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.harness import Stack, problem

BIG = 2**53
STARTED = {"agent": "emit", "input": {"count": 1}}


def admits(live: Stack, schema: Mapping[str, Any], value: Any) -> bool:
    """Whether the document's schema does."""
    components = live.http.get("/openapi.json").json()["components"]
    return Draft202012Validator({**schema, "components": components}).is_valid(value)


def parameter(live: Stack, path: str, name: str) -> dict[str, Any]:
    """The schema of a parameter of GET, as the document has it."""
    parameters = live.http.get("/openapi.json").json()["paths"][path]["get"]["parameters"]
    (schema,) = [found["schema"] for found in parameters if found["name"] == name]
    return dict(schema)


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"metadata": {"n": BIG - 1}}, 202),
        ({"metadata": {"n": BIG}}, 400),
        ({"metadata": {"deep": [{"n": -BIG}]}}, 400),
        ({"metadata": {"n": 0.5, "more": [None, True, "x", {}]}}, 202),
        ({"timeout_s": 5.0}, 202),
        ({"timeout_s": 5.5}, 422),
        ({"timeout_s": "5"}, 422),
        ({"timeout_s": True}, 422),
        ({"agent": "external", "timeout_s": 5}, 422),
        ({"agent": "external", "timeout_s": None}, 202),
    ],
)
def test_a_start_is_admitted_where_it_is_taken(live: Stack, more: dict[str, Any], status: int) -> None:
    body = {**STARTED, **more}
    assert live.http.post("/runs", json=body).status_code == status
    assert admits(live, {"$ref": "#/components/schemas/StartRun"}, body) is (status == 202)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"client_run_id": "document-1"}, 202),
        ({"idempotency_key": "document-2"}, 202),
        ({}, 422),
        ({"client_run_id": "document-1", "idempotency_key": "document-2"}, 422),
    ],
)
def test_a_cancel_by_name_has_one_name(live: Stack, body: dict[str, str], status: int) -> None:
    assert live.http.post("/runs/cancel", json=body).status_code == status
    assert admits(live, {"$ref": "#/components/schemas/CancelNamed"}, body) is (status == 202)


@pytest.mark.parametrize(
    ("path", "name", "value", "taken"),
    [
        ("/runs", "agent", "emit", True),
        ("/runs", "agent", "e\0", False),
        ("/approvals", "run", "r\0", False),
        ("/approvals", "cursor", "1:a:b", True),
        ("/approvals", "cursor", "1:a:\0", False),
        ("/approvals", "cursor", "null", False),
        ("/runs", "cursor", "null", False),
        ("/events", "runs", "", False),
        ("/events", "runs", "a,,b", False),
        ("/events", "runs", ",".join("r" * n for n in range(1, 22)), False),
    ],
)
def test_a_parameter_is_admitted_where_it_is_taken(live: Stack, path: str, name: str, value: str, taken: bool) -> None:
    assert (live.http.get(path, params={name: value}).status_code == 200) is taken
    assert admits(live, parameter(live, path, name), value) is taken


@pytest.mark.parametrize("cursor", ["0", "2", "latest", "", "-1", "1.5", "x", "1\n", "9" * 16])
@pytest.mark.parametrize("name", ["since_seq", "last_event_id", "lastEventId"])
def test_a_cursor_is_admitted_where_it_is_taken(live: Stack, name: str, cursor: str) -> None:
    run_id = live.start("emit", {"count": 1})
    page = live.http.get(f"/runs/{run_id}/events", params={name: cursor}, headers={"Accept": "application/json"})
    assert admits(live, parameter(live, "/runs/{run_id}/events", name), cursor) is (page.status_code == 200)


def test_no_parameter_is_null(live: Stack) -> None:
    for path in live.http.get("/openapi.json").json()["paths"].values():
        for operation in (found for found in path.values() if isinstance(found, dict)):
            for found in operation.get("parameters", ()):
                assert "null" not in found["schema"]["type"], found
                assert found["schema"].get("default", 0) is not None, found


def test_the_share_of_a_feed_is_more_than_nothing(live: Stack) -> None:
    schema = parameter(live, "/admin/feed", "sample")
    problem(live.http.get("/admin/feed", params={"sample": 0}), 422, "invalid_request")
    assert not admits(live, schema, 0)
    assert admits(live, schema, 0.5)


def test_the_cancel_by_name_is_no_run(live: Stack) -> None:
    allowed = live.http.options("/runs/cancel").headers["Allow"]
    assert sorted(allowed.split(", ")) == ["OPTIONS", "POST"]
    for method in ("GET", "DELETE"):
        problem(live.http.request(method, "/runs/cancel"), 405, "method_not_allowed")
    problem(live.http.get("/runs/cancelled"), 404, "run_not_found")


def test_a_named_run_that_has_not_ended_is_answered_as_the_document_says(live: Stack) -> None:
    live.http.post("/runs", json={"agent": "external", "client_run_id": "document-3"}).raise_for_status()
    answer = live.http.post("/runs/cancel", json={"client_run_id": "document-3"})
    assert answer.status_code == 202
    operation = live.http.get("/openapi.json").json()["paths"]["/runs/cancel"]["post"]
    schema = operation["responses"]["202"]["content"]["application/json"]["schema"]
    assert admits(live, schema, answer.json())
    assert admits(live, schema, {"status": "noted"})
    assert not admits(live, schema, {"status": "pending", "what": 1})


def test_a_missing_batch_is_answered_as_the_document_says(live: Stack) -> None:
    run = live.http.post("/runs", json={"agent": "external"}).json()
    headers = {"Authorization": f"Bearer {run['writer_token']}", "Producer-Epoch": "1", "Producer-Seq": "5"}
    path = "/runs/{run_id}/finish"
    answer = live.http.post(path.format(**run), json={"status": "cancelled"}, headers=headers)
    assert answer.json()["expected"] == 1
    conflict = live.http.get("/openapi.json").json()["paths"][path]["post"]["responses"]["409"]
    assert admits(live, conflict["content"]["application/problem+json"]["schema"], answer.json())
    assert not admits(live, {"$ref": "#/components/schemas/End"}, {"status": "failed", "error": {"code": "No!"}})
    assert admits(live, {"$ref": "#/components/schemas/End"}, {"status": "failed", "error": {"code": "no"}})


@pytest.mark.parametrize(("told", "status"), [("9" * 9, 200), ("9" * 10, 422)])
def test_as_many_inputs_are_skipped_as_the_document_says(live: Stack, told: str, status: int) -> None:
    run = live.http.post("/runs", json={"agent": "external"}).json()
    headers = {"Authorization": f"Bearer {run['writer_token']}", "Producer-Epoch": "1"}
    path = f"/runs/{run['run_id']}/heartbeat"
    assert live.http.post(path, params={"inputs_after": told}, headers=headers).status_code == status
    operation = live.http.get("/openapi.json").json()["paths"]["/runs/{run_id}/heartbeat"]["post"]
    (schema,) = [found["schema"] for found in operation["parameters"] if found["name"] == "inputs_after"]
    assert admits(live, schema, int(told)) is (status == 200)


def test_nothing_has_no_media_type(live: Stack) -> None:
    run_id = live.start("emit", {"count": 1})
    end = len(list(live.follow(run_id)))
    for path, query in (
        (f"/runs/{run_id}/events", {"since_seq": end}),
        ("/events", {"runs": run_id, "since": f"{run_id}:{end}"}),
    ):
        answer = live.http.get(path, params=query)
        assert answer.status_code == 204
        assert "Content-Type" not in answer.headers
        operation = live.http.get("/openapi.json").json()["paths"][path.replace(run_id, "{run_id}")]["get"]
        assert "content" not in operation["responses"]["204"]
