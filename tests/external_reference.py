"""What an external run is to be after what was asked of it, in memory and in order: held against the real one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.protocol.events import Event
from tests.external_writer import Line

Entry = tuple[str, str]
"""An event of the log: its type, and what tells it from others of that type."""
Answer = tuple[int, str]
"""HTTP status and code, which is empty where there is no error."""
Wanted = dict[str, Any]
"""How a run is to end: `status`, and `output` or `error`."""

OK: Answer = (200, "")
REPEATED: Answer = (204, "")
ENDED: Answer = (409, "run_ended")
STALE: Answer = (403, "stale_epoch")
GAP: Answer = (409, "producer_gap")
_MEMBERS = {"custom.tick": "n", "approval.required": "approval_id", "input.received": "input_id", "run.step": "attempt"}


def entry(event: Event) -> Entry:
    """The event as the reference knows it."""
    payload = event.envelope()["payload"]
    if event.type == "approval.resolved":
        return event.type, f"{payload['approval_id']} {payload['decision']} {payload['by']}"
    return event.type, str(payload.get(_MEMBERS.get(event.type, ""), ""))


@dataclass
class Approval:
    """One that was asked for."""

    label: str
    late: bool
    """Its time is over."""
    decision: str | None = None
    by: str | None = None
    closed: bool = False
    """Nobody decided: the run has ended."""
    told: bool = False
    open: bool = True
    """So the log says."""


@dataclass
class Reference:
    """The run, and what its writers and users are to be answered."""

    unclaimed: bool
    epoch: int = 1
    attempt: int = 1
    number: int = 0
    beats: int = 0
    last_writer: int = 0
    cancelled: bool = False
    inputs: int = 0
    inputs_told: int = 0
    status: str = "running"
    ending: Wanted | None = None
    log: list[Entry] = field(default_factory=lambda: [("run.created", ""), ("run.started", "")])
    approvals: dict[str, Approval] = field(default_factory=dict)
    decided: list[str] = field(default_factory=list)
    """Ids of approvals, in the order in which they were decided."""

    def __post_init__(self) -> None:
        self.beats, self.last_writer = (-1, 0) if self.unclaimed else (0, 1)

    @property
    def over(self) -> bool:
        """It has ended."""
        return self.status != "running"

    # Writers.

    def claim(self) -> bool:
        """Another writer; False: the run has ended by now."""
        if self.ending is not None and not self.over:
            self.end(self.ending)
        if self.over:
            return False
        if self.unclaimed:
            self.unclaimed, self.beats, self.last_writer = False, 0, self.epoch
            return True
        self._next()
        self.last_writer = self.epoch
        self.attempt += 1
        self.log.append(("run.step", str(self.attempt)))
        return True

    def take(self, epoch: int, seq: int | None, lines: Sequence[Line], *, dies: bool = False) -> Answer:
        """A batch, or a heartbeat.

        :param dies: the web process, once the batch is committed: what a user has said is told by a later call.
        """
        if self.over or self.ending is not None:
            return ENDED
        if epoch != self.epoch:
            return STALE
        if seq is not None and seq > self.number + 1:
            return GAP
        new = seq is not None and seq == self.number + 1
        if new and self._contradicts(lines):
            return 422, "invalid_event"
        if new:
            self.number += 1
            self._bring(lines)
        self.beats += 1 + (not dies and self._tell())  # what a user has said is told by a heartbeat of its own
        return OK if new or seq is None else REPEATED

    def _contradicts(self, lines: Sequence[Line]) -> bool:
        labels = {id: approval.label for id, approval in self.approvals.items()}
        asked = [payload for type, payload in lines if type == "approval.required"]
        return any(labels.setdefault(p["approval_id"], p["label"]) != p["label"] for p in asked)

    def _bring(self, lines: Sequence[Line]) -> None:
        for type, payload in lines:
            self.log.append((type, str(payload[_MEMBERS[type]])))
            if type == "approval.required":
                new = Approval(payload["label"], late="expires_at" in payload)
                approval = self.approvals.setdefault(payload["approval_id"], new)
                approval.told, approval.open = False, True

    def _tell(self) -> bool:
        before = len(self.log)
        for n in range(self.inputs_told + 1, self.inputs + 1):
            self.log.append(("input.received", f"inp_{n}"))
        self.inputs_told = self.inputs
        for id in self.decided:
            if not self.approvals[id].told:
                self._resolve(id)
        return len(self.log) > before

    def _resolve(self, id: str) -> None:
        approval = self.approvals[id]
        self.log.append(("approval.resolved", f"{id} {approval.decision} {approval.by}"))
        approval.told, approval.open = True, False

    # Ends.

    def finish(self, epoch: int, seq: int, wanted: Wanted) -> Answer:
        """A writer's."""
        refused = self.may_end(epoch, seq, wanted)
        if refused is None and not self.over:
            self.end(wanted)
        return refused or OK

    def may_end(self, epoch: int, seq: int, wanted: Wanted) -> Answer | None:
        """None: it may, or it has ended like that."""
        if epoch != self.last_writer:
            return STALE
        if self.ending not in (None, wanted):
            return ENDED
        return GAP if self.ending is None and seq != self.number + 1 else None

    def take_over(self, wanted: Wanted) -> None:
        """Somebody begins to end it."""
        self._next()
        self.ending = wanted

    def end(self, wanted: Wanted) -> None:
        """Somebody ends it."""
        self.take_over(wanted)
        self.status = wanted["status"]
        if wanted.get("output"):
            self.log += [("message.started", ""), ("message.delta", ""), ("message.completed", "")]
        for id, approval in self.approvals.items():
            if approval.decision is None:
                approval.decision, approval.closed = "expired", True
            if approval.open:
                self._resolve(id)
        self.log.append((f"run.{self.status}", ""))

    def _next(self) -> None:
        self.epoch, self.number, self.beats, self.unclaimed = self.epoch + 1, 0, 0, False

    # Users, and time.

    def cancel(self) -> None:
        """A cancel. Nobody has to be told of it where no writer has come."""
        self.cancelled = True
        if self.unclaimed:
            self.end({"status": "cancelled"})

    def add_input(self) -> Answer:
        """An input."""
        if self.over or self.cancelled:
            return ENDED if self.over else (409, "run_cancelling")
        self.inputs += 1
        return 202, ""

    def decide(self, id: str, decision: str) -> Answer:
        """A decision."""
        approval = self.approvals.get(id)
        if approval is None:
            return 404, "approval_not_found"
        if approval.decision is None and not self.over and not self.cancelled:
            self._decide(id, *(("expired", None) if approval.late else (decision, "dev")))
        if approval.decision == decision:
            return OK
        if (self.over or self.cancelled) and (approval.decision is None or approval.closed):
            return ENDED if self.over else (409, "run_cancelling")
        return 409, "approval_resolved"

    def expire(self) -> None:
        """What is late expires, in any order."""
        for id, approval in self.approvals.items():
            if approval.late and approval.decision is None:
                self._decide(id, "expired", None)

    def _decide(self, id: str, decision: str, by: str | None) -> None:
        self.approvals[id].decision, self.approvals[id].by = decision, by
        self.decided.append(id)

    # What a writer is told.

    def answer(self, inputs_after: int) -> dict[str, Any]:
        """The body of an append's or heartbeat's answer; its decisions by their ids."""
        return {
            "head": len(self.log),
            "producer_seq": self.number,
            "cancel_requested": self.cancelled,
            "inputs": [f"inp_{n}" for n in range(inputs_after + 1, self.inputs_told + 1)],
            "decisions": {id: (self.approvals[id].decision, self.approvals[id].by) for id in self.decided},
        }
