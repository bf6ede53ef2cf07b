"""What a message makes of the pieces that it is given."""

import pytest

from runtail import InvalidCall, ToolError
from runtail.handles import Message

HALVES = "\ud83d", "\ude00"


@pytest.mark.parametrize(
    ("pieces", "sent"),
    [
        (["a", "b"], ["a", "b"]),
        ([HALVES[0], HALVES[1]], ["😀"]),
        (["x" + HALVES[0], HALVES[1] + "y"], ["x", "😀y"]),
        ([HALVES[0], "y"], ["\ufffdy"]),
        ([HALVES[0], HALVES[0] + HALVES[1]], ["\ufffd😀"]),
        ([HALVES[1]], ["\ufffd"]),
        (["a" + HALVES[0]], ["a", "\ufffd"]),
        (["", "a\0"], ["a\ufffd"]),
    ],
)
def test_the_halves_of_a_pair_in_two_pieces_are_one_character(pieces: list[str], sent: list[str]) -> None:
    went: list[str] = []

    def send(text: str) -> str:
        went.append(text)
        return text

    message = Message("msg", send)
    for piece in pieces:
        message.write(piece)
    message.close()
    assert [text for text in went if text] == [text for text in sent if text]
    assert message.text == "".join(sent)


@pytest.mark.parametrize("piece", [None, b"bytes", 1, ["a"]])
def test_what_is_no_text_is_refused_by_name(piece: object) -> None:
    with pytest.raises(InvalidCall, match=r"message\.write: text is a text, not"):
        Message("msg", str).write(piece)  # type: ignore[arg-type]


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("detail", ["y" * 1_000_000, ValueError("v"), None, Unspeakable(), "\0\ud83d"])
def test_a_tool_error_cannot_fail_itself(detail: object) -> None:
    error = ToolError("x" * 1_000_000, detail)  # type: ignore[arg-type]
    public = error.public()
    assert (len(public["code"]), len(public["message"]) <= 10_000) == (100, True)
    assert public["message"]
    assert ToolError.of(public).public() == public


def test_a_tool_error_may_say_when_to_try_again() -> None:
    assert ToolError("busy", "Later.", retryable=True, retry_after_ms=2_000).public()["retry_after_ms"] == 2_000
    for wrong in (-1, 2.5, "2", 2**60, None):
        assert "retry_after_ms" not in ToolError("busy", "Later.", retry_after_ms=wrong).public()  # type: ignore[arg-type]
