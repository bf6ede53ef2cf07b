"""The fold: golden logs, its rules in sentences, and its laws as properties."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.protocol.events import SCHEMAS, TERMINAL, validate
from app.protocol.reducer import Fold, State, fold, initial, reduce
from app.protocol.rules import RULES
from tests.random_logs import RUN, Log, log, logs

GOLDEN = Path(__file__).parent / "golden"


def folded(*events: tuple[str, dict[str, Any]]) -> State:
    return fold(log(*events), initial(RUN))


# Golden files.


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.ndjson")), ids=lambda path: path.stem)
def test_a_golden_log_folds_to_its_golden_state(path: Path) -> None:
    envelopes = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    expected = json.loads(path.with_suffix(".state.json").read_text("utf-8"))
    assert fold(envelopes, initial(envelopes[0]["run_id"])) == expected
    assert envelopes[-1]["type"] in TERMINAL


@pytest.mark.parametrize("name", ["support", "failed", "cancelled", "restart", "resumed"])
def test_a_golden_log_holds_valid_events_only(name: str) -> None:
    for line in (GOLDEN / f"{name}.ndjson").read_text("utf-8").splitlines():
        envelope = json.loads(line)
        validate(envelope["type"], envelope["payload"])


# Order.


def test_an_event_that_does_not_follow_is_refused_and_changes_nothing() -> None:
    envelopes = log(("custom.a", {}), ("run.started", {"attempt": 1, "worker": "w"}), ("custom.c", {}))
    run = Fold(initial(RUN))
    for wrong in (envelopes[1], {**envelopes[0], "seq": 0}):
        with pytest.raises(ValueError, match="gap"):
            run.apply(wrong)
    assert run.state == initial(RUN)
    run.apply(envelopes[0])
    with pytest.raises(ValueError, match="gap"):
        run.apply(envelopes[0])


def test_an_event_of_another_run_is_refused() -> None:
    (envelope,) = log(("custom.a", {}))
    with pytest.raises(ValueError, match="in the log of run_2"):
        reduce(initial("run_2"), envelope)


def test_nothing_follows_the_terminal_event() -> None:
    ended = folded(("run.cancelled", {"reason": "requested", "last_seq": 0, "digest": "d"}))
    with pytest.raises(ValueError, match="terminal"):
        reduce(ended, log(("custom.a", {}), ("custom.b", {}))[1])


def test_every_type_has_a_rule_or_is_known_to_have_none() -> None:
    assert SCHEMAS.keys() - RULES.keys() == {"orchestration.started", "orchestration.completed"}
    assert RULES.keys() <= SCHEMAS.keys()


# Rules that the golden files do not show by themselves.


def _open(id: str, role: str = "assistant") -> tuple[str, dict[str, Any]]:
    return "message.started", {"message_id": id, "role": role}


def _delta(id: str, text: str) -> tuple[str, dict[str, Any]]:
    return "message.delta", {"message_id": id, "text": text}


def _close(id: str) -> tuple[str, dict[str, Any]]:
    return "message.completed", {"message_id": id, "chars": 0}


def _retry(restart: bool) -> tuple[str, dict[str, Any]]:
    return "run.step", {"attempt": 2, "reason": "worker_lost", "restart": restart}


def test_the_answer_is_an_empty_draft_from_the_first_event() -> None:
    state = folded(("run.created", {"agent": "a", "input_preview": None}))
    assert state["answer"] == {"text": "", "status": "draft"}
    assert state["status"] == "pending"


def test_the_answer_follows_the_last_assistant_message() -> None:
    events = [
        _open("1"),
        _delta("1", "one"),
        _open("2"),
        _delta("2", "two"),
        _open("3", "user"),
        _delta("3", "hi"),
    ]
    assert folded(*events)["answer"]["text"] == "two"
    assert folded(*events, _delta("1", "!"))["answer"]["text"] == "two"
    assert folded(*events, _open("4"))["answer"]["text"] == ""


def test_the_answer_falls_back_when_the_message_it_follows_is_abandoned() -> None:
    state = folded(_open("1"), _delta("1", "one"), _close("1"), _open("2"), _delta("2", "tw"), _retry(restart=False))
    assert [m["status"] for m in state["messages"]] == ["completed", "abandoned"]
    assert state["answer"] == {"text": "one", "status": "draft"}


def test_a_run_that_starts_over_has_no_answer_yet() -> None:
    state = folded(_open("1"), _delta("1", "one"), _close("1"), _retry(restart=True))
    assert state["answer"]["text"] == ""
    assert (state["status"], state["attempt"]) == ("running", 2)


def test_a_run_that_starts_over_has_no_step_left_and_shows_one_that_begins_again_once() -> None:
    begun = [("step.started", {"step_id": id, "title": id, "index": 0}) for id in "ab"]
    done = ("step.completed", {"step_id": "a", "duration_ms": 1})
    called = ("tool.completed", {"tool_call_id": "c", "preview": 1, "truncated": False, "bytes": 1, "duration_ms": 1})
    calls = [("tool.started", {"tool_call_id": "c", "name": "c", "label": "c"}), called]
    over = folded(*begun, done, *calls, _retry(restart=True))
    assert [step["status"] for step in over["steps"]] == ["abandoned", "abandoned"]
    assert [call["status"] for call in over["tool_calls"]] == ["completed"]  # it was done, whatever comes next
    again = folded(*begun, done, _retry(restart=True), begun[0], done)
    assert [(step["id"], step["status"]) for step in again["steps"]] == [("a", "completed"), ("b", "abandoned")]


def test_a_closed_message_takes_no_more_text() -> None:
    state = folded(_open("1"), _close("1"), _delta("1", "late"), _open("2"), _retry(restart=False), _delta("2", "late"))
    assert [m["text"] for m in state["messages"]] == ["", ""]
    assert [m["status"] for m in state["messages"]] == ["completed", "abandoned"]


def test_a_new_plan_is_pending_and_a_changed_one_keeps_what_was_done() -> None:
    two = [{"id": "a", "title": "A"}, {"id": "b", "title": "B"}]
    begun = ("step.started", {"step_id": "a", "title": "A", "index": 0})
    done = ("step.completed", {"step_id": "a", "duration_ms": 1})
    plans = {
        kind: folded(("plan.created", {"steps": two}), begun, done, (kind, {"steps": two[::-1]}))["plan"]
        for kind in ("plan.created", "plan.updated")
    }
    assert [(entry["id"], entry["status"]) for entry in plans["plan.updated"]] == [
        ("b", "pending"),
        ("a", "completed"),
    ]
    assert [entry["status"] for entry in plans["plan.created"]] == ["pending", "pending"]


def test_a_step_that_starts_again_takes_its_old_place() -> None:
    begun = [("step.started", {"step_id": id, "title": id, "index": 0}) for id in "ab"]
    failed = ("step.failed", {"step_id": "a", "error": {"code": "x", "message": "y"}})
    state = folded(*begun, failed, begun[0])
    assert [(step["id"], step["status"]) for step in state["steps"]] == [("a", "running"), ("b", "running")]
    assert "error" not in state["steps"][0]


def test_usage_is_summed_and_replaced_by_what_the_run_reports_at_its_end() -> None:
    used = ("context.usage", {"input_tokens": 3, "cost": 0.5})
    state = folded(used, used, ("context.usage", {"output_tokens": 1, "cost": None}))
    assert state["usage"] == {"input_tokens": 6, "cost": 1.0, "output_tokens": 1}
    assert state["context"] == {"input_tokens": 3, "cost": None, "output_tokens": 1}
    ended = ("run.completed", {"output": 1, "usage": {"input_tokens": 9}, "digest": "d"})
    assert folded(used, ended)["usage"] == {"input_tokens": 9}


# Laws.

unhurried = settings(deadline=None)  # a loaded machine is no failure


@unhurried
@given(logs, st.data())
def test_the_fold_is_the_same_whatever_the_chunking(envelopes: Log, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(envelopes)), max_size=4)))
    state = initial(RUN)
    for start, end in zip([0, *cuts], [*cuts, len(envelopes)], strict=True):
        state = fold(envelopes[start:end], state)
        state = json.loads(json.dumps(state))  # as it comes back from the database
    assert state == fold(envelopes, initial(RUN))


@unhurried
@given(logs)
def test_reducing_one_by_one_changes_neither_state_nor_event(envelopes: Log) -> None:
    before = copy.deepcopy(envelopes)
    states = [initial(RUN)]
    kept = copy.deepcopy(states)
    for envelope in envelopes:
        states.append(reduce(states[-1], envelope))
        kept.append(copy.deepcopy(states[-1]))
    assert envelopes == before
    assert states == kept
    assert states[-1] == fold(envelopes, initial(RUN))


@unhurried
@given(logs)
def test_a_writer_that_folds_in_place_gets_the_same_state_and_leaves_its_events_alone(envelopes: Log) -> None:
    before = copy.deepcopy(envelopes)
    run = Fold(initial(RUN))
    for envelope in envelopes:
        run.apply(envelope)
    assert run.state == fold(envelopes, initial(RUN))
    assert envelopes == before


@unhurried
@given(logs.filter(bool))
def test_a_type_that_nobody_knows_only_moves_seq_and_ts(envelopes: Log) -> None:
    state = fold(envelopes[:-1], initial(RUN))
    later = {**envelopes[-1], "type": "later.added"}
    assert reduce(state, later) == {**state, "last_seq": later["seq"], "last_ts": later["ts"]}


@unhurried
@given(logs.filter(bool))
def test_a_field_that_nobody_knows_changes_nothing(envelopes: Log) -> None:
    state = fold(envelopes[:-1], initial(RUN))
    last = envelopes[-1]
    richer = {**last, "payload": {**last["payload"], "added_later": {"a": 1}}, "added_later": 1}
    assert reduce(state, richer) == reduce(state, last)
