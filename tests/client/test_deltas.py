"""Text that follows quickly leaves together, by a clock of the test's own."""

from collections.abc import Callable

import pytest

from runtail import deltas
from runtail.deltas import DELTA_CHARS, DELTA_SECONDS, Deltas

Clock = Callable[[float], None]


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Let so many seconds pass."""
    now = [1_000.0]

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(deltas.time, "monotonic", lambda: now[0])
    return pass_time


@pytest.mark.parametrize(("per_second", "fewer"), [(50, 2.0), (100, 4.5), (200, 8.0)])
def test_a_stream_of_tokens_is_that_many_times_fewer_events(pass_time: Clock, per_second: int, fewer: float) -> None:
    text, events, tokens = Deltas(), 0, per_second * 60
    for n in range(tokens):
        if text.write("msg", f"token {n} "):
            events += len(text.take())
        pass_time(1 / per_second)
    events += len(text.take())
    assert tokens / events >= fewer


def test_the_first_piece_of_each_message_leaves_at_once(pass_time: Clock) -> None:
    text = Deltas()
    for name in ("one", "two", "three"):
        text.begin(name)
        assert text.write(name, "first") is True
        assert text.take()[-1] == (name, "first", None)
        assert text.write(name, "second") is False
        pass_time(0.001)


def test_messages_that_are_written_in_turns_leave_together(pass_time: Clock) -> None:
    text = Deltas()
    text.write("left", "0")
    text.take()
    for n in range(1, 4):
        assert not text.write("left", f"{n}")
        assert not text.write("right", f"{n}")
    assert text.due_at == deltas.time.monotonic() + DELTA_SECONDS
    assert text.take() == [("left", "123", None), ("right", "123", None)]
    assert not text


def test_much_text_leaves_at_once(pass_time: Clock) -> None:
    text = Deltas()
    text.write("msg", "a")
    text.take()
    assert text.write("msg", "b") is False
    assert text.write("msg", "c" * DELTA_CHARS) is True
