"""A turn in which nothing is said leaves no message: neither beside the others, nor in the place of the answer."""

import pytest

from runtail.client import Runtail
from tests.harness import Stack, eventually
from tests.stored import ended

TEXT = "Here it is."


@pytest.mark.parametrize("says", ["first", "last"])
def test_a_message_that_nothing_is_written_to_is_none(live: Stack, says: str) -> None:
    run_id = live.start("calls_only", {"says": says})
    eventually(lambda: live.read(run_id)["status"] == "waiting", 20)
    approval = live.http.get("/approvals", params={"run": run_id}).json()["approvals"][0]["approval_id"]
    live.http.post(f"/runs/{run_id}/approvals/{approval}", json={"decision": "approved"}).raise_for_status()
    run = live.ended(run_id)
    assert run["status"] == "completed", run["error"]
    assert [message["text"] for message in run["state"]["messages"]] == [TEXT]
    assert run["state"]["answer"]["text"] == TEXT
    types = [event["type"] for event in live.events(run_id)]
    assert (types.count("message.started"), types.count("message.completed")) == (1, 1)


def test_the_client_writes_no_empty_messages_either_and_a_long_one_once(live: Stack) -> None:
    long = "ab" * 100_000
    with Runtail(live.url) as client, client.run() as run:
        run.stream([])
        run.stream(["", ""])
        with run.message() as message:
            message.write(long)
            message.write("")
        with run.message():
            pass
    state = ended(live, run.id, "completed").state
    assert [message["text"] for message in state["messages"]] == [long]
