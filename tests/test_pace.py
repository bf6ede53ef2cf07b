"""Long loops have breaks, and what is made in pieces is to the letter what would be made in one go."""

import json
import time
from typing import Any

import gevent
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from app.pace import ITEMS_AT_ONCE, dumps_paced, in_chunks, paced
from app.protocol.digest import digest
from app.protocol.events import dumps
from app.protocol.reducer import State, initial

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


def test_a_long_list_in_pieces_is_the_same_text() -> None:
    for count in (0, 1, ITEMS_AT_ONCE, ITEMS_AT_ONCE + 1, 3 * ITEMS_AT_ONCE):
        value = {"a": [{"n": n} for n in range(count)], "b": (), "c": ("x",), "d": "text"}
        assert json.loads(dumps_paced(value)) == json.loads(dumps(value))
        assert dumps_paced(value) == dumps(value)
    assert list(in_chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]


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
