"""External runs: the contract of docs/protocol.md, line by line."""

import subprocess
import sys
from typing import Any

import pytest

from app.protocol.events import TERMINAL
from app.storage.run_store import Principal
from tests.conftest import StackMaker
from tests.external_writer import ExternalWriter, Line, ndjson, words
from tests.harness import Stack, eventually, problem
from tests.raw_client import RawClient
from tests.stored import ended, events, payloads, row

CHECKED: Line = ("quality.checked", {"name": "tone", "passed": True})


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """Two web processes and a worker, which has nothing to do with these runs."""
    stack = module_stack(WEB_CONCURRENCY="2")
    stack.start_web()
    stack.start_worker()
    return stack


@pytest.fixture
def writer(web: Stack) -> ExternalWriter:
    """Of a run that has just begun."""
    return ExternalWriter.start(web.http)


def types(stack: Stack, run_id: str) -> list[str]:
    """Of the archived events."""
    return [event.type for event in events(stack, run_id)]


def asks(id: str, **more: Any) -> Line:
    """An event that asks for an approval."""
    return "approval.required", {"approval_id": id, "label": "Refund 10", "requires": "owner", **more}


def user(stack: Stack, key: Principal, **headers: str) -> dict[str, str]:
    """Headers of a user of a tenant, by a key that is made for them."""
    return {"Authorization": f"Bearer {stack.services.registry.create_key(key)}", **headers}


# Start.


def test_the_start_answers_with_tokens_that_are_shown_once(web: Stack) -> None:
    answer = web.http.post("/runs", json={"agent": "external", "input": {"any": ["thing", 1]}})
    body = answer.json()
    assert answer.status_code == 202
    members = {"writer_token", "watch_token", "epoch", "lease_seconds"}
    assert set(body) == {"run_id", "status", "session_id", "urls"} | members
    assert (body["status"], body["epoch"], body["lease_seconds"]) == ("running", 1, 60)
    assert body["writer_token"].startswith("rtw_")
    assert body["watch_token"].startswith("rtv_")
    assert answer.headers["X-Run-Id"] == body["run_id"]
    assert payloads(web, body["run_id"], "run.started") == [{"attempt": 1, "worker": "external"}]
    run = row(web, body["run_id"])
    assert (run.status, run.epoch, run.owner, run.state_seq, run.state["status"]) == ("running", 1, None, 2, "running")
    assert run.started_at is not None
    with web.services.database.session() as db:
        stored = db.execute_sql("SELECT row_to_json(w)::text FROM writers w WHERE run_id = %s", (run.id,)).fetchone()[0]
    assert body["writer_token"] not in stored
    assert body["watch_token"] not in stored


def test_a_run_is_written_from_outside_from_its_start_to_its_end(web: Stack, writer: ExternalWriter) -> None:
    answer = writer.append(*words("It is ", "grey."))
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"head": 6, "producer_seq": 1, "cancel_requested": False, "inputs": [], "decisions": []}
    done = writer.complete(output="It is grey.")
    assert (done.status_code, done.json()["status"], done.json()["output"]) == (200, "completed", "It is grey.")
    run = ended(web, writer.run_id)
    assert run.state["answer"] == {"text": "It is grey.", "status": "final"}


def test_only_a_key_with_the_scope_write_starts_external_runs(web: Stack) -> None:
    plain, write = user(web, Principal("acme", "ann", admin=True)), user(web, Principal("acme", "svc", writer=True))
    problem(web.http.post("/runs", json={"agent": "external"}, headers=plain), 403, "scope_required")
    assert ExternalWriter.start(web.http, write).append(CHECKED).status_code == 200


def test_a_key_with_the_scope_acts_for_any_user_of_its_tenant_and_no_other(web: Stack) -> None:
    write, ann = Principal("acme", "svc", admin=True, writer=True), Principal("acme", "ann")
    writer = ExternalWriter.start(web.http, user(web, write, **{"Runtail-User": "ann"}))
    assert row(web, writer.run_id).user_id == "ann"
    path = f"/runs/{writer.run_id}"
    assert web.http.get(path, headers=user(web, ann)).status_code == 200
    assert web.http.get(path, headers=user(web, write, **{"Runtail-User": "ann"})).status_code == 200
    problem(web.http.get(path, headers=user(web, write)), 404, "run_not_found")
    abroad = user(web, Principal("other", "svc", writer=True), **{"Runtail-User": "ann"})
    problem(web.http.get(path, headers=abroad), 404, "run_not_found")
    problem(web.http.get(path, headers=user(web, ann, **{"Runtail-User": "bob"})), 403, "scope_required")
    as_ann = user(web, write, **{"Runtail-User": "ann"})
    problem(web.http.get("/metrics", headers=as_ann), 404, "not_found")
    assert web.http.get("/metrics", headers=user(web, write)).status_code == 200, "it is an administrator's itself"


def test_a_user_is_named_in_utf_8(web: Stack) -> None:
    headers = {k: v.encode() for k, v in user(web, Principal("acme", "svc", writer=True)).items()}
    answer = web.http.post("/runs", json={"agent": "external"}, headers={**headers, "Runtail-User": "Zoë".encode()})
    assert row(web, answer.json()["run_id"]).user_id == "Zoë"
    for bad in (b"", b"\xff", "a\u200bb".encode(), b"a" * 129):
        problem(web.http.get("/runs", headers={**headers, "Runtail-User": bad}), 422, "invalid_request")


def test_an_external_run_takes_no_timeout(web: Stack) -> None:
    problem(web.http.post("/runs", json={"agent": "external", "timeout_s": 5}), 422, "invalid_request")


def test_the_same_post_again_is_the_next_writer_and_fences_off_the_one_before(web: Stack) -> None:
    first = ExternalWriter.start(web.http, client_run_id="job-1")
    assert first.append(*words("half")[:2]).status_code == 200
    second = ExternalWriter.start(web.http, client_run_id="job-1")
    assert (second.run_id, second.epoch) == (first.run_id, 2)
    assert second.token != first.token
    problem(first.append(CHECKED), 403, "stale_epoch")
    problem(first.beat(), 403, "stale_epoch")
    problem(first.complete(), 403, "stale_epoch")
    assert payloads(web, first.run_id, "run.step") == [{"attempt": 2, "reason": "retry", "restart": True}]
    assert second.append(*words("whole")).json()["producer_seq"] == 1
    assert second.complete(output="whole").json()["attempt"] == 2
    run = ended(web, first.run_id)
    assert [m["status"] for m in run.state["messages"]] == ["completed"], "the half one was written anew"
    assert run.state["answer"]["text"] == "whole"


def test_once_the_run_has_ended_the_same_post_gives_no_token(web: Stack) -> None:
    body = {"agent": "external", "client_run_id": "job-2"}
    writer = ExternalWriter.start(web.http, client_run_id="job-2")
    writer.complete()
    again = web.http.post("/runs", json=body)
    assert again.status_code == 202
    assert again.json()["run_id"] == writer.run_id
    assert [again.json()[name] for name in ("status", "writer_token", "watch_token", "epoch")] == [
        *("completed", None, None, None)
    ]
    problem(web.http.post("/runs", json={**body, "input": {"n": 2}}), 409, "idempotency_conflict")


def test_a_cancel_that_came_before_the_run_is_requested_from_its_start(web: Stack) -> None:
    assert web.http.post("/runs/cancel", json={"client_run_id": "early"}).json() == {"status": "noted"}
    writer = ExternalWriter.start(web.http, client_run_id="early")
    assert writer.beat().json()["cancel_requested"] is True
    assert writer.finish({"status": "cancelled"}).json()["status"] == "cancelled"
    assert ended(web, writer.run_id, "cancelled").cancel_reason == "requested"


def test_the_agents_do_not_list_it(web: Stack) -> None:
    assert "external" not in [agent["name"] for agent in web.http.get("/agents").json()]


# Append.


@pytest.mark.parametrize(
    ("call", "answers", "body"),
    [
        ("events", {"200", "204", "409"}, "application/x-ndjson"),
        ("heartbeat", {"200"}, None),
        ("finish", {"200", "409"}, "application/json"),
    ],
)
def test_the_openapi_document_says_what_a_writer_sends_and_gets(
    web: Stack, call: str, answers: set[str], body: str | None
) -> None:
    described = web.http.get("/openapi.json").json()["paths"][f"/runs/{{run_id}}/{call}"]["post"]
    assert set(described["responses"]) == {*answers, "default"}
    assert "application/json" in described["responses"]["200"]["content"]
    needed = {parameter["name"] for parameter in described["parameters"] if parameter.get("required")}
    assert needed == {"Producer-Epoch", "Producer-Seq"} - (set() if body else {"Producer-Seq"})
    assert list(described.get("requestBody", {}).get("content", [])) == ([body] if body else [])


def test_batches_are_taken_in_their_order_and_a_repeated_one_is_not_doubled(web: Stack, writer: ExternalWriter) -> None:
    assert writer.append(CHECKED).json()["head"] == 3
    repeated = writer.send(ndjson([CHECKED, CHECKED]))
    assert (repeated.status_code, repeated.content) == (204, b"")
    assert writer.append(CHECKED).json()["head"] == 4
    assert writer.send(ndjson([CHECKED]), seq=1).status_code == 204
    gap = writer.send(ndjson([CHECKED]), seq=9)
    assert (gap.status_code, gap.json()["code"], gap.json()["expected"]) == (409, "producer_gap", 3)
    assert types(web, writer.run_id)[2:] == ["quality.checked"] * 2


def test_a_batch_has_at_most_1_000_events(web: Stack, writer: ExternalWriter) -> None:
    tick: Line = ("custom.tick", {})
    problem(writer.send(ndjson([tick] * 1_001), seq=1), 413, "too_many_events")
    assert writer.append(*[tick] * 1_000).json()["head"] == 1_002
    problem(writer.send(b"\n \n", seq=2), 422, "invalid_request")
    assert len(events(web, writer.run_id)) == 1_002


def test_lines_may_be_empty_and_need_no_last_newline(web: Stack, writer: ExternalWriter) -> None:
    writer.seq = 1
    assert writer.send(b"\n" + ndjson([CHECKED]) + b"\r\n\n" + ndjson([CHECKED])[:-1]).json()["head"] == 4


def test_an_append_to_a_run_that_has_ended_is_refused(web: Stack, writer: ExternalWriter) -> None:
    writer.complete()
    problem(writer.append(CHECKED), 409, "run_ended")
    problem(writer.beat(), 409, "run_ended")
    assert types(web, writer.run_id)[-1] == "run.completed"


def test_what_is_appended_passes_the_hooks(web: Stack, writer: ExternalWriter) -> None:
    writer.append(("custom.call", {"api_key": "s3cret", "nul": "a\0b"}))
    assert payloads(web, writer.run_id, "custom.call") == [{"api_key": "[redacted]", "nul": "a\ufffdb"}]


def test_all_windows_see_the_same_events_and_one_digest(web: Stack, writer: ExternalWriter) -> None:
    with RawClient(web.port) as sse, RawClient(web.port) as lines:
        path = f"/runs/{writer.run_id}/events"
        sse.ask(path).until(b"run.started")
        lines.ask(path, "application/x-ndjson").until(b"run.started")
        for piece in "abc":
            writer.append(("message.started", {"message_id": piece, "role": "assistant"}))
        writer.complete()
        sse.to_the_end()
        lines.to_the_end()
    assert sse.envelopes == lines.envelopes == [event.envelope() for event in events(web, writer.run_id)]
    assert sse.envelopes[-1]["payload"]["digest"] == ended(web, writer.run_id).digest
    assert "".join(web.follow(writer.run_id)) == "".join(event.text for event in events(web, writer.run_id))


def test_the_state_is_stored_anew_every_thousand_events(web: Stack, writer: ExternalWriter) -> None:
    for _ in range(2):
        writer.append(*[("message.started", {"message_id": "m", "role": "assistant"})] * 600)
    run = row(web, writer.run_id)
    assert run.state_seq == 1_202
    assert run.state["last_seq"] == 1_202
    assert web.read(writer.run_id)["state_seq"] == 1_202


# What the user says meanwhile.


def test_inputs_are_in_the_answer_and_in_the_log(web: Stack, writer: ExternalWriter) -> None:
    for text in ("The grey one", "Or blue"):
        assert web.http.post(f"/runs/{writer.run_id}/input", json={"text": text}).status_code == 202
    answer = writer.append(CHECKED, inputs_after=1).json()
    assert answer["inputs"] == [{"input_id": "inp_2", "text": "Or blue"}]
    assert answer["head"] == 5
    assert types(web, writer.run_id)[2:] == ["quality.checked", "input.received", "input.received"]
    again = writer.beat().json()
    assert [input["input_id"] for input in again["inputs"]] == ["inp_1", "inp_2"]
    assert again["head"] == 5, "told once"
    assert writer.beat(inputs_after=2).json()["inputs"] == []
    assert web.read(writer.run_id)["state"]["inputs"][0] == {"id": "inp_1", "text": "The grey one"}


def test_more_inputs_than_fit_an_answer_come_with_the_next_one(web: Stack, writer: ExternalWriter) -> None:
    with web.services.database.session() as db:
        sql = "INSERT INTO run_inputs (run_id, n, text) SELECT %s, n, 'x' FROM generate_series(1, 250) AS n"
        db.execute_sql(sql, (writer.run_id,))
    seen: list[str] = []
    while found := writer.beat(inputs_after=len(seen)).json()["inputs"]:
        assert len(found) <= 100
        seen += [input["input_id"] for input in found]
    assert seen == [f"inp_{n}" for n in range(1, 251)]
    assert [p["input_id"] for p in payloads(web, writer.run_id, "input.received")] == seen


def test_a_heartbeat_brings_a_decision_and_the_log_tells_it_once(web: Stack, writer: ExternalWriter) -> None:
    assert writer.append(asks("a1", tool_call_id="c1")).json()["decisions"] == []
    listed = web.http.get("/approvals", params={"run": writer.run_id}).json()["approvals"][0]
    assert (listed["approval_id"], listed["status"], listed["label"], listed["tool_call_id"]) == (
        *("a1", "open", "Refund 10", "c1"),
    )
    decided = web.http.post(f"/runs/{writer.run_id}/approvals/a1", json={"decision": "approved", "comment": "ok"})
    assert decided.status_code == 200, decided.text
    outcome = {"approval_id": "a1", "decision": "approved", "by": "dev", "comment": "ok"}
    assert writer.beat().json()["decisions"] == [outcome]
    assert writer.beat().json()["decisions"] == [outcome]
    assert payloads(web, writer.run_id, "approval.resolved") == [outcome]
    assert web.read(writer.run_id)["state"]["approvals"][0]["status"] == "approved"


def test_an_operator_decides_what_an_operator_has_to_decide(web: Stack) -> None:
    ann, root = Principal("acme", "ann"), Principal("acme", "root", admin=True)
    service = user(web, Principal("acme", "svc", writer=True), **{"Runtail-User": "ann"})
    writer = ExternalWriter.start(web.http, service)
    writer.append(asks("a1", requires="operator"))
    path, body = f"/runs/{writer.run_id}/approvals/a1", {"decision": "denied"}
    problem(web.http.post(path, json=body, headers=user(web, ann)), 403, "operator_required")
    assert web.http.post(path, json=body, headers=user(web, root)).status_code == 200
    assert writer.beat().json()["decisions"][0]["by"] == "root"


def test_an_approval_expires_by_itself(web: Stack, writer: ExternalWriter) -> None:
    writer.append(asks("a1", expires_at="2020-01-01T00:00:00Z"))
    decisions = eventually(lambda: writer.beat().json()["decisions"], what="the expiry")
    assert decisions == [{"approval_id": "a1", "decision": "expired", "by": None, "comment": None}]


def test_an_approval_that_is_asked_for_again_is_told_again(web: Stack) -> None:
    first = ExternalWriter.start(web.http, client_run_id="again")
    first.append(asks("a1"))
    web.http.post(f"/runs/{first.run_id}/approvals/a1", json={"decision": "approved"})
    first.beat()
    second = ExternalWriter.start(web.http, client_run_id="again")
    assert second.append(asks("a1")).json()["decisions"][0]["decision"] == "approved"
    assert types(web, second.run_id)[-2:] == ["approval.required", "approval.resolved"]
    assert web.read(second.run_id)["state"]["approvals"][0]["status"] == "approved"
    problem(second.append(asks("a1", label="Refund 10,000")), 422, "invalid_event")


def test_a_run_asks_for_at_most_100_approvals(web: Stack, writer: ExternalWriter) -> None:
    assert writer.append(*[asks(f"a{n}") for n in range(99)]).status_code == 200
    problem(writer.send(ndjson([asks("b1"), asks("b2")]), seq=2), 409, "too_many_approvals")
    assert writer.send(ndjson([asks("b1"), asks("b1")]), seq=2).status_code == 200
    assert writer.send(ndjson([asks("a5")]), seq=3).status_code == 200, "it has asked that before"
    problem(writer.send(ndjson([asks("b2")]), seq=4), 409, "too_many_approvals")


# Cancel and finish.


def test_a_cancel_is_answered_at_once_and_told_with_the_next_call(web: Stack, writer: ExternalWriter) -> None:
    answer = web.http.post(f"/runs/{writer.run_id}/cancel")
    assert answer.status_code == 202
    assert answer.elapsed.total_seconds() < 1, "there is nobody to wait for"
    assert writer.append(CHECKED).json()["cancel_requested"] is True
    assert writer.finish({"status": "cancelled"}).json()["status"] == "cancelled"
    assert payloads(web, writer.run_id, "run.cancelled")[0]["reason"] == "requested"
    ended(web, writer.run_id, "cancelled")


def test_the_same_finish_again_gives_the_run_as_it_ended_and_another_one_is_refused(
    web: Stack, writer: ExternalWriter
) -> None:
    writer.append(*words("done"))
    first = writer.complete(output="done")
    assert writer.complete(output="done").json() == first.json()
    problem(writer.finish({"status": "cancelled"}), 409, "run_ended")
    problem(writer.complete(output="other"), 409, "run_ended")
    assert sum(type in TERMINAL for type in types(web, writer.run_id)) == 1


def test_a_finish_notices_a_batch_that_is_missing(web: Stack, writer: ExternalWriter) -> None:
    writer.append(CHECKED)
    for wrong in (1, 3):
        answer = writer.finish({"status": "completed"}, seq=wrong)
        assert (answer.status_code, answer.json()["expected"]) == (409, 2)
    assert row(web, writer.run_id).status == "running"
    assert writer.complete().status_code == 200


def test_a_failed_run_has_its_writers_error(web: Stack, writer: ExternalWriter) -> None:
    writer.append(*words("half")[:2])
    error = {"code": "no_stock", "message": "Fit to be shown."}
    assert writer.finish({"status": "failed", "error": error}).json()["error"] == error
    run = ended(web, writer.run_id, "failed")
    assert run.state["messages"][0]["status"] == "completed", "what is open is closed"
    other = ExternalWriter.start(web.http)
    assert other.finish({"status": "failed"}).json()["error"] == {
        "code": "external_failed",
        "message": "The run failed",
    }


def test_an_output_that_was_not_streamed_is_streamed(web: Stack, writer: ExternalWriter) -> None:
    assert writer.complete(output="All at once.").json()["status"] == "completed"
    assert ended(web, writer.run_id).state["answer"]["text"] == "All at once."


def test_a_run_without_an_output_has_what_it_streamed(web: Stack, writer: ExternalWriter) -> None:
    writer.append(*words("Hi."), CHECKED)
    output = writer.complete().json()["output"]
    assert (output["text"], output["checks"][0]["name"]) == ("Hi.", "tone")


@pytest.mark.parametrize(
    ("output", "texts"),
    [("another", ["another"]), ("one text", ["one text"]), (" onetext", ["one text"]), ("", [""])],
)
def test_a_text_that_was_not_streamed_is_said_in_place_of_what_was(
    web: Stack, writer: ExternalWriter, output: str, texts: list[str]
) -> None:
    writer.append(*words("one text"))
    assert writer.complete(output=output).json()["output"] == output
    messages = ended(web, writer.run_id).state["messages"]
    assert [message["text"] for message in messages if message["status"] == "completed"] == texts


@pytest.mark.parametrize(
    "body",
    [
        *({}, [], "completed", {"status": "done"}, {"status": None}, {"status": ["failed"]}),
        *(
            {"status": "completed", "error": {}},
            {"status": "cancelled", "output": 1},
            {"status": "failed", "output": 1},
        ),
        {"status": "failed", "error": "no"},
        {"status": "failed", "error": {"code": "No Stock"}},
        {"status": "failed", "error": {"code": "a" * 65}},
        {"status": "failed", "error": {"code": "a\n"}},
        {"status": "failed", "error": {"message": "m" * 501}},
        {"status": "failed", "error": {"message": None}},
        {"status": "failed", "error": {"message": "m", "stack": "secret"}},
    ],
)
def test_a_finish_that_does_not_fit_is_refused_and_changes_nothing(
    web: Stack, writer: ExternalWriter, body: Any
) -> None:
    problem(writer.finish(body), 422, "invalid_request")
    assert row(web, writer.run_id).status == "running"


# Around.


def test_a_watch_token_reads_its_run_in_every_format(web: Stack) -> None:
    key = user(web, Principal("acme", "svc", writer=True))
    writer = ExternalWriter.start(web.http, key)
    writer.complete()
    path = f"/runs/{writer.run_id}/events?watch_token={writer.watch_token}"
    for accept in ("text/event-stream", "application/x-ndjson", "application/json"):
        answer = web.http.get(path, headers={"Accept": accept})
        assert (answer.status_code, "run.completed" in answer.text) == (200, True)
    assert web.http.get(f"{path}&since_seq=3").status_code == 204


def test_a_watch_token_outlives_its_writer(web: Stack) -> None:
    key = user(web, Principal("acme", "svc", writer=True))
    first = ExternalWriter.start(web.http, key, client_run_id="w")
    second = ExternalWriter.start(web.http, key, client_run_id="w")
    assert first.watch_token != second.watch_token
    for writer in (first, second):
        path = f"/runs/{first.run_id}/events?watch_token={writer.watch_token}"
        assert web.http.get(path, headers={"Accept": "application/json"}).status_code == 200


def test_erasing_a_run_leaves_nothing_of_its_writers(web: Stack, writer: ExternalWriter) -> None:
    writer.complete()
    assert web.http.post(f"/runs/{writer.run_id}/erase").status_code == 204
    with web.services.database.session() as db:
        found = db.execute_sql("SELECT count(*) FROM writers WHERE run_id = %s", (writer.run_id,)).fetchone()
    assert found == (0,)
    problem(writer.append(CHECKED), 404, "run_not_found")
    path = f"/runs/{writer.run_id}/events?watch_token={writer.watch_token}"
    problem(web.http.get(path, headers={"Accept": "application/json"}), 404, "run_not_found")


def test_nobody_follows_it_any_more_and_so_it_is_to_be_cancelled(stack: StackMaker) -> None:
    web = stack(ON_DISCONNECT_GRACE_SECONDS="1")
    web.start_web()
    web.start_worker()
    writer = ExternalWriter.start(web.http, on_disconnect="cancel")
    with RawClient(web.port) as client:
        client.ask(f"/runs/{writer.run_id}/events").until(b"run.started")
    eventually(lambda: writer.beat().json()["cancel_requested"], 20, "the cancel")
    writer.finish({"status": "cancelled"})
    assert ended(web, writer.run_id, "cancelled").cancel_reason == "disconnected"


def test_verify_accepts_an_external_run(web: Stack, writer: ExternalWriter) -> None:
    writer.append(*words("Hi."))
    writer.complete()
    command = [sys.executable, "-m", "app.cli", "verify", writer.run_id]
    found = subprocess.run(command, env=web.env, timeout=60, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert f"{writer.run_id} is as it says: 6 events" in found.stdout
