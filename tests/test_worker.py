"""Agents in a real worker process, through HTTP: what they may do wrong, and what is to be seen of it."""

import json
import os
from collections import Counter
from itertools import pairwise
from typing import Any

import psutil
import pytest
from redis import Redis

from app.protocol.digest import digest
from app.protocol.events import TERMINAL, dumps, validate
from app.protocol.reducer import fold, initial
from app.storage.run_store import AgentRecord, Database, Registry
from runtail.redaction import PREVIEW_MAX_BYTES, REDACTED
from tests.conftest import StackMaker
from tests.harness import Process, Stack, eventually

MESSAGE_BYTES = 1_048_576
"""What many clients of WebSockets take at most."""
SECRET = "the-password-is-hunter2"
Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    server = module_stack()
    server.start_web()
    return server


@pytest.fixture(scope="module")
def worker(server: Stack) -> Process:
    return server.start_worker()


def _misbehave(server: Stack, way: str, **more: Any) -> tuple[dict[str, Any], Events]:
    run_id = server.start("misbehave", {"way": way}, **more)
    run = server.ended(run_id)
    events = server.events(run_id)
    check_log(run, events)
    return run, events


def check_log(run: dict[str, Any], events: Events) -> None:
    """What holds of every log: contiguous, valid, one terminal event at its end, the digest is that of the fold."""
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[0]["type"] == "run.created"
    assert [event["type"] for event in events if event["type"] in TERMINAL] == [events[-1]["type"]]
    for event in events:
        validate(event["type"], event["payload"])
    before = fold(events[:-1], initial(run["run_id"]))
    assert digest(before, run["output"]) == events[-1]["payload"]["digest"] == run["digest"]
    assert fold(events[-1:], before) == run["state"]
    assert run["state"]["status"] == run["status"] == events[-1]["type"].removeprefix("run.")
    assert not [m for m in run["state"]["messages"] if m["status"] == "open"]
    assert not [c for c in run["state"]["tool_calls"] + run["state"]["steps"] if c["status"] == "running"]


def _of(events: Events, type: str) -> Events:
    return [event["payload"] for event in events if event["type"] == type]


@pytest.mark.usefixtures("worker")
class TestAnAgentThatFails:
    @pytest.mark.parametrize(
        "way",
        [
            "raises",
            "raises_in_tool",
            "system_exit",
            "system_exit_in_tool",
            "keyboard_interrupt",
            "greenlet_exit",
            "own_interruption",
        ],
    )
    def test_the_outside_sees_a_fixed_text_and_the_log_the_details(
        self, server: Stack, worker: Process, way: str
    ) -> None:
        run, events = _misbehave(server, way)
        exits = {
            "system_exit": "SystemExit",
            "system_exit_in_tool": "SystemExit",
            "keyboard_interrupt": "KeyboardInterrupt",
            "greenlet_exit": "GreenletExit",
        }
        message = f"The agent raised {exits[way]}." if way in exits else "The agent failed unexpectedly"
        assert run["status"] == "failed"
        error = {"code": "agent_error", "message": message}
        in_a_tool = {"code": "tool_error", "message": "The tool failed.", "retryable": False}
        assert run["error"] == (in_a_tool if way == "raises_in_tool" else error)
        assert SECRET not in str(events) + str(run)
        eventually(lambda: run["run_id"] in worker.log.read_text())
        log = worker.log.read_text()
        assert SECRET in log[log.index(run["run_id"]) :]
        assert worker.popen.poll() is None
        assert _misbehave(server, "text_only")[0]["status"] == "completed", "the worker goes on"

    def test_endless_recursion_is_one_more_error(self, server: Stack, worker: Process) -> None:
        run, _ = _misbehave(server, "recursion")
        assert run["error"]["code"] == "agent_error"
        assert worker.popen.poll() is None

    def test_a_tool_error_may_say_in_public_what_went_wrong(self, server: Stack) -> None:
        run, events = _misbehave(server, "raises_its_own_code")
        assert run["error"] == {"code": "no_stock", "message": "The shelf is empty.", "retryable": True}
        (failed,) = _of(events, "tool.failed")
        assert (failed["code"], failed["message"], failed["retryable"]) == ("no_stock", "The shelf is empty.", True)
        assert [call["status"] for call in run["state"]["tool_calls"]] == ["failed"]
        assert [step["status"] for step in run["state"]["steps"]] == ["failed"]

    def test_a_run_past_its_timeout_fails(self, server: Stack) -> None:
        run, events = _misbehave(server, "sleeps", timeout_s=1)
        assert run["error"] == {"code": "timeout", "message": "The run took longer than 1 s."}
        assert run["state"]["answer"] == {"text": "before ", "status": "final"}
        assert _of(events, "step.failed")[0]["error"]["code"] == "interrupted"

    def test_an_agent_that_this_worker_does_not_have_fails_the_run(self, server: Stack) -> None:
        database = Database(server.env["DATABASE_URL"], 1)
        Registry(database).put_agent(AgentRecord("elsewhere", {"type": "object"}, "gevent", "1"))
        database.close()
        run_id = server.start("elsewhere", {})
        run = server.ended(run_id)
        assert run["error"] == {"code": "agent_unavailable", "message": "This worker has no agent 'elsewhere'."}
        check_log(run, server.events(run_id))


@pytest.mark.usefixtures("worker")
class TestWhatAnAgentReturns:
    @pytest.mark.parametrize(
        ("way", "reason"),
        [
            ("nan", "not finite at $.score"),
            ("huge_integer", "2^53-1) at $.n"),
            ("raw_bytes", "a bytes has no JSON form at $"),
            ("an_object", "a object has no JSON form at $.made"),
            ("key_not_text", "a key that is not text (int)"),
            ("too_deep", "more than 64 levels"),
            ("contains_itself", "more than 64 levels"),
            ("too_large", "larger than 1000000 bytes"),
        ],
    )
    def test_what_is_not_json_is_an_invalid_output(self, server: Stack, way: str, reason: str) -> None:
        run, _ = _misbehave(server, way)
        assert run["status"] == "failed"
        assert run["error"]["code"] == "invalid_output"
        assert reason in run["error"]["message"]
        assert run["output"] is None

    def test_another_text_than_was_streamed_is_said_in_its_place(self, server: Stack) -> None:
        run, events = _misbehave(server, "other_text")
        assert run["output"] == run["state"]["answer"]["text"] == "what was returned"
        assert [m["status"] for m in run["state"]["messages"]] == ["abandoned", "completed"]
        assert events[-1]["payload"]["digest"] == run["digest"]

    def test_threads_of_a_tool_know_where_they_are(self, server: Stack) -> None:
        run, events = _misbehave(server, "in_threads")
        assert len(set(run["output"]["keys"])) == 1
        (started,), (progress,) = _of(events, "tool.started"), _of(events, "tool.progress")
        assert started["tool_call_id"] == progress["tool_call_id"]

    def test_steps_that_overlap_are_left_in_any_order(self, server: Stack) -> None:
        run, _ = _misbehave(server, "overlapping_steps")
        second = next(step["id"] for step in run["state"]["steps"] if step["title"] == "Second")
        assert [call["step_id"] for call in run["state"]["tool_calls"]] == [second, None]

    def test_another_text_than_was_streamed_fails_a_strict_agent(self, server: Stack) -> None:
        run = server.ended(server.start("strict", {"text": "what was returned"}))
        assert run["error"]["code"] == "reconciliation_failed"
        assert run["output"] is None
        assert run["state"]["answer"] == {"text": "what was streamed", "status": "final"}
        assert server.ended(server.start("strict", {"text": "what was streamed"}))["output"] == "what was streamed"

    @pytest.mark.parametrize("way", ["two_texts", "header_and_text", "stripped_text", "no_text"])
    def test_what_is_made_of_streamed_texts_is_the_output(self, server: Stack, way: str) -> None:
        run, _ = _misbehave(server, way)
        texts = [m["text"] for m in run["state"]["messages"] if m["status"] == "completed"]
        assert run["status"] == "completed"
        assert (run["output"], texts) == {
            "two_texts": ("one text, another", ["one text, ", "another"]),
            "header_and_text": ("Report: the text", ["Report: the text"]),
            "stripped_text": ("the text", [" the text\n"]),
            "no_text": ("", [""]),
        }[way]

    def test_the_text_that_was_streamed_is_the_output(self, server: Stack) -> None:
        run, _ = _misbehave(server, "same_text")
        assert run["output"] == run["state"]["answer"]["text"] == "what was streamed"

    def test_a_text_that_was_not_streamed_becomes_the_answer(self, server: Stack) -> None:
        run, events = _misbehave(server, "text_only")
        assert run["output"] == run["state"]["answer"]["text"] == "an answer"
        assert [e["type"] for e in events[2:5]] == ["message.started", "message.delta", "message.completed"]

    @pytest.mark.parametrize(
        ("way", "chars"),
        [("plain", 2_000_000), ("control", 500_000), ("separators", 500_000), ("trucks", 500_000), ("sources", 0)],
    )
    def test_what_is_streamed_is_written_in_events_that_any_client_takes(
        self, server: Stack, way: str, chars: int
    ) -> None:
        run_id = server.start("misbehave", {"way": f"much_{way}"})
        assert server.ended(run_id)["status"] == "completed", server.read(run_id)["error"]
        accept = {"Accept": "application/x-ndjson"}
        lines = server.http.get(f"/runs/{run_id}/events", headers=accept).content.split(b"\n")
        assert max(map(len, lines)) < MESSAGE_BYTES
        events = list(map(json.loads, filter(None, lines)))
        texts = [event["payload"]["text"] for event in events if event["type"] == "message.delta"]
        assert len("".join(texts)) == chars

    @pytest.mark.parametrize("way", ["long_text", "long_text_only", "long_stream"])
    def test_an_answer_of_more_than_two_megabytes_is_said_once(self, server: Stack, way: str) -> None:
        run_id = server.start("misbehave", {"way": way})
        run = server.ended(run_id)
        text = "some words é " * 200_000
        assert run["status"] == "completed", run["error"]
        assert run["output"] == ({"text": text, "sources": [], "checks": []} if way == "long_stream" else text)
        end = server.events(run_id)[-1]["payload"]
        assert (end["output"], end["output_is"]) == (None, "streamed" if way == "long_stream" else "answer")

    def test_nothing_is_made_up_from_what_was_streamed(self, server: Stack) -> None:
        run, _ = _misbehave(server, "nothing")
        assert run["output"]["text"] == "an answer"
        assert run["output"]["sources"][0]["title"] == "A book"
        assert run["output"]["checks"] == [{"name": "tone", "passed": True, "score": 0.5, "note": "kind"}]

    def test_tuples_become_lists(self, server: Stack) -> None:
        run, _ = _misbehave(server, "tuple_and_mapping")
        assert run["output"] == {"pair": [1, 2.5], "none": None, "yes": True}


@pytest.mark.usefixtures("worker")
class TestWhatAnAgentEmits:
    @pytest.mark.parametrize(
        ("way", "refusal"),
        [
            ("reserved_type", "InvalidEvent"),
            ("unknown_type", "InvalidEvent"),
            ("bad_name", "InvalidEvent"),
            ("emitted_nan", "InvalidJson"),
            ("emitted_object", "InvalidJson"),
            ("emitted_list", "InvalidCall"),
            ("emitted_too_much", "InvalidEvent"),
        ],
    )
    def test_what_may_not_be_emitted_is_refused_at_the_call(self, server: Stack, way: str, refusal: str) -> None:
        run, events = _misbehave(server, way)
        assert run["output"] == {"refused": refusal}
        assert len(events) == 3, "nothing of it is in the log"

    def test_every_call_leaves_valid_events(self, server: Stack) -> None:
        run_id = server.start("showcase", {})
        run, events = server.ended(run_id), server.events(run_id)
        check_log(run, events)
        assert run["status"] == "completed"
        state = run["state"]
        assert [(s["title"], s["status"]) for s in state["plan"]] == [("First", "completed"), ("Second", "completed")]
        assert [s["title"] for s in state["steps"]] == ["First", "Inside", "Second"]
        assert [(c["name"], c["status"]) for c in state["tool_calls"]] == [("add", "completed"), ("fail", "failed")]
        assert state["tool_calls"][0]["preview"] == 3
        assert state["tool_calls"][0]["summary"] == "a=1"
        assert state["usage"] == {"input_tokens": 11, "output_tokens": 5, "cost": 0.5}
        assert run["output"] == state["answer"]["text"] == "".join(f"word{n} " for n in range(20))
        assert {event["type"] for event in events} >= {"tool.progress", "step.progress", "custom.note"}
        inside = next(s["id"] for s in state["steps"] if s["title"] == "Inside")
        progress = [p for p in _of(events, "step.progress") if p["step_id"] == inside]
        assert progress == [{"step_id": inside, "fraction": 1.0, "label": "more than all"}]
        assert sum(len(p["text"]) for p in _of(events, "message.delta")) == len(run["output"]) + len("internal")

    def test_nul_and_lone_surrogates_are_cleaned_and_the_run_completes(self, server: Stack) -> None:
        run, events = _misbehave(server, "dirty_text")
        assert run["status"] == "completed"
        assert run["output"] == "NUL \ufffd, lone \ufffd, pair 😀"
        assert _of(events, "custom.tick") == [{"text": "NUL \ufffd, lone \ufffd", "key\ufffd": 1}]
        assert _of(events, "tool.completed")[0]["preview"] == {"text": "\ufffd \ufffd"}
        assert _misbehave(server, "dirty_output")[0]["output"] == {"text": "NUL \ufffd, lone \ufffd"}

    def test_a_text_of_a_megabyte_arrives_whole(self, server: Stack) -> None:
        run, _ = _misbehave(server, "megabyte")
        assert run["output"] == "0123456789abcdef" * 65_536

    def test_a_large_tool_result_is_cut_to_a_preview(self, server: Stack) -> None:
        run, events = _misbehave(server, "huge_tool_result")
        assert run["output"] == {"rows": 10_000}
        (big,) = _of(events, "tool.completed")
        assert big["truncated"] is True
        assert big["bytes"] > 2_000_000
        assert len(dumps(big["preview"]).encode()) <= PREVIEW_MAX_BYTES

    def test_a_tool_result_that_could_not_be_recorded_fails_the_run(self, server: Stack) -> None:
        run, events = _misbehave(server, "odd_tool_result")
        assert run["error"]["code"] == "invalid_output"
        [failed] = _of(events, "tool.failed")
        assert failed["code"] == "invalid_output"
        assert "is not JSON" in failed["message"]

    def test_secrets_do_not_leave_under_their_keys(self, server: Stack) -> None:
        run_id = server.start("misbehave", {"way": "secrets", "client_secret": SECRET})
        run, events = server.ended(run_id), server.events(run_id)
        check_log(run, events)
        assert run["status"] == "completed"
        assert SECRET not in str(events)
        assert _of(events, "run.created")[0]["input_preview"] == {"way": "secrets", "client_secret": REDACTED}
        expected = {"user": "ann", "password": REDACTED, "nested": [{"apiKey": REDACTED}], "tokens": 5}
        assert _of(events, "tool.completed")[0]["preview"] == expected
        assert _of(events, "custom.login") == [{"Authorization": REDACTED, "user": "ann", "businessName": "Acme"}]
        assert run["output"] == {"user": "ann", "refresh_token": REDACTED}

    def test_what_is_left_open_is_closed_at_the_end(self, server: Stack) -> None:
        run, events = _misbehave(server, "message_left_open")
        assert run["status"] == "completed"
        assert [e["type"] for e in events[-3:]] == ["message.completed", "step.failed", "run.completed"]
        assert run["output"]["text"] == "unfinished"

    def test_messages_may_overlap(self, server: Stack) -> None:
        run, _ = _misbehave(server, "two_messages")
        assert [message["text"] for message in run["state"]["messages"]] == ["ac", "b"]

    def test_shared_code_emits_inside_a_run_and_nothing_outside(self, server: Stack) -> None:
        _, events = _misbehave(server, "module_emit")
        assert _of(events, "custom.shared") == [{"n": 1}, {"n": 2}]


def test_runs_of_one_worker_do_not_mix(server: Stack, worker: Process) -> None:
    ids = [server.start("emit", {"count": 30, "text": f"{n:02}|", "interval_ms": 1}) for n in range(20)]
    for n, run_id in enumerate(ids):
        run = server.ended(run_id)
        assert run["output"]["text"] == f"{n:02}|" * 30
        check_log(run, server.events(run_id))


def test_a_worker_holds_at_most_six_redis_connections_idle_and_after_a_hundred_runs(module_stack: StackMaker) -> None:
    server = module_stack()
    server.start_web()
    worker = server.start_worker()
    port = Redis.from_url(server.env["REDIS_URL"]).connection_pool.connection_kwargs["port"]

    def connections() -> int:
        return sum(c.raddr and c.raddr.port == port for c in psutil.Process(worker.pid).net_connections("tcp"))

    before = connections()
    ids = [server.start("emit", {"count": 20, "interval_ms": 5}) for _ in range(100)]
    for run_id in ids:
        assert server.ended(run_id, 30)["status"] == "completed"
        run = server.services.store.get(run_id)
        assert run is not None
        assert run.epoch == 1, "none was taken for lost in the rush"
    after = connections()
    print(f"Redis connections of a worker: {before} idle, {after} after 100 runs")
    assert before <= 6
    assert after <= 6


def test_hooks_of_an_entry_point_see_every_event(module_stack: StackMaker) -> None:
    here = os.path.join(os.path.dirname(__file__))
    paths = os.pathsep.join(os.path.join(here, name) for name in ("agents_for_tests", "hooks_for_tests"))
    server = module_stack(PYTHONPATH=paths)
    server.start_web()
    server.start_worker()
    run_id = server.start("emit", {"count": 3, "text": "Dear Ms Doe. ", "type": "message.delta"})
    run = server.ended(run_id)
    events = server.events(run_id)
    check_log(run, events)
    assert run["output"]["text"] == "Dear Ms X. " * 3
    assert "Doe" not in str(events)
    assert run["input"]["text"] == "Dear Ms Doe. ", "the agent itself is given what was sent"


def test_pauses_between_events_are_those_of_the_agent(server: Stack, worker: Process) -> None:
    run_id = server.start("emit", {"count": 5, "interval_ms": 100, "type": "custom.tick", "stamp": True})
    server.ended(run_id)
    stamps = [int(p["text"].split("@")[1]) for p in _of(server.events(run_id), "custom.tick")]
    assert all(90_000_000 < b - a < 400_000_000 for a, b in pairwise(stamps))
    assert Counter(e["type"] for e in server.events(run_id))["custom.tick"] == 5


def test_the_agent_of_the_readme_runs(server: Stack, worker: Process) -> None:
    run = server.ended(server.start("greet", {"name": "ann"}))
    assert run["output"]["text"] == "Good to see you, Ann "
    assert [step["title"] for step in run["state"]["steps"]] == ["Look the name up"]
    assert [call["label"] for call in run["state"]["tool_calls"]] == ["Looking the name up"]
