"""What may be sent, and how it is put together, without a server."""

from datetime import date
from types import MappingProxyType
from typing import Any

import pytest

from app.protocol import events as server
from app.protocol import redaction
from runtail.client.outbox import BATCH_BYTES, BATCH_EVENTS, DELTA_CHARS, DELTA_SECONDS, EVENT_BYTES, Outbox, event_line
from runtail.errors import InvalidEvent
from runtail.values import clean, clean_text, preview, redact, shown
from tests.harness import ROOT

PAIR = chr(0xD83D) + chr(0xDE00)
TEXTS = ["", "plain", "a\0b", "\ud800", "\udc00\ud800", PAIR, "😀", f"{PAIR}\ud800", "\u2028é\x85"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_cleaned_as_the_server_does_it(text: str) -> None:
    assert clean_text(text) == server.clean_text(text)


@pytest.mark.parametrize(
    "value", [None, True, 1, -1.5, "a\0", [1, (2, 3)], {"a": {"b": ["\ud800"]}}, 2**53 - 1, {"k\0": 1}]
)
def test_values_are_cleaned_as_the_server_does_it(value: Any) -> None:
    assert clean(value) == server.clean(value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 2**53, {1: 2}, object(), {"a": [b"bytes"]}, {1, 2}])
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    with pytest.raises(InvalidEvent):
        clean(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(InvalidEvent):
        clean(ring)


KEYS = """password apiKey API-KEY api_key accessToken access_tokens auth_token cookie Set-Cookie businessName rows
    inputTokens max_tokens tokens total_tokens_used cvc cardNumber pass passenger passphrase iban lessons monkey"""


@pytest.mark.parametrize("key", KEYS.split())
@pytest.mark.parametrize("value", ["text", 12])
def test_secrets_are_known_as_the_server_knows_them(key: str, value: object) -> None:
    assert redact({key: [value]}) == redaction.redact({key: [value]})


def test_which_names_name_a_secret_is_said_once() -> None:
    """The client cannot import the server, so it has a copy."""
    copies = (ROOT / folder / "secret_names.py" for folder in ("app/protocol", "clients/python/runtail"))
    assert len({copy.read_text() for copy in copies}) == 1


@pytest.mark.parametrize("result", [{"a": 1}, "x" * 5_000, [{"password": "p"}] * 500, object(), None, "é" * 1_024])
def test_previews_are_the_servers(result: Any) -> None:
    assert preview(result) == redaction.preview(result)


def test_a_summary_is_a_short_line_without_secrets() -> None:
    assert shown({"month": "May", "api_key": "hunter2"}) == "month=May, api_key=[redacted]"
    assert len(shown({"text": "x" * 1_000})) == 200


NESTED: list[tuple[Any, str]] = [
    ({"password": "hunter2"}, "{'password': '[redacted]'}"),
    ([{"deep": {"apiKey": "hunter2", "n": 1}}], "[{'deep': {'apiKey': '[redacted]', 'n': 1}}]"),
    (({"token": "hunter2"}, date(2026, 5, 1)), "({'token': '[redacted]'}, datetime.date(2026, 5, 1))"),
    (MappingProxyType({1: {"pwd": b"hunter2"}}), "{1: {'pwd': '[redacted]'}}"),
    ({"tokens": 12, "author": "ann"}, "{'tokens': 12, 'author': 'ann'}"),
]


@pytest.mark.parametrize(("value", "text"), NESTED)
def test_a_summary_has_no_secrets_inside_its_values(value: Any, text: str) -> None:
    assert shown({"config": value}) == f"config={text}"


def test_a_summary_of_what_contains_itself_is_short() -> None:
    ring: list[Any] = [{"password": "hunter2"}]
    ring += [ring] * 100
    assert shown({"ring": ring}).startswith("ring=[{'password': '[redacted]'}, '…'")


def test_text_waits_for_more_only_when_some_has_just_gone() -> None:
    outbox = Outbox()
    assert outbox.due_in() is None
    assert outbox.write("m", "a") is True
    assert outbox.due_in() == 0
    assert outbox.take() == event_line("message.delta", {"message_id": "m", "text": "a"})
    assert outbox.write("m", "b") is True
    assert outbox.write("m", "c") is False
    due = outbox.due_in()
    assert due is not None
    assert 0 < due <= DELTA_SECONDS
    outbox.write("m", "d" * DELTA_CHARS)
    assert outbox.due_in() == 0
    assert outbox.take() == event_line("message.delta", {"message_id": "m", "text": "bc" + "d" * DELTA_CHARS})
    assert not outbox


def test_an_event_goes_after_the_text_before_it() -> None:
    outbox = Outbox()
    outbox.write("left", "a")
    outbox.write("right", "b")
    outbox.write("left", "c")
    outbox.add(b"event\n")
    first, second, third = outbox.take().splitlines()
    assert b'"left","text":"ac"' in first
    assert b'"right","text":"b"' in second
    assert third == b"event"


def test_batches_have_limits_and_nothing_is_left_out() -> None:
    outbox = Outbox()
    lines = [b"x" * (n % 5_000) + b"\n" for n in range(3_000)] + [b"y" * (BATCH_BYTES * 2) + b"\n"]
    for line in lines:
        outbox.add(line)
    assert outbox.bytes == sum(map(len, lines))
    batches = []
    while outbox:
        batches.append(outbox.take())
    assert b"".join(batches) == b"".join(lines)
    assert all(batch.count(b"\n") <= BATCH_EVENTS for batch in batches)
    assert all(len(batch) <= BATCH_BYTES for batch in batches[:-1])
    assert outbox.bytes == 0


def test_an_event_that_is_too_large_is_refused() -> None:
    with pytest.raises(InvalidEvent):
        event_line("custom.large", {"text": "x" * EVENT_BYTES})
