"""What may be sent, and how it is put together, without a server."""

from datetime import date
from types import MappingProxyType
from typing import Any

import pytest

from runtail.client.outbox import BATCH_BYTES, BATCH_EVENTS, EVENT_BYTES, Outbox, event_line
from runtail.deltas import DELTA_CHARS, DELTA_SECONDS
from runtail.errors import InvalidEvent
from runtail.external import cleaned
from runtail.redaction import shown


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 2**53, {1: 2}, object(), {"a": [b"bytes"]}, {1, 2}])
def test_what_has_no_json_form_is_refused(value: Any) -> None:
    with pytest.raises(InvalidEvent):
        cleaned(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    ring: list[Any] = []
    ring.append(ring)
    with pytest.raises(InvalidEvent):
        cleaned(ring)


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
    assert outbox.write("left", "first") is True
    assert b'"left","text":"first"' in outbox.take()
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
