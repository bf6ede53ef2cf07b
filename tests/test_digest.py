"""The digest, recomputed from the logs without any of the code that makes it."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given
from hypothesis import strategies as st

from app.protocol.digest import LARGEST_INTEGER, _canonical, digest
from app.protocol.reducer import State, fold, initial
from app.protocol.state import output_of

TESTS = Path(__file__).parent
GOLDEN = sorted((TESTS / "golden").glob("*.ndjson"))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def before_the_end(envelopes: list[dict[str, Any]]) -> State:
    return fold(envelopes[:-1], initial(envelopes[0]["run_id"]))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_digest_of_a_golden_log_is_the_one_it_carries(path: Path) -> None:
    envelopes = read(path)
    end = envelopes[-1]["payload"]
    assert digest(before_the_end(envelopes), output_of(before_the_end(envelopes), end)) == end["digest"]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_digest_can_be_recomputed_by_hand_from_the_finished_run(path: Path) -> None:
    state = json.loads(path.with_suffix(".state.json").read_text("utf-8"))
    outcome = {
        "output": state["output"],
        "messages": [{k: m[k] for k in ("id", "text")} for m in state["messages"] if m["status"] != "abandoned"],
        "tool_calls": [{k: c[k] for k in ("id", "name", "status")} for c in state["tool_calls"]],
        "last_seq": state["last_seq"] - 1,
    }
    assert hashlib.sha256(rfc8785.dumps(outcome)).hexdigest() == state["digest"]


def test_abandoned_messages_are_no_part_of_the_digest() -> None:
    envelopes = read(TESTS / "golden" / "restart.ndjson")
    state = before_the_end(envelopes)
    sealed = digest(state, "x")
    for message in state["messages"]:
        message["text"] += "!" if message["status"] == "abandoned" else ""
    assert digest(state, "x") == sealed
    state["messages"][-1]["text"] += "!"
    assert digest(state, "x") != sealed


@pytest.mark.parametrize("text", ["\x01é" * 40_000, '"🚚\\\u2028' * 30_000, "x" * 32_769])
def test_a_long_text_has_the_digest_that_anybody_computes(text: str) -> None:
    outcome = {"output": text, "messages": [], "tool_calls": [], "last_seq": 0}
    assert digest(initial("run_1"), text) == hashlib.sha256(rfc8785.dumps(outcome)).hexdigest()


def test_numbers_that_are_equal_have_one_digest() -> None:
    state = initial("run_1")
    assert digest(state, {"a": 1.0, "b": 2}) == digest(state, {"b": 2.0, "a": 1})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-LARGEST_INTEGER, LARGEST_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(JSON)
@example([0.0, -0.0, 1e-6, 9.999999999999999e-7, 1e-7, 1.5e-10, 5e-324, 1e15, 1e16, 1e20, 123456789012345680000.0])
@example([1e21, -1e21, 1.7976931348623157e308, 333333333.33333329, 4.5, 2e-3, 1e23, -1.0, 100.0, 2.0**53, True])
def test_what_is_sealed_is_the_canonical_json_of_the_reference(value: object) -> None:
    assert "".join(_canonical(value)).encode() == rfc8785.dumps(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_read_back_as_the_same_number(value: float) -> None:
    assert float("".join(_canonical(value))) == value


@pytest.mark.parametrize("value", [2**53, -(2**53), float("nan"), float("inf"), float("-inf")])
def test_a_number_without_a_canonical_form_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="canonical JSON has no"):
        list(_canonical([value]))


def test_a_run_that_has_ended_is_not_sealed_again() -> None:
    envelopes = read(TESTS / "golden" / "failed.ndjson")
    with pytest.raises(ValueError, match="before the terminal event"):
        digest(fold(envelopes, initial(envelopes[0]["run_id"])), None)


def test_the_worked_example_of_the_document_is_right() -> None:
    text = (TESTS.parent / "docs" / "protocol.md").read_text("utf-8")
    example = text.split("#### Worked example", 1)[1].split("\n#", 1)[0]
    blocks = re.findall(r"```\w*\n(.*?)```", example, re.DOTALL)
    log, canonical, sealed = blocks[0], blocks[1].strip(), blocks[2].strip()
    envelopes = [json.loads(line) for line in log.splitlines()]
    state = before_the_end(envelopes)
    assert hashlib.sha256(canonical.encode()).hexdigest() == sealed
    assert digest(state, envelopes[-1]["payload"]["output"]) == sealed
    assert envelopes[-1]["payload"]["digest"] == sealed
