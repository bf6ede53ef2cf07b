"""External runs: the contract of docs/protocol.md, line by line."""

from typing import Any

import pytest

from app.protocol.events import TERMINAL
from tests.conftest import StackMaker
from tests.external_writer import ExternalWriter, words
from tests.harness import Stack, problem
from tests.stored import ended, events, payloads, row


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """Two web processes and a worker."""
    stack = module_stack(WEB_CONCURRENCY="2")
    stack.start_web()
    stack.start_worker()
    return stack


def types(stack: Stack, run_id: str) -> list[str]:
    """Of the archived events."""
    return [event.type for event in events(stack, run_id)]


def test_a_run_is_written_from_outside_from_its_start_to_its_end(web: Stack) -> None:
    writer = ExternalWriter.start(web.http, input={"n": 1})
    assert row(web, writer.run_id).status == "running"
    assert types(web, writer.run_id) == ["run.created", "run.started"]
    answer = writer.append(*words("It is ", "grey."))
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"head": 6, "producer_seq": 1, "cancel_requested": False, "inputs": [], "decisions": []}
    done = writer.complete(output="It is grey.")
    assert (done.status_code, done.json()["status"], done.json()["output"]) == (200, "completed", "It is grey.")
    run = ended(web, writer.run_id)
    assert run.state["answer"] == {"text": "It is grey.", "status": "final"}


def test_the_start_answers_with_tokens_that_are_shown_once(web: Stack) -> None:
    answer = web.http.post("/runs", json={"agent": "external", "input": {"any": ["thing", 1]}})
    body = answer.json()
    assert answer.status_code == 202
    assert set(body) == {
        *("run_id", "status", "session_id", "urls"),
        *("writer_token", "watch_token", "epoch", "lease_seconds"),
    }
    assert (body["status"], body["epoch"], body["lease_seconds"]) == ("running", 1, 60)
    assert body["writer_token"].startswith("rtw_")
    assert body["watch_token"].startswith("rtv_")
    assert answer.headers["X-Run-Id"] == body["run_id"]
    stored = str(row(web, body["run_id"])) + str(events(web, body["run_id"]))
    assert body["writer_token"] not in stored
    assert payloads(web, body["run_id"], "run.started") == [{"attempt": 1, "worker": "external"}]
