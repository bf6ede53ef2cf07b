"""Long loops have breaks, and what is made in pieces is to the letter what would be made in one go."""

import json
import subprocess
import sys
import time
from typing import Any

import gevent
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from app.pace import ITEMS_AT_ONCE, dumps_paced, in_chunks, loads_paced, paced
from app.protocol.digest import digest
from app.protocol.events import dumps
from app.protocol.reducer import State, initial
from app.protocol.writing import ELEMENT, PIECE, bits
from runtail.redaction import redact
from runtail.values import clean
from tests.harness import ROOT

_texts = st.text(st.characters(exclude_categories=["Cs"]))  # a lone surrogate has no UTF-8, and was cleaned away
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | _texts,
    lambda inner: st.lists(inner) | st.dictionaries(_texts, inner),
)  # fmt: skip


def _state(texts: list[str], calls: list[str]) -> State:
    state = initial("run_1")
    state["messages"] = [{"id": str(n), "text": text, "status": "completed"} for n, text in enumerate(texts)]
    state["tool_calls"] = [{"id": name, "name": name, "status": "failed", "fraction": 1} for name in calls]
    return state


@settings(deadline=None)
@given(_values, st.lists(_texts, max_size=3), st.lists(_texts, max_size=3))
def test_the_digest_is_over_the_canonical_json(output: Any, texts: list[str], calls: list[str]) -> None:
    sealed: list[str] = []

    def pace(pieces: Any) -> Any:
        for piece in pieces:
            sealed.append(piece)
            yield piece

    state = _state(texts, calls)
    outcome = {
        "output": output,
        "messages": [{"id": m["id"], "text": m["text"]} for m in state["messages"]],
        "tool_calls": [{k: call[k] for k in ("id", "name", "status")} for call in state["tool_calls"]],
        "last_seq": 0,
    }
    assert digest(state, output, pace) == digest(state, output)
    assert "".join(sealed).encode() == rfc8785.dumps(outcome)


@settings(deadline=None)
@given(st.dictionaries(_texts, _values))
def test_an_object_in_pieces_is_the_same_text(value: dict[str, Any]) -> None:
    assert dumps_paced(value) == dumps(value)


def _deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


ESCAPED = "a text that is escaped"
LARGE: dict[str, Any] = {
    "one text": {"messages": [{"id": "m", "text": "é\n" * 1_000_000}]},
    ESCAPED: ["\x01" * 300_000, '\\"🚚\u2028' * 50_000],
    "many texts": {"messages": [{"id": f"m{n}", "text": "some words " * 70} for n in range(5_000)]},
    "many small keys": {f"k{n}": n for n in range(200_000)},
    "many keys in one item": {"steps": [{"id": "a"}, {"error": {f"k{n}": [n] for n in range(50_000)}}, {"id": "b"}]},
    "objects under many keys": {f"item {n:05}": {"n": n} for n in range(5_000)},
    "an object under one long key": {"k" * 40_000: {"n": 1}},
    "small items, then large ones": [*[{"n": n} for n in range(20_000)], *[{"a": list(range(15_000))}] * 20],
    "depth": {"a": [_deep(60)] * 3_000},
    "deep and wide": {"a": {"b": {"c": {"d": [{"e": list(range(90_000))}]}}}},
    "tool calls with results": {
        "tool_calls": [{"id": n, "preview": {f"k{k}": k for k in range(90)}} for n in range(2_000)]
    },
    "a long plan": {"plan": [{"id": f"p{n}", "title": "x" * 900, "status": "pending"} for n in range(1_000)]},
    "nothing": {"a": [], "b": {}, "c": (), "d": ("x",), "e": None},
    "a list of all kinds": [None, True, 1.5, -(2**53) + 1, "", "\u2028", [[]], {"": {}}] * 10_000,
}
large = pytest.mark.parametrize("name", LARGE)
ELEMENTS_AT_ONCE = PIECE // ELEMENT
ESCAPED_CHARS = len(dumps("\x01")[1:-1])
"""What becomes of one character at most."""


@large
def test_a_large_value_in_pieces_is_the_same_text(name: str) -> None:
    assert dumps_paced(LARGE[name]) == dumps(LARGE[name])


@large
def test_no_piece_of_a_large_value_is_large_but_one_key(name: str) -> None:
    for piece in bits(LARGE[name]):
        if not (piece.startswith('"') and piece.endswith('":')):
            assert len(piece) <= (ESCAPED_CHARS if name == ESCAPED else 2) * PIECE
            assert sum(map(piece.count, ",[{")) <= 2 * ELEMENTS_AT_ONCE


@large
def test_a_large_text_is_read_in_pieces_as_in_one_go(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[None] = []
    monkeypatch.setattr("app.pace.give_way", lambda: turns.append(None))
    text = dumps(LARGE[name])
    assert loads_paced(text) == json.loads(text)
    members = LARGE[name].values() if isinstance(LARGE[name], dict) else [LARGE[name]]
    assert len(turns) >= sum(len(member) for member in members if isinstance(member, list))


@settings(deadline=None)
@given(_values, st.sampled_from([None, 0, 2, "\t"]))
def test_any_text_is_read_in_pieces_as_in_one_go(value: Any, indent: int | str | None) -> None:
    text = json.dumps(value, indent=indent)
    assert loads_paced(text) == json.loads(text)
    assert loads_paced(f" {text}\n") == json.loads(text)


@pytest.mark.parametrize("text", ["", "{", "[1", "[1 2]", '{"a" 1}', '{"a":1,', "[1]]", "{1:2}", '{"a":[1}', "nul"])
def test_what_is_no_json_is_none_in_pieces_either(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads_paced(text)


@large
def test_what_goes_past_the_hooks_has_a_break_in_each_container(name: str) -> None:
    turns: list[None] = []
    cleaned = clean(LARGE[name], lambda: turns.append(None))
    assert cleaned == json.loads(dumps(LARGE[name]))
    assert len(turns) == _containers(cleaned)
    turns.clear()
    assert redact(cleaned, lambda: turns.append(None)) == redact(cleaned)
    assert len(turns) >= _containers(cleaned)


def _containers(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + sum(map(_containers, value.values() if isinstance(value, dict) else value))


def test_chunks_are_no_longer_and_no_heavier_than_they_may_be() -> None:
    assert list(in_chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(in_chunks([], 2)) == []
    assert list(in_chunks([1, 2, 9, 1, 3, 4], weigh=lambda n: n, most=4)) == [[1, 2], [9], [1, 3], [4]]
    assert [len(chunk) for chunk in in_chunks(range(ITEMS_AT_ONCE + 1))] == [ITEMS_AT_ONCE, 1]


def test_where_nobody_else_is_nobody_is_given_way_to() -> None:
    code = "from app.turns import give_way; from gevent._hub_local import get_hub_if_exists; give_way(); give_way()"
    script = f"{code}; assert get_hub_if_exists() is None"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_a_long_loop_lets_others_run() -> None:
    turns: list[float] = []

    def other() -> None:
        while True:
            gevent.sleep(0.001)
            turns.append(time.monotonic())

    greenlet = gevent.spawn(other)
    began = time.monotonic()
    for _ in paced(iter(lambda: time.monotonic() - began < 0.3, False)):
        pass
    greenlet.kill()
    assert len(turns) > 3


LISTS = """
import gc
from app.turns import collect_little
collect_little()
young = []
def look(phase, about):
    if phase == "start" and about["generation"] < 2:
        young.append(sum(len(gc.get_objects(generation=n)) for n in range(about["generation"] + 1)))
gc.callbacks.append(look)
alive = [[] for _ in range(600_000)]
print(max(young))
"""


def test_no_collection_of_young_garbage_looks_at_more_than_a_part_of_what_a_request_has_alive() -> None:
    done = subprocess.run([sys.executable, "-c", LISTS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < 200_000
