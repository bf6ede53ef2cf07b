"""How a run ends: what is closed, what its output is, and the terminal event's payload. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.errors import ReconciliationFailed, RuntailError
from app.protocol.digest import digest
from app.protocol.events import exceeds
from app.protocol.sizes import LONG_OUTPUT_BYTES
from app.protocol.state import output_of, streamed_output
from app.protocol.writing import Pace
from runtail.texts import clean_text


@dataclass(frozen=True, slots=True)
class Ending:
    """The outcome of a run before it is written down. `status` is one of the three terminal ones."""

    status: str
    output: Any = None
    error: Mapping[str, str] | None = None
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


def reconcile(state: Mapping[str, Any], output: Any) -> Any:
    """The output of a run that returned `output` after streaming what `state` holds.

    A function that returned nothing gets its output built from what it streamed.

    :raises ReconciliationFailed: a text was returned, and it is not the text of the answer.
    """
    answer = state["answer"]["text"]
    if output is None:
        return streamed_output(state)
    if isinstance(output, str) and output != answer:
        raise ReconciliationFailed(
            f"The agent returned {len(output)} characters, which are not its answer: that is the last message that it"
            f" streamed, of {len(answer)} characters."
        )
    return output


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
