"""The part of RunContext in which time passes, or somebody is waited for; and what is different each time it is asked.

To wait for long is to suspend: the agent unwinds, and runs again from the top once what it waits for is there.
"""

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from app.errors import InvalidCall
from app.protocol.events import timestamp
from app.storage.run_store import ApprovalRecord, NewApproval
from workers import values
from workers.calls import Calls
from workers.execution.interrupts import Wait
from workers.handles import Approval

LONG_SLEEP_SECONDS = 60.0
"""A sleep of at least so long suspends the run."""


class Waits:
    """See `RunContext`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def sleep(self, seconds: float) -> None:
        """Sleep, and wake up at once when the run is stopped. A minute or more costs nothing: the run suspends.

        :param seconds: a number, up to a hundred years; less than 0 is 0.
        """
        wanted = values.seconds(seconds, "run.sleep: seconds")
        op = self._calls.next(records="sleep")
        if wanted >= LONG_SLEEP_SECONDS:
            self._sleep_until(op, wanted, seconds)
        elif not self._calls.journal.passed(op):
            self._calls.outbox.sleep(wanted)

    def _sleep_until(self, op: str, seconds: float, given: object) -> None:
        """:param given: the seconds as the agent gave them."""
        now = self._calls.journal.time().timestamp()
        record = self._calls.recorded(op, "sleep", "", given)
        end: float = record.result if record else now + seconds
        if record is None:
            self._calls.record(op, "sleep", "", end, arguments=given)
        left = end - now
        if left >= LONG_SLEEP_SECONDS:
            self._calls.suspend(Wait("time", op, datetime.fromtimestamp(end, UTC)))
        if not self._calls.journal.passed(op):
            self._calls.outbox.sleep(max(0.0, left))

    def approve(
        self,
        label: str,
        *,
        tool_call_id: str | None = None,
        expires_in: float | timedelta | None = None,
        requires: str = "owner",
    ) -> Approval:
        """Ask for a decision and wait for it, which costs nothing however long it takes.

        :param label: what is to be decided, a sentence for humans.
        :param tool_call_id: the call that waits for it; None: the tool call that asks, if one does.
        :param expires_in: seconds, or a timedelta, after which nobody can decide any more; None: never.
        :param requires: who decides: the run's `owner`, or an `operator`, who is an admin of the tenant.
        """
        if requires not in ("owner", "operator"):
            raise InvalidCall("run.approve: requires is owner or operator.")
        label = values.text(label, "run.approve: label")
        tool_call_id = values.may_text(tool_call_id, "run.approve: tool_call_id")
        limit = values.may_seconds(expires_in, "run.approve: expires_in")
        op = self._calls.next("approval.")
        approval_id = f"apr_{op}"
        known = self._calls.journal.approval(approval_id)
        new = NewApproval(approval_id, label, requires, tool_call_id, self._in(limit))
        if known is None:
            self._calls.ask(_question(new), lambda payload: replace(new, label=payload["label"]), op)
            self._calls.suspend(Wait("approval", approval_id))
        if known.requires != requires or not self._is_label(op, known.label, new):
            self._calls.journal.broken(f"Call {op} asked for another approval before.")
        return self._outcome(op, known)

    def _is_label(self, op: str, known: str, new: NewApproval) -> bool:
        """Whether a question that was asked has this label: as it went out, or, before that was so, as it was given."""
        return known == new.label or known == self._calls.question(_question(new), op)["label"]

    def _in(self, seconds: float | None) -> datetime | None:
        return None if seconds is None else self._calls.journal.time() + timedelta(seconds=seconds)

    def _outcome(self, op: str, known: ApprovalRecord) -> Approval:
        if known.decision is None:
            self._calls.suspend(Wait("approval", known.id))
        about = {"approval_id": known.id, "decision": known.decision, "by": known.decided_by, "comment": known.comment}
        self._calls.tell("approval.resolved", about, op)
        return Approval(known.decision, known.decided_by, known.comment)

    def inputs(self, *, wait: bool = False) -> list[str]:
        """What the user has sent since the last call, in order.

        :param wait: if there is nothing, wait for it, which costs nothing.
        """
        op, journal = self._calls.next(records="inputs"), self._calls.journal
        record = self._calls.recorded(op, "inputs", "", wait)
        if record is not None:
            recorded: list[str] = record.result["texts"]
            return recorded
        texts, last = self._calls.outbox.inputs, len(self._calls.state["inputs"])
        new = [texts[n] for n in range(journal.inputs_taken + 1, last + 1)]
        if wait and not new:
            self._calls.suspend(Wait("input", f"inp_{journal.inputs_taken + 1}"))
        journal.inputs_taken += len(new)
        self._calls.record(op, "inputs", "", {"texts": new, "upto": journal.inputs_taken}, arguments=wait)
        return new

    def now(self) -> datetime:
        """The time by Postgres' clock, in UTC, as it was when this call was first made."""
        seconds: float = self._value("now", self._calls.journal.time().timestamp())
        return datetime.fromtimestamp(seconds, UTC)

    def random(self) -> float:
        """A random number from 0 up to 1, the same whenever this call is made again."""
        number: float = self._value("random", random.random())  # nothing secret rests on it
        return number

    def _value(self, kind: str, fresh: float) -> Any:
        op = self._calls.next(records=kind)
        record = self._calls.recorded(op, kind, "")
        if record is not None:
            return record.result
        self._calls.record(op, kind, "", fresh)
        return fresh


def _question(new: NewApproval) -> dict[str, Any]:
    """The payload of `approval.required`."""
    return {
        "approval_id": new.id,
        "label": new.label,
        "requires": new.requires,
        "tool_call_id": new.tool_call_id,
        "expires_at": timestamp(new.expires_at) if new.expires_at else None,
    }
