"""Logs of random events, and such that are long: what the laws of the fold are tried on."""

from typing import Any

from hypothesis import strategies as st

from app.protocol.events import SCHEMAS, TERMINAL

RUN = "run_1"

Log = list[dict[str, Any]]


def log(*events: tuple[str, dict[str, Any]]) -> Log:
    """Envelopes of run_1 with these types and payloads."""
    return [
        {"v": 1, "seq": seq, "run_id": RUN, "type": type, "ts": f"at {seq}", "payload": payload}
        for seq, (type, payload) in enumerate(events, 1)
    ]


# Ids come from small pools, so that logs hold sense and nonsense alike.

_ids = st.sampled_from(["1", "2", "3"])
_words = st.sampled_from(["", "a", "é🚚", "line\r\n"])
_counts = st.integers(0, 5)
_fractions = st.sampled_from([0, 0.25, 1])
_plan = st.lists(st.fixed_dictionaries({"id": _ids, "title": _words}), max_size=3)
_error = st.fixed_dictionaries({"code": _words, "message": _words})
_values: dict[str, st.SearchStrategy[Any]] = {
    "attempt": _counts, "index": _counts, "duration_ms": _counts, "chars": _counts, "bytes": _counts,
    "last_seq": _counts,
    "input_tokens": _counts, "output_tokens": _counts, "before_tokens": _counts, "after_tokens": _counts,
    "restart": st.booleans(), "truncated": st.booleans(), "retryable": st.booleans(), "passed": st.booleans(),
    "reason": st.sampled_from(["worker_lost", "deploy", "retry"]), "ids": st.lists(_ids),
    "fraction": _fractions,
    "steps": _plan, "error": _error, "cost": st.none() | _fractions,
    "role": st.sampled_from(["assistant", "user"]),
    "requires": st.just("owner"), "decision": st.sampled_from(["approved", "denied", "expired"]),
    "code": st.sampled_from(["cancelled", "timeout"]), "score": st.none() | _fractions,
    "budget_used_pct": st.none() | _fractions,
    "input_preview": st.none(), "preview": st.just({"rows": [1, {"a": None}]}), "output": st.just(["text"]),
    "usage": st.none() | st.just({"input_tokens": 7}), "text": _words, "label": _words, "title": _words,
}  # fmt: skip


def _payloads(type: str) -> st.SearchStrategy[dict[str, Any]]:
    members = SCHEMAS[type]().fields
    return st.fixed_dictionaries(
        {name: _values.get(name, _ids) for name, member in members.items() if member.required},
        optional={name: _values.get(name, _ids) for name, member in members.items() if not member.required},
    )


def _events(types: list[str]) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
    return st.sampled_from(types).flatmap(lambda type: st.tuples(st.just(type), _payloads(type)))


_going_on = sorted(SCHEMAS.keys() - TERMINAL)
logs = st.tuples(
    st.lists(_events(_going_on) | st.just(("custom.tick", {"n": 1})), max_size=30),
    st.lists(_events(sorted(TERMINAL)), max_size=1),
).map(lambda parts: log(*parts[0], *parts[1]))
