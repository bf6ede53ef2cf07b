"""The envelope, the payload schemas, the cleaning of values, and their description in docs/protocol.md."""

import enum
import json
import re
import string
from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from app.protocol.events import (
    CONTROL_SCHEMAS,
    MAX_DEPTH,
    MAX_INT,
    SCHEMAS,
    TERMINAL,
    clean,
    control,
    encode,
    json_schema,
    schema_json,
    timestamp,
    validate,
)
from app.protocol.reducer import initial
from runtail.errors import DETAIL_CHARS, InvalidEvent, InvalidJson, TooDeep

ROOT = Path(__file__).parent.parent
NOON = datetime(2026, 6, 12, 12, 0, 1, 234567, UTC)

unhurried = settings(deadline=None)  # a loaded machine is no failure
any_text = st.text(st.characters(codec=None, exclude_categories=[])) | st.text("\0\ud800\udfff🚚aé", max_size=8)
any_scalar = st.none() | st.booleans() | st.integers(-MAX_INT, MAX_INT) | any_text
any_json = st.recursive(
    any_scalar | st.floats(allow_nan=False, allow_infinity=False),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(any_text, values, max_size=4),
    max_leaves=12,
)  # fmt: skip


# The envelope.


def test_an_envelope_is_compact_json_in_a_fixed_key_order() -> None:
    event = encode("run_1", 42, "message.delta", {"message_id": "msg_1", "text": "é"}, NOON, op="3")
    assert event.text == (
        '{"v":1,"seq":42,"run_id":"run_1","type":"message.delta","ts":"2026-06-12T12:00:01.234Z",'
        '"payload":{"message_id":"msg_1","text":"é"}}'
    )
    assert (event.seq, event.type, event.op) == (42, "message.delta", "3")
    assert event.envelope()["payload"] == {"message_id": "msg_1", "text": "é"}


def test_a_timestamp_is_in_utc_whatever_the_zone_of_the_moment() -> None:
    moment = datetime(2026, 6, 12, 14, 0, 1, 234999, timezone(timedelta(hours=2)))
    assert timestamp(moment) == "2026-06-12T12:00:01.234Z"
    assert timestamp(datetime(2026, 6, 12, 12, 0, tzinfo=UTC)) == "2026-06-12T12:00:00.000Z"


def test_a_moment_without_a_zone_has_no_timestamp() -> None:
    with pytest.raises(ValueError, match="time zone"):
        encode("run_1", 1, "custom.x", {}, NOON.replace(tzinfo=None))


def test_an_event_is_stamped_with_the_time_of_its_making() -> None:
    before = timestamp(datetime.now(UTC))
    stamped = encode("run_1", 1, "custom.x", {}).envelope()["ts"]
    assert before <= stamped <= timestamp(datetime.now(UTC))


def test_a_timestamp_made_before_is_kept() -> None:
    made = timestamp(NOON)
    assert encode("run_1", 1, "custom.x", {}, made) == encode("run_1", 1, "custom.x", {}, NOON)


def test_a_control_frame_has_no_seq() -> None:
    text = control("run_1", "stream.rejected", {"code": "too_many_streams", "retry_ms": 2000}, NOON)
    assert text == (
        '{"v":1,"run_id":"run_1","type":"stream.rejected","ts":"2026-06-12T12:00:01.234Z",'
        '"payload":{"code":"too_many_streams","retry_ms":2000}}'
    )


@unhurried
@given(any_json)
def test_every_clean_value_survives_its_envelope_on_one_line(value: Any) -> None:
    cleaned = clean(value)
    text = encode("run_1", 1, "custom.x", {"value": cleaned}).text
    assert text.encode().decode() == text
    assert text.splitlines() == [text]
    assert "\0" not in text
    assert json.loads(text)["payload"]["value"] == cleaned


def test_a_payload_that_was_never_cleaned_is_not_written_as_broken_json() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        encode("run_1", 1, "custom.x", {"value": float("nan")})


# Cleaning.


@unhurried
@given(any_json)
def test_cleaning_twice_changes_nothing_more(value: Any) -> None:
    cleaned = clean(value)
    assert clean(cleaned) == cleaned
    assert "\\u0000" not in json.dumps(cleaned)
    json.dumps(cleaned, ensure_ascii=False, allow_nan=False).encode()


@unhurried
@given(st.text(string.printable + "é🚚\ufffd\u2028"))
def test_text_that_can_be_stored_is_left_alone(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\0b", "a\ufffdb"),
        ("\ud83d", "\ufffd"),
        ("\ude9a\ud83d", "\ufffd\ufffd"),
        ("\ud83dx\ude9a", "\ufffdx\ufffd"),
        ("\ud83d\ude9a", "🚚"),
        ("\ud83d\ud83d\ude9a\0", "\ufffd🚚\ufffd"),
    ],
)
def test_nul_and_lone_surrogates_are_replaced_one_by_one(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned
    assert clean({text: [text]}) == {cleaned: [cleaned]}


def test_cleaning_copies() -> None:
    value = {"list": [{"a": 1}]}
    cleaned = clean(value)
    value["list"][0]["a"] = 2
    assert cleaned == {"list": [{"a": 1}]}


def test_subclasses_become_plain_json_types() -> None:
    class Colour(enum.StrEnum):
        RED = "red"

    class Level(enum.IntEnum):
        HIGH = 3

    cleaned = clean(OrderedDict({Colour.RED: (Colour.RED, Level.HIGH, True)}))
    assert cleaned == {"red": ["red", 3, True]}
    assert type(cleaned) is dict
    assert [type(key) for key in cleaned] == [str]
    items: Any = cleaned["red"]
    assert [type(item) for item in items] == [str, int, bool]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [0, float("nan")]}, "$.a[1]"),
        ([float("inf")], "$[0]"),
        ({"a": {"b": -float("inf")}}, "$.a.b"),
        (MAX_INT + 1, "$"),
        ([[-MAX_INT - 1]], "$[0][0]"),
        ({"when": date(2026, 6, 12)}, "$.when"),
        ({"raw": b"bytes"}, "$.raw"),
        ({"set": {1}}, "$.set"),
        ({"of": {1: "a key that is a number"}}, "$.of"),
    ],
)
def test_what_json_cannot_say_faithfully_is_refused_by_its_path(value: Any, path: str) -> None:
    with pytest.raises(InvalidJson, match=re.escape(f" at {path}") + "$"):
        clean(value)


def test_the_largest_exact_integers_are_allowed() -> None:
    assert clean([MAX_INT, -MAX_INT]) == [MAX_INT, -MAX_INT]


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_nesting_is_allowed_up_to_the_limit() -> None:
    assert clean(_nested(MAX_DEPTH)) == _nested(MAX_DEPTH)
    with pytest.raises(TooDeep, match=r"64 levels at \$(\[0\]){64}$"):
        clean(_nested(MAX_DEPTH + 1))


def test_a_value_that_contains_itself_is_too_deep() -> None:
    value: dict[str, Any] = {}
    value["self"] = value
    with pytest.raises(TooDeep):
        clean(value)


# Validation.


def test_a_payload_that_fits_is_accepted_and_so_are_fields_of_later_versions() -> None:
    validate("step.progress", {"step_id": "step_1", "fraction": 1, "colour": "red"})


@pytest.mark.parametrize("type", ["custom.tick", "custom.a.b-c_d9"])
def test_an_agents_own_types_take_any_object(type: str) -> None:
    validate(type, {"anything": [1]})


@pytest.mark.parametrize(
    "type",
    ["custom.", "custom.Tick", "custom.a b", "custom.a\n", "message.edited", "", "stream.gap", "x" * 300],
)
def test_no_other_type_may_be_emitted(type: str) -> None:
    with pytest.raises(InvalidEvent, match="no event type"):
        validate(type, {})


@pytest.mark.parametrize("payload", [None, [], "text", 1])
def test_a_payload_is_an_object(payload: Any) -> None:
    with pytest.raises(InvalidEvent, match="not an object"):
        validate("custom.tick", payload)


@pytest.mark.parametrize(
    ("type", "payload", "field"),
    [
        ("message.delta", {"message_id": "msg_1"}, "text"),
        ("message.delta", {"message_id": "msg_1", "text": 1}, "text"),
        ("message.started", {"message_id": "msg_1", "role": "robot"}, "role"),
        ("step.progress", {"step_id": "s", "fraction": 1.01}, "fraction"),
        ("step.progress", {"step_id": "s", "fraction": "0.5"}, "fraction"),
        ("step.progress", {"step_id": "s", "fraction": True}, "fraction"),
        ("step.progress", {"step_id": "s", "fraction": 0.5, "label": None}, "label"),
        ("step.completed", {"step_id": "s", "duration_ms": -1}, "duration_ms"),
        ("step.completed", {"step_id": "s", "duration_ms": 1.5}, "duration_ms"),
        ("step.failed", {"step_id": "s", "error": {"code": "x"}}, "message"),
        ("quality.checked", {"name": "n", "passed": 1}, "passed"),
        ("plan.created", {"steps": [{"id": "s"}]}, "title"),
        ("tool.started", {"tool_call_id": "c", "name": "n", "label": "l", "summary": "x" * 201}, "summary"),
        ("run.created", {"agent": "a", "input_preview": {"text": "é" * 1100}}, "input_preview"),
        ("run.completed", {"output": None, "digest": "d"}, "usage"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_by_its_field(type: str, payload: Any, field: str) -> None:
    with pytest.raises(InvalidEvent, match=field):
        validate(type, payload)


# JSON Schema.


@pytest.fixture(scope="module")
def envelopes() -> Draft202012Validator:
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize(
    ("type", "payload"),
    [
        ("custom." + "X" * 3_000_000, {}),
        ("plan.created", {"steps": [{}] * 1_000}),
        ("run.waiting", {"on": "input", "ids": [1] * 10_000}),
    ],
)
def test_what_is_said_of_an_event_that_is_refused_has_an_end(type: str, payload: dict[str, Any]) -> None:
    """It goes into logs, rows and answers."""
    with pytest.raises(InvalidEvent) as refused:
        validate(type, payload)
    assert len(str(refused.value)) == len(refused.value.detail) == DETAIL_CHARS


def test_the_json_schema_has_one_branch_per_type() -> None:
    types = [branch["properties"]["type"].get("const") for branch in json_schema()["oneOf"]]
    assert types == [*SCHEMAS, *CONTROL_SCHEMAS, None]
    assert set(SCHEMAS) >= TERMINAL


@pytest.mark.parametrize("name", ["support", "failed", "cancelled", "restart", "resumed"])
def test_the_json_schema_accepts_what_is_emitted(envelopes: Draft202012Validator, name: str) -> None:
    for line in (ROOT / f"tests/golden/{name}.ndjson").read_text("utf-8").splitlines():
        envelopes.validate(json.loads(line))


def test_the_json_schema_accepts_custom_events_and_control_frames(envelopes: Draft202012Validator) -> None:
    envelopes.validate(encode("run_1", 1, "custom.tick", {"n": 1}).envelope())
    frames: dict[str, Any] = {
        "stream.snapshot": {"seq": 0, "state": dict(initial("run_1"))},
        "stream.snapshot.part": {"seq": 5, "part": 1, "parts": 2, "text": '{"run_id":'},
        "stream.gap": {"requested": 1, "earliest": 2, "head": 3},
        "stream.rejected": {"code": "too_many_streams", "retry_ms": 2000},
        "stream.expired": {},
        "feed.status": {"sample": 0.1, "sent": 1, "left_out": 9, "dropped": 0},
        "stream.answer": {"command": "ack", "id": None, "ok": True, "status": 200, "result": {"seq": 1, "head": 2}},
    }
    assert frames.keys() == CONTROL_SCHEMAS.keys()
    for type, payload in frames.items():
        envelopes.validate(json.loads(control("run_1", type, payload)))


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 0},
        {"v": 2},
        {"type": "message.edited"},
        {"payload": {"message_id": "msg_1"}},
        {"payload": None},
    ],
)
def test_the_json_schema_refuses_what_is_never_emitted(envelopes: Draft202012Validator, change: dict[str, Any]) -> None:
    event = encode("run_1", 1, "message.delta", {"message_id": "msg_1", "text": ""}).envelope()
    assert envelopes.is_valid(event)
    assert not envelopes.is_valid(event | change)


# The document.


def _documented() -> dict[str, list[tuple[str, str, str]]]:
    """The payload tables of docs/protocol.md: {type: [(field, JSON type, required)]}."""
    text = (ROOT / "docs/protocol.md").read_text("utf-8")
    sections = re.split(r"^#+ `([a-z.]+)`$", text, flags=re.MULTILINE)
    rows = re.compile(r"^\| `(\w+)` \| ([^|]+?) \| (yes|no) \|", re.MULTILINE)
    return {
        type: rows.findall(re.split(r"^#", body, maxsplit=1, flags=re.MULTILINE)[0])
        for type, body in zip(sections[1::2], sections[2::2], strict=True)
    }


def _described(schema: dict[str, Any]) -> list[tuple[str, str, str]]:
    required = schema.get("required", [])
    return [
        (name, _type_in_words(member), "yes" if name in required else "no")
        for name, member in schema["properties"].items()
    ]


def _type_in_words(member: dict[str, Any]) -> str:
    types = member.get("type", "any")
    return types if isinstance(types, str) else " or ".join(types)


@pytest.mark.parametrize("type", [*SCHEMAS, *CONTROL_SCHEMAS])
def test_every_type_is_documented_with_every_field(type: str) -> None:
    schema = (SCHEMAS | CONTROL_SCHEMAS)[type]
    assert _documented().get(type) == _described(schema_json(schema))


def test_no_type_is_documented_that_does_not_exist() -> None:
    assert _documented().keys() == SCHEMAS.keys() | CONTROL_SCHEMAS.keys()
