"""How a run ends: what is closed, what its output is, and the terminal event's payload. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.errors import ReconciliationFailed, RuntailError
from app.protocol.digest import digest
from app.protocol.events import exceeds
from app.protocol.sizes import LONG_OUTPUT_BYTES, pieces
from app.protocol.state import output_of, streamed_output
from app.protocol.writing import PIECE, Pace
from runtail.errors import ToolError
from runtail.texts import clean_text


@dataclass(frozen=True, slots=True)
class Ending:
    """The outcome of a run before it is written down. `status` is one of the three terminal ones."""

    status: str
    output: Any = None
    error: Mapping[str, Any] | None = None
    reason: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    """What else hooks have put into the payload of `run.completed`."""

    @classmethod
    def completed(cls, output: Any) -> "Ending":
        """The agent returned; `output` is as it goes out."""
        return cls("completed", output=output)

    @classmethod
    def of(cls, state: Mapping[str, Any], payload: Mapping[str, Any]) -> "Ending":
        """As `completed`, given a payload of `run.completed` as it goes out; usage and digest are made anew."""
        return cls("completed", output=output_of(state, payload), more=payload)

    @classmethod
    def failed(cls, error: RuntailError) -> "Ending":
        """The run failed for the stated reason; the error's code and detail become public."""
        if isinstance(error, ToolError):
            return cls("failed", error=error.public())
        return cls("failed", error={"code": error.code, "message": clean_text(error.detail)})

    @classmethod
    def cancelled(cls, reason: str) -> "Ending":
        """Somebody cancelled the run."""
        return cls("cancelled", reason=reason)

    @property
    def type(self) -> str:
        """The type of the terminal event."""
        return f"run.{self.status}"


NOT_DECIDED = {"decision": "expired", "by": None, "comment": "The run has ended."}
"""What became of an approval that was still open at the end of its run."""


def closing(
    state: Mapping[str, Any], ending: Ending, decided: Mapping[str, Mapping[str, str | None]] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events (type, payload) that close whatever the state still has open, innermost first.

    :param decided: {decision, by, comment} of approvals that the log does not know to be decided.
    """
    for message in state["messages"]:
        if message["status"] == "open":
            yield "message.completed", {"message_id": message["id"], "chars": len(message["text"])}
    code = "cancelled" if ending.status == "cancelled" else "interrupted"
    for approval in state["approvals"]:
        if approval["status"] == "open":
            outcome = (decided or {}).get(approval["id"], NOT_DECIDED)
            yield "approval.resolved", {"approval_id": approval["id"], **outcome}
    for call in state["tool_calls"]:
        if call["status"] == "running":
            yield "tool.failed", {"tool_call_id": call["id"], "code": code, "retryable": False}
    for step in reversed(state["steps"]):
        if step["status"] == "running":
            error = {"code": code, "message": f"The run was {ending.status} during this step."}
            yield "step.failed", {"step_id": step["id"], "error": error}


def is_said(state: Mapping[str, Any], text: str, pace: Pace = iter) -> bool:
    """Whether a text is what the run has said: its answer, or its assistant's messages joined, white space aside."""
    if text == state["answer"]["text"]:
        return True
    said = [m["text"] for m in state["messages"] if m["role"] == "assistant" and m["status"] != "abandoned"]
    return bool(said) and _squeezed(said, pace) == _squeezed([text], pace)


def _squeezed(texts: Iterable[str], pace: Pace) -> str:
    """The texts as one, without white space."""
    parts = pace(piece for text in texts for piece in pieces(text, PIECE))
    return "".join("".join(part.split()) for part in parts)


def check_strict(state: Mapping[str, Any], text: str) -> None:
    """For an agent that is declared with `strict_output`.

    :raises ReconciliationFailed: the text that it returned is not the text of the answer.
    """
    answer = state["answer"]["text"]
    if text != answer:
        raise ReconciliationFailed(
            f"The agent returned {len(text)} characters, which are not its answer: that is the last message that it"
            f" streamed, of {len(answer)} characters."
        )


def given_output(state: Mapping[str, Any], output: Any) -> Any:
    """The output of a run that returned this; one that returned nothing gets it built from what it has said."""
    return streamed_output(state) if output is None else output


def said_output(state: Mapping[str, Any], output: Any, pace: Pace = iter) -> dict[str, Any]:
    """The members of `run.completed` that say the output: a long one that stands in the log already is named."""
    answer = state["answer"]["text"]
    name = "answer" if output == answer else "streamed" if output == streamed_output(state) else None
    if name is None:
        return {"output": output}
    is_long = len(answer) > LONG_OUTPUT_BYTES or exceeds({"output": output}, LONG_OUTPUT_BYTES, pace)
    return {"output": None, "output_is": name} if is_long else {"output": output}


def terminal_payload(state: Mapping[str, Any], ending: Ending, pace: Pace = iter) -> dict[str, Any]:
    """The payload of the terminal event, digest included.

    :param state: the fold of everything before it.
    :param pace: as for `digest`.
    """
    seal = digest(state, ending.output, pace)
    if ending.status == "completed":
        more = {name: value for name, value in ending.more.items() if name != "output_is"}
        return {**more, **said_output(state, ending.output, pace), "usage": state["usage"], "digest": seal}
    if ending.status == "failed":
        return {"error": ending.error, "digest": seal}
    return {"reason": ending.reason, "last_seq": state["last_seq"], "digest": seal}
