"""How a run ends: what is closed, what the output is, what the terminal event says."""

from typing import Any

import pytest

from app.errors import AgentError, ReconciliationFailed
from app.protocol.digest import digest
from app.protocol.ending import Ending, check_strict, closing, given_output, is_said, terminal_payload
from app.protocol.events import TERMINAL, validate
from app.protocol.reducer import State, initial
from app.storage.log_writer import LogWriter

ENDINGS = [Ending.completed({"n": 1}), Ending.failed(AgentError()), Ending.cancelled("requested")]


def _writer() -> LogWriter:
    """A run in the middle of everything."""
    writer = LogWriter("run_1", 1, initial("run_1"), appended=0, archived=0)
    writer.add("run.created", {"agent": "a", "input_preview": None})
    writer.add("run.started", {"attempt": 1, "worker": "w"})
    writer.add("plan.created", {"steps": [{"id": "outer", "title": "Outer"}, {"id": "later", "title": "Later"}]})
    writer.add("step.started", {"step_id": "outer", "title": "Outer", "index": 0})
    writer.add("step.started", {"step_id": "inner", "title": "Inner", "index": 2})
    writer.add("tool.started", {"tool_call_id": "call", "name": "t", "label": "t", "summary": ""})
    writer.add("message.started", {"message_id": "msg", "role": "assistant"})
    writer.add("message.delta", {"message_id": "msg", "text": "half an ans"})
    return writer


def _state(**changes: Any) -> State:
    return {**_writer().state, **changes}  # type: ignore[typeddict-item]


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.status)
def test_everything_open_is_closed_innermost_first(ending: Ending) -> None:
    writer = _writer()
    closed = list(closing(writer.state, ending))
    assert [(type, payload.get("step_id")) for type, payload in closed] == [
        ("message.completed", None),
        ("tool.failed", None),
        ("step.failed", "inner"),
        ("step.failed", "outer"),
    ]
    for type, payload in closed:
        validate(type, payload)
        writer.add(type, payload)
    assert list(closing(writer.state, ending)) == [], "nothing is left to close"
    code = "cancelled" if ending.status == "cancelled" else "interrupted"
    assert closed[1][1]["code"] == closed[2][1]["error"]["code"] == code
    assert closed[0][1]["chars"] == len("half an ans")


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.status)
def test_the_terminal_event_is_valid_and_seals_what_was_before_it(ending: Ending) -> None:
    writer = _writer()
    for type, payload in list(closing(writer.state, ending)):
        writer.add(type, payload)
    payload = terminal_payload(writer.state, ending)
    assert ending.type in TERMINAL
    validate(ending.type, payload)
    assert payload["digest"] == digest(writer.state, ending.output)
    head = writer.head
    writer.add(ending.type, payload)
    assert (writer.state["status"], writer.state["digest"]) == (ending.status, payload["digest"])
    if ending.status == "cancelled":
        assert payload["last_seq"] == head
    with pytest.raises(ValueError, match="terminal"):
        writer.add("custom.late", {})


def test_a_failure_says_its_code_and_its_public_text() -> None:
    payload = terminal_payload(_state(), Ending.failed(AgentError()))
    assert payload["error"] == {"code": "agent_error", "message": AgentError.title}


def test_an_output_that_is_not_text_is_taken_as_it_is() -> None:
    for output in ({"a": 1}, [], 0, False, 1.5):
        assert given_output(_state(), output) == output


def test_a_strict_text_must_be_the_one_that_was_streamed() -> None:
    check_strict(_state(), "half an ans")
    for text in ("", "half an answer", "half an ans "):
        with pytest.raises(ReconciliationFailed):
            check_strict(_state(), text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("two", True),
        ("one two", True),
        (" onetwo\n", True),
        ("one", False),
        ("two one", False),
        ("one gone two", False),
        ("system one two", False),
        ("", False),
    ],
)
def test_a_text_is_said_that_is_the_answer_or_all_messages_joined(text: str, said: bool) -> None:
    texts = [("system", "system", "completed"), ("assistant", "one ", "completed"), ("assistant", "gone", "abandoned")]
    texts.append(("assistant", "two", "completed"))
    messages = [{"id": t, "role": r, "text": t, "status": s} for r, t, s in texts]
    assert is_said(_state(messages=messages, answer={"text": "two", "status": "draft"}), text) is said


def test_nothing_is_made_up_from_answer_sources_and_checks() -> None:
    state = _state(sources=[{"title": "s"}], checks=[{"name": "c"}])
    assert given_output(state, None) == {"text": "half an ans", "sources": [{"title": "s"}], "checks": [{"name": "c"}]}
