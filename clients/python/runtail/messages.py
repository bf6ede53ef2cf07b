"""Writing messages: the text of an agent, bit by bit, and the same text again where it was written before."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from runtail.errors import InvalidCall, ToolError
from runtail.handles import Message
from runtail.ports import Calls
from runtail.records import OpRecord
from runtail.tools import foreseen


class Messages:
    """The messages of one run, whose branches share it.

    :ivar answer: the text of the assistant's last message that has one.
    """

    def __init__(self) -> None:
        self.answer: str | None = None

    @contextmanager
    def message(self, calls: Calls, role: str) -> Iterator[Message]:
        """See `Run.message`."""
        op = calls.next("msg", "message.", records="message")
        record = calls.recorded(op, "message", role)
        if record is None:
            with self._new(calls, op, role) as message:
                yield message
            return
        message_id = record.result["message_id"]
        message = Message(message_id, partial(calls.deltas, message_id))
        try:
            yield message
            message.close()
        finally:
            self._note(role, message.text)
        if message.text != calls.message_text(message_id):
            calls.broken(f"The message of call {op} had another text before.")

    def stream(self, calls: Calls, texts: Iterable[str], *, replaces: bool = False) -> str:
        """See `Run.stream`.

        :param replaces: the message takes the place of all that the assistant has written; it begins at once.
        """
        op = calls.next("msg", "message.", records="message")
        try:
            record = calls.recorded(op, "message", "assistant")
            if record is not None:
                return self._streamed_before(calls, record)
            failing = foreseen(calls, "stream_error", "The stream failed.")
            with self._new(calls, op, "assistant", replaces=replaces) as message, failing, calls.within(op):
                for text in texts:
                    message.write(text)
            return message.text
        finally:
            if isinstance(texts, Iterator) and hasattr(texts, "close"):
                texts.close()  # a provider's stream ends with the run, not when somebody collects the garbage

    @contextmanager
    def _new(self, calls: Calls, op: str, role: str, *, replaces: bool = False) -> Iterator[Message]:
        message_id, begun = calls.new_message(op), replaces
        if replaces:
            calls.begin_message(message_id, role, op, replaces=True)

        def send(text: str) -> str:
            nonlocal begun
            if not begun:
                calls.begin_message(message_id, role, op)
                begun = True
            return calls.delta(message_id, text, op)

        message = Message(message_id, send)
        result: dict[str, Any] = {"message_id": message_id, "error": None}
        try:
            yield message
            message.close()
        except ToolError as error:
            result["error"] = error.public()
            raise
        except InvalidCall as error:
            result["error"] = ToolError(error.code, error.detail).public()
            raise
        finally:
            self._note(role, message.text)
            completed = ("message.completed", {"message_id": message_id, "chars": len(message.text)})
            event = completed if begun else None
            calls.quietly(lambda: calls.record(op, "message", role, result, event=event))

    def _streamed_before(self, calls: Calls, record: OpRecord) -> str:
        error, text = record.result["error"], calls.message_text(record.result["message_id"])
        self._note("assistant", text)
        if error is not None:
            raise InvalidCall(error["message"]) if error["code"] == InvalidCall.code else ToolError.of(error)
        return text

    def _note(self, role: str, text: str) -> None:
        if role == "assistant" and text:
            self.answer = text
