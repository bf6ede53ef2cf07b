"""The pipeline that every payload passes: clean, redact, user hooks, validate; and what may be shown of a result."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import HookFailed, InvalidEvent, InvalidJson, TooDeep
from app.hooks import Hooks, text_of
from app.protocol.events import clean, dumps, validate
from app.protocol.sizes import DELTA_MAX_CHARS, PAYLOAD_BYTES
from runtail.redaction import PREVIEW_MAX_BYTES, REDACTED, SUMMARY_MAX_CHARS, preview, redact

SECRET_KEYS = [
    "password",
    "passwd",
    "pass",
    "api_key",
    "apiKey",
    "API-KEY",
    "APIKey",
    "x-api-key",
    "access_key",
    "secret",
    "clientSecret",
    "refresh_token",
    "accesstoken",
    "Authorization",
    "Set-Cookie",
    "credentials",
    "card_number",
    "cardNumber",
    "cvv",
    "ssn",
    "userSsn",
    "iban",
    "IBAN",
    "private_key",
    "db_password_2",
    "passcode",
]
HARMLESS_KEYS = [
    "input_tokens",
    "outputTokens",
    "max_tokens",
    "before_tokens",
    "after_tokens",
    "tokens",
    "passed",
    "passenger",
    "businessName",
    "processName",
    "className",
    "addressNumber",
    "compass",
    "caliban",
    "author",
    "key",
    "monkey",
]


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_what_stands_under_the_name_of_a_secret_is_replaced(key: str) -> None:
    assert redact({key: "hunter2"}) == {key: REDACTED}
    assert redact([{"deep": {key: {"x": 1}}}]) == [{"deep": {key: REDACTED}}]


@pytest.mark.parametrize("key", HARMLESS_KEYS)
def test_what_only_looks_like_a_secret_is_kept(key: str) -> None:
    assert redact({key: 1}) == {key: 1}


def test_a_preview_of_a_small_result_is_the_result_without_its_secrets() -> None:
    assert preview({"user": "ann", "token": "x", "n": (1, 2)}) == {
        "preview": {"user": "ann", "token": REDACTED, "n": [1, 2]},
        "truncated": False,
        "bytes": len('{"user":"ann","token":"[redacted]","n":[1,2]}'),
    }


@pytest.mark.parametrize("value", [object(), float("nan"), 2**60, {1: 2}, b"x", {"at": {1, 2}}])
def test_a_preview_of_what_is_not_json_is_its_type(value: object) -> None:
    assert preview(value)["preview"] == f"<{type(value).__name__}>"


@given(
    st.recursive(
        st.none() | st.booleans() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
    | st.text(alphabet='"\\\n€😀', min_size=600, max_size=6_000)
)
def test_a_preview_is_json_of_limited_size_whatever_the_result(value: object) -> None:
    shown = preview(value)
    assert len(dumps(shown["preview"]).encode()) <= PREVIEW_MAX_BYTES
    assert clean(shown) == shown
    assert shown["truncated"] == (shown["bytes"] > PREVIEW_MAX_BYTES)


STARTED = {"tool_call_id": "c", "name": "t", "label": "l"}
COMPLETED = {"tool_call_id": "c", "truncated": False, "bytes": 9, "duration_ms": 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("config={'password': 'hunter2'}", "config={'password': '[redacted]'}"),
        ("url=postgres://app:hunter2@db/x", "url=postgres://app:[redacted]@db/x"),
        ("n=1, author=ann", "n=1, author=ann"),
    ],
)
def test_what_shows_a_call_is_looked_through_to_its_texts(text: str, expected: str) -> None:
    hooks = Hooks()
    assert hooks("tool.started", {**STARTED, "summary": text})["summary"] == expected
    for whole, visible in ((text, expected), ([{"log": text}], [{"log": expected}])):
        payload = {**COMPLETED, "preview": whole}
        assert hooks("tool.completed", payload) == hooks.fact("tool.completed", payload) == {
            **COMPLETED, "preview": visible,
        }  # fmt: skip
    assert hooks("custom.note", {"text": text}) == {"text": text}, "what people write is left as it is"


def test_a_call_is_shown_within_its_limits_whatever_was_replaced() -> None:
    summary = Hooks()("tool.started", {**STARTED, "summary": "pw=a;" * 40})["summary"]
    assert "=a" not in summary
    assert len(summary) <= SUMMARY_MAX_CHARS
    shown = Hooks()("tool.completed", {**COMPLETED, "preview": "pw=a;" * 400})
    assert "=a" not in shown["preview"]
    assert shown["truncated"]
    assert len(dumps(shown["preview"]).encode()) <= PREVIEW_MAX_BYTES


def test_user_hooks_see_clean_payloads_in_turn_and_theirs_are_cleaned_again() -> None:
    seen: list[Any] = []

    def first(type: str, payload: dict[str, Any]) -> dict[str, Any]:
        seen.append((type, payload))
        return {**payload, "first": "\0"}

    def second(type: str, payload: dict[str, Any]) -> dict[str, Any]:
        seen.append((type, payload))
        return {**payload, "second": (1,)}

    out = Hooks([first, second])("custom.note", {"text": "\ud800", "token": "x"})
    assert seen == [
        ("custom.note", {"text": "\ufffd", "token": REDACTED}),
        ("custom.note", {"text": "\ufffd", "token": REDACTED, "first": "\ufffd"}),
    ]
    assert out == {"text": "\ufffd", "token": REDACTED, "first": "\ufffd", "second": [1]}


@pytest.mark.parametrize(
    ("returned", "error"),
    [
        (None, InvalidEvent),
        ([1], InvalidEvent),
        ({"fraction": 2, "step_id": "s"}, InvalidEvent),
        ({"fraction": 0.5}, InvalidEvent),
        ({"fraction": float("nan"), "step_id": "s"}, InvalidJson),
    ],
)
def test_what_a_hook_makes_of_a_payload_is_checked(returned: Any, error: type[Exception]) -> None:
    hooks = Hooks([lambda type, payload: returned])
    with pytest.raises(HookFailed) as raised:
        hooks("step.progress", {"step_id": "s", "fraction": 0.5})
    assert isinstance(raised.value.__cause__, error)


def test_what_a_hook_does_to_its_copy_before_it_fails_is_not_what_goes_out() -> None:
    def spoils(type: str, payload: dict[str, Any]) -> dict[str, Any]:
        payload.pop("duration_ms")
        payload["preview"] = None
        return payload

    told = {"tool_call_id": "call_1", "preview": {"rows": 3}, "truncated": False, "bytes": 10, "duration_ms": 5}
    fact = Hooks([spoils]).fact("tool.completed", told)
    assert (fact["tool_call_id"], fact["duration_ms"], fact["truncated"]) == ("call_1", 5, False)
    validate("tool.completed", fact)
    assert told["preview"] == {"rows": 3}


@pytest.mark.parametrize("payload", [None, [1], "text", 5])
def test_a_payload_is_an_object(payload: object) -> None:
    with pytest.raises(InvalidEvent):
        Hooks()("custom.note", payload)


def test_a_payload_has_a_largest_size() -> None:
    most = PAYLOAD_BYTES - len('{"text":""}')
    assert Hooks()("custom.note", {"text": "x" * most})
    with pytest.raises(InvalidEvent):
        Hooks()("custom.note", {"text": "x" * (most + 1)})
    with pytest.raises(InvalidEvent):  # sent as \u2028
        Hooks()("custom.note", {"text": "\u2028" * (most // 4)})


def test_a_payload_has_a_largest_depth() -> None:
    deep: dict[str, Any] = {}
    for _ in range(64):
        deep = {"deep": deep}
    with pytest.raises(TooDeep):
        Hooks()("custom.note", deep)


def test_a_text_passes_the_hooks_too_in_pieces() -> None:
    assert Hooks().deltas("msg_1", "Ms Doe") == [{"message_id": "msg_1", "text": "Ms Doe"}]
    hooks = Hooks([lambda type, payload: {**payload, "text": payload["text"].replace("Doe", "X")}])
    assert [delta["text"] for delta in hooks.deltas("msg_1", "Ms Doe")] == ["Ms X"]
    deltas = hooks.deltas("msg_1", "Doe" + "y" * (2 * DELTA_MAX_CHARS))
    assert [len(delta["text"]) for delta in deltas] == [DELTA_MAX_CHARS - 2, DELTA_MAX_CHARS, 3]
    assert text_of(deltas) == "X" + "y" * (2 * DELTA_MAX_CHARS)


def test_the_payload_that_was_given_is_left_as_it_is() -> None:
    payload = {"list": [1], "token": "x"}
    Hooks()("custom.note", payload)["list"].append(2)
    assert payload == {"list": [1], "token": "x"}
