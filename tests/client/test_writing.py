"""What the verbs of a run write: the server takes every event, and the state is what the code did."""

import contextlib
import contextvars
import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from runtail import Cancelled, InvalidEvent, Refused, Run, RunEnded, ToolError, WriterLost, current_run, emit
from runtail.client import Runtail
from tests.harness import Stack, eventually
from tests.stored import ended, payloads, row

TOO_MANY_STEPS = [f"Step {n}" for n in range(1_001)]
"""For the server; the SDK does not count them."""


def state_of(live: Stack, run_id: str, status: str = "completed") -> dict[str, Any]:
    """The state of a run that has ended in that status, its log checked."""
    state: dict[str, Any] = ended(live, run_id, status).state
    return state


def test_every_verb_writes_what_the_server_takes(client: Runtail, live: Stack) -> None:
    with client.run(user="alice", session="ses_verbs", input={"month": "May"}, metadata={"ticket": 7}) as run:
        run.plan(["Look it up", "Write it down"])
        with run.step("Look it up") as step:
            step.progress(0.5, "half")
            rows = run.tool("query", lambda month: [month], "May", label="Reading the books", summary={"month": "May"})
            run.progress(0.9)
        run.plan(["Look it up", "Write it down", "Check it"])
        run.source("Books", "https://books.example", "42")
        run.usage(input_tokens=10, output_tokens=5, cost=0.5)
        with run.step("Write it down"), run.message() as message:
            message.write("It is ")
            message.write("grey.")
        run.check("spelling", True, 0.9, "fine")
        run.emit("custom.colour", {"value": "grey"})
        run.output = message.text
    assert rows == ["May"]
    stored = row(live, run.id)
    assert (stored.session_id, stored.input, stored.metadata) == ("ses_verbs", {"month": "May"}, {"ticket": 7})
    state = state_of(live, run.id)
    assert state["output"] == "It is grey."
    assert [(p["title"], p["status"]) for p in state["plan"]] == [
        ("Look it up", "completed"),
        ("Write it down", "completed"),
        ("Check it", "pending"),
    ]
    assert [(s["title"], s["status"], s["label"]) for s in state["steps"]] == [
        ("Look it up", "completed", "half"),
        ("Write it down", "completed", None),
    ]
    (call,) = state["tool_calls"]
    assert (call["name"], call["summary"], call["preview"]) == ("query", "month=May", ["May"])
    assert call["step_id"] == state["steps"][0]["id"]
    assert [s["title"] for s in state["sources"]] == ["Books"]
    assert state["usage"] == {"input_tokens": 10, "output_tokens": 5, "cost": 0.5}
    assert state["checks"] == [{"name": "spelling", "passed": True, "score": 0.9, "note": "fine"}]
    assert payloads(live, run.id, "custom.colour") == [{"value": "grey"}]
    assert payloads(live, run.id, "message.completed")[0]["chars"] == len("It is grey.")


def test_a_run_of_another_user_is_theirs(client: Runtail) -> None:
    with client.run(user="alice") as run:
        pass
    assert client.for_user("alice").read(run.id)["status"] == "completed"
    with pytest.raises(Refused) as refused:
        client.for_user("bob").read(run.id)
    assert (refused.value.status, refused.value.code) == (404, "run_not_found")


def test_users_may_have_names_of_any_script(client: Runtail) -> None:
    opened = client.open(user="Jürgen 王")
    with client.run(ref=opened.ref):
        pass
    mine = client.for_user("Jürgen 王")
    assert mine.read(opened.run_id)["status"] == "completed"
    assert [*mine.watch(opened.run_id)][-1]["type"] == "run.completed"


def test_a_header_that_cannot_be_sent_is_not_taken_for_a_server_that_is_none(client: Runtail) -> None:
    with pytest.raises(Refused) as refused:
        client.open(idempotency_key="é")
    assert refused.value.code == "invalid_request"


def test_a_stream_is_one_message_and_is_closed(client: Runtail, live: Stack) -> None:
    closed: list[bool] = []

    def words() -> Any:
        try:
            yield from ("a ", "b ", "c")
        finally:
            closed.append(True)

    with client.run() as run:
        run.output = run.stream(words())
    assert state_of(live, run.id)["answer"] == {"text": "a b c", "status": "final"}
    assert closed == [True]


def test_without_an_output_it_is_made_of_the_stream(client: Runtail, live: Stack) -> None:
    with client.run() as run:
        run.stream(["grey"])
        run.source("Books")
    output = state_of(live, run.id)["output"]
    assert (output["text"], output["sources"][0]["title"]) == ("grey", "Books")


def test_an_output_that_was_not_streamed_is_streamed_by_the_server(client: Runtail, live: Stack) -> None:
    with client.run() as run:
        ended_run = run.complete("grey")
    assert ended_run["output"] == "grey"
    assert state_of(live, run.id)["answer"]["text"] == "grey"


@pytest.mark.parametrize(
    ("words", "chars"),
    [("some words é ", 1_200_000), ("some words é ", 2_400_000), ("\x01\x1f", 200_000), ("🚚\u2028", 300_000)],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_a_long_output_is_sent_once_whether_it_was_streamed_or_not(
    client: Runtail, live: Stack, words: str, chars: int, streamed: bool
) -> None:
    text = (words * chars)[:chars]
    with client.run() as run:
        run.output = run.stream([text]) if streamed else text
    assert ended(live, run.id).output == text
    assert state_of(live, run.id)["answer"]["text"] == text


def test_another_text_than_was_streamed_takes_its_place(client: Runtail, live: Stack) -> None:
    with client.run() as run:
        run.stream(["grey"])
        run.output = "blue"
    assert ended(live, run.id).output == state_of(live, run.id)["answer"]["text"] == "blue"


def test_an_exception_fails_the_run_without_its_text_and_goes_on(client: Runtail, live: Stack) -> None:
    def divide(run: Run) -> None:
        with run.step("Divide"), run.message() as message:
            message.write("The result is ")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), client.run() as run:
        divide(run)
    run_ended = ended(live, run.id, "failed")
    assert run_ended.error == {"code": "agent_error", "message": "The agent failed."}
    assert run_ended.state["steps"][0]["error"] == {"code": "step_failed", "message": "The step failed."}
    assert run_ended.state["answer"]["text"] == "The result is "


def test_a_run_can_be_failed_with_a_reason_that_is_shown(client: Runtail, live: Stack) -> None:
    with client.run() as run:
        run.fail("no_stock", "There are no grey ones left.")
    assert ended(live, run.id, "failed").error == {"code": "no_stock", "message": "There are no grey ones left."}


def test_a_tool_that_fails_is_told_in_public_words_only(client: Runtail, live: Stack) -> None:
    def broken(secret: str) -> None:
        raise ValueError(secret)

    def busy() -> None:
        raise ToolError("busy", "The exchange is busy.", retryable=True)

    with client.run() as run:
        with pytest.raises(ToolError) as unforeseen:
            run.tool("broken", broken, "hunter2")
        with pytest.raises(ToolError):
            run.tool("busy", busy, retries=1, backoff=0.01)
    assert unforeseen.value.code == "tool_error"
    calls = state_of(live, run.id)["tool_calls"]
    assert [(c["name"], c["status"], c["error_code"]) for c in calls] == [
        ("broken", "failed", "tool_error"),
        ("busy", "failed", "busy"),
        ("busy", "failed", "busy"),
    ]
    assert all("hunter2" not in event.text for event in live.services.store.events(run.id, 0, 100))


def test_a_large_result_is_shown_by_its_beginning_and_no_secret_in_it(client: Runtail, live: Stack) -> None:
    found = {"api_key": "hunter2", "rows": ["x" * 100] * 1_000}
    with client.run() as run:
        assert run.tool("query", lambda: found) is found
        run.tool("open", lambda: object())
    large, opened = payloads(live, run.id, "tool.completed")
    assert large["truncated"] is True
    assert len(large["preview"]) <= 2_048
    assert "hunter2" not in large["preview"]
    assert opened["preview"] == "<object>"


def test_text_is_cleaned_and_what_is_no_json_refused_where_it_is_emitted(client: Runtail, live: Stack) -> None:
    with client.run() as run:
        run.stream(["a\0b", "\ud800", "😀", "\u2028\x85\r\n"])
        deep: list[Any] = []
        for _ in range(70):
            deep = [deep]
        for bad in (float("nan"), float("inf"), 2**53, {1: 2}, {"a": object()}, deep):
            with pytest.raises(InvalidEvent):
                run.emit("custom.bad", {"value": bad})
        with pytest.raises(InvalidEvent):
            run.emit("custom.large", {"value": "x" * 1_000_000})
        with pytest.raises(InvalidEvent):
            run.emit("run.completed", {})
    assert state_of(live, run.id)["answer"]["text"] == "a\ufffdb\ufffd😀\u2028\x85\r\n"
    assert payloads(live, run.id, "custom.bad") == []


def test_an_event_that_the_server_refuses_is_raised_and_fails_the_run(client: Runtail, live: Stack) -> None:
    def go_on(run: Run) -> None:
        run.emit("custom.fine", {})
        eventually(lambda: payloads(live, run.id, "custom.fine"))
        run.plan(TOO_MANY_STEPS)
        run.sleep(30)

    with pytest.raises(Refused) as refused, client.run() as run:
        go_on(run)
    assert (refused.value.status, refused.value.code) == (422, "invalid_event")
    assert ended(live, run.id, "failed").error["code"] == "agent_error"
    assert payloads(live, run.id, "custom.fine") == [{}]


def test_an_event_refused_at_the_very_end_is_raised_by_the_end(client: Runtail, live: Stack) -> None:
    with pytest.raises(Refused), client.run() as run:
        run.plan(TOO_MANY_STEPS)
    assert ended(live, run.id, "failed").error["code"] == "agent_error"


def test_a_run_of_which_an_event_was_refused_is_not_completed(client: Runtail, live: Stack) -> None:
    def look_away(run: Run) -> None:
        run.plan(TOO_MANY_STEPS)
        with pytest.raises(Refused):
            run.sleep(30)

    with pytest.raises(Refused) as refused, client.run() as run:
        look_away(run)
    assert refused.value.code == "invalid_event"
    assert ended(live, run.id, "failed").error["code"] == "agent_error"


def test_an_end_that_the_server_does_not_take_leaves_the_run_to_another_one(client: Runtail, live: Stack) -> None:
    with client.run() as run:
        with pytest.raises(Refused):
            run.complete({"text": "x" * 3_000_000})
        run.emit("custom.shorter", {})
        run.complete("x")
    assert state_of(live, run.id)["output"] == "x"
    assert payloads(live, run.id, "custom.shorter") == [{}]


def test_a_long_text_in_many_pieces_arrives_whole_in_few_events(client: Runtail, live: Stack) -> None:
    pieces = [f"{n} " for n in range(20_000)]
    with client.run() as run, run.message() as message:
        for piece in pieces:
            message.write(piece)
        message.write("x" * 200_000)
    assert state_of(live, run.id)["answer"]["text"] == "".join(pieces) + "x" * 200_000
    assert len(payloads(live, run.id, "message.delta")) < 200


def test_a_piece_of_text_goes_out_at_once_and_those_after_it_together(client: Runtail, live: Stack) -> None:
    with client.run() as run, run.message() as message:
        message.write("a")
        eventually(lambda: payloads(live, run.id, "message.delta"), 2)
        for _ in range(20):
            message.write("b")
            time.sleep(0.001)
        message.write("c")
        eventually(lambda: payloads(live, run.id, "message.delta")[-1]["text"].endswith("c"), 2)
    deltas = payloads(live, run.id, "message.delta")
    assert deltas[0]["text"] == "a"
    assert len(deltas) < 6


def test_two_threads_write_one_run(client: Runtail, live: Stack) -> None:
    def write(name: str) -> None:
        with run.step(name), run.message("system") as message:
            for n in range(500):
                message.write(f"{name}{n} ")
                if n % 50 == 0:
                    run.tool(name, str, n)

    with client.run() as run, ThreadPoolExecutor() as threads:
        list(threads.map(write, ("left", "right")))
    state = state_of(live, run.id)
    texts = {message["text"] for message in state["messages"]}
    assert texts == {"".join(f"{name}{n} " for n in range(500)) for name in ("left", "right")}
    steps = {step["id"]: step["title"] for step in state["steps"]}
    assert {(call["name"], steps[call["step_id"]]) for call in state["tool_calls"]} == {
        ("left", "left"),
        ("right", "right"),
    }


# Answers from outside.


def test_a_cancel_reaches_a_run_that_works_and_the_code_after_the_block_goes_on(client: Runtail, live: Stack) -> None:
    def work(run: Run) -> None:
        with contextlib.suppress(Exception):  # which is not what a cancel is
            for n in itertools.count():
                run.emit("custom.tick", {"n": n})
                time.sleep(0.005)

    with client.run() as run:
        client.cancel(run.id)
        work(run)
        raise AssertionError("the cancel did not stop it")
    assert run.cancelled
    assert ended(live, run.id, "cancelled").state["status"] == "cancelled"


def test_a_cancel_wakes_a_run_that_sleeps(client: Runtail, live: Stack) -> None:
    with client.run() as run:
        client.cancel(run.id)
        started = time.monotonic()
        run.sleep(60)
    assert time.monotonic() - started < 5
    ended(live, run.id, "cancelled")


def test_a_tool_that_ran_when_the_cancel_came_is_told_of_all_the_same(client: Runtail, live: Stack) -> None:
    def slow() -> str:
        client.cancel(run.id)
        eventually(lambda: run.cancelled)
        return "done"

    with client.run() as run:
        run.tool("slow", slow)
        run.sleep(0)
    assert ended(live, run.id, "cancelled").state["tool_calls"][0]["status"] == "completed"


def test_somebody_elses_cancelled_is_not_swallowed(client: Runtail, live: Stack) -> None:
    with pytest.raises(Cancelled), client.run() as run:
        raise Cancelled("run_other")
    ended(live, run.id, "failed")


@pytest.mark.parametrize("decision", ["approve", "deny"])
def test_an_approval_waits_for_its_decision(client: Runtail, live: Stack, decision: str) -> None:
    def decide() -> None:
        eventually(lambda: row(live, run.id) and payloads(live, run.id, "approval.required"))
        (asked,) = payloads(live, run.id, "approval.required")
        getattr(client, decision)(run.id, asked["approval_id"], "Within our policy.")

    with client.run() as run:
        decider = threading.Thread(target=decide)
        decider.start()
        approval = run.approve("Pay 42 EUR?")
        decider.join()
    assert approval.approved is (decision == "approve")
    assert (approval.by, approval.comment) == ("dev", "Within our policy.")
    assert payloads(live, run.id, "approval.resolved")[0]["comment"] == "Within our policy."


def test_an_approval_expires(client: Runtail) -> None:
    with client.run() as run:
        assert run.approve("Pay 42 EUR?", expires_in=1).decision == "expired"


def test_a_writer_that_starts_over_and_asks_the_same_gets_the_decision_of_before(client: Runtail, live: Stack) -> None:
    opened = client.open()

    def decide() -> None:
        eventually(lambda: payloads(live, opened.run_id, "approval.required"))
        client.approve(opened.run_id, "pay")

    def break_down(run: Run) -> None:
        decider = threading.Thread(target=decide)
        decider.start()
        assert run.approve("Pay 42 EUR?", id="pay").approved
        decider.join()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), client.run(ref=opened.ref, retried=lambda error: True) as run:
        break_down(run)
    with client.run(ref=opened.ref) as run:
        assert run.approve("Pay 42 EUR?", id="pay").approved


def test_inputs_come_once_and_in_order(client: Runtail) -> None:
    with client.run() as run:
        assert run.inputs() == []
        client.send_input(run.id, "one")
        client.send_input(run.id, "two")
        assert run.inputs() == ["one", "two"]
        assert run.inputs() == []
        sender = threading.Timer(0.3, lambda: client.send_input(run.id, "three"))
        sender.start()
        assert run.inputs(wait=True) == ["three"]
        sender.join()


# Who writes.


def test_the_same_key_is_the_same_run_and_its_next_writer(client: Runtail, live: Stack) -> None:
    def be_overtaken(first: Run) -> None:
        first.stream(["first "])
        with client.run(idempotency_key="job-1", input={"n": 1}) as second:
            second.output = second.stream(["second"])
        assert second.id == first.id
        first.emit("custom.late", {})
        first.sleep(30)

    with pytest.raises(WriterLost), client.run(idempotency_key="job-1", input={"n": 1}) as first:
        be_overtaken(first)
    assert state_of(live, first.id)["output"] == "second"
    assert payloads(live, first.id, "custom.late") == []
    assert payloads(live, first.id, "run.step") == [{"attempt": 2, "reason": "retry", "restart": True}]
    with pytest.raises(RunEnded) as ended_before, client.run(idempotency_key="job-1", input={"n": 1}):
        pass
    assert (ended_before.value.run_id, ended_before.value.run_status) == (first.id, "completed")


def test_a_run_that_is_opened_can_be_watched_before_anybody_writes_it(client: Runtail, live: Stack) -> None:
    opened = client.open(user="alice", input={"month": "May"})
    assert live.http.get(opened.watch_url, headers={"Accept": "application/json"}).json()["events"]
    with Runtail(live.url, public_url="https://runs.example.com/") as behind_a_proxy:
        seen_from_outside = behind_a_proxy.for_user("alice").watch_url(opened.run_id, opened.watch_token)
    assert seen_from_outside == opened.watch_url.replace(live.url, "https://runs.example.com")
    with Runtail(live.url) as anybody:
        watched = anybody.watch(opened.run_id, watch_token=opened.watch_token)
        assert next(watched)["type"] == "run.created"
        with client.run(ref=opened.ref) as run:
            run.stream(["grey"])
        assert [envelope["type"] for envelope in watched][-1] == "run.completed"
    assert run.id == opened.run_id


def test_the_current_run_is_found_and_outside_one_nothing_is_sent(client: Runtail, live: Stack) -> None:
    def shared() -> str:
        emit("custom.shared", {"n": 1})
        with current_run().step("Shared"):
            return current_run().stream(["a", "b"])

    assert shared() == "ab"
    assert current_run().tool("add", lambda a, b: a + b, 1, b=2) == 3
    with pytest.raises(RuntimeError):
        current_run().approve("Pay?")
    with client.run() as run:
        assert current_run() is run
        assert shared() == "ab"
    assert current_run() is not run
    assert payloads(live, run.id, "custom.shared") == [{"n": 1}]
    assert len(payloads(live, run.id, "step.started")) == 1


def test_a_block_in_a_generator_that_several_contexts_iterate_over_ends_its_run(client: Runtail, live: Stack) -> None:
    def pages() -> Iterator[str]:
        with client.run() as run, run.step("Write"):
            yield run.id
            yield "two"

    iterated = pages()
    run_id = contextvars.copy_context().run(next, iterated)
    assert contextvars.copy_context().run(list, iterated) == ["two"]
    assert state_of(live, run_id)["steps"][0]["status"] == "completed"


def test_the_log_of_an_application_is_not_filled_with_requests(
    client: Runtail, live: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with client.run() as run:
        run.stream(["grey"])
        client.read(run.id)
        list(client.events(run.id))
    assert caplog.records == []
    httpx.get(f"{live.url}/healthz")
    assert len(caplog.records) == 1
