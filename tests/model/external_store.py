"""The model of an external run: each transaction on its rows, and each script on its keys, as one step.

A transaction that dies before its commit has done nothing, so it is one step, which is made or not. `off` leaves out
rules, to see that they are needed.
"""

from dataclasses import dataclass
from typing import ClassVar

from tests.model.explorer import Violation
from tests.model.external_states import UNCLAIMED, Call, Row, State, batches, is_open
from tests.model.logs import Logs
from tests.model.states import TERMINAL, Log

RULES = {
    "answer_committed": "a batch is answered once it is committed",
    "commit_first": "it is appended to Redis once it is committed",
    "epoch_check": "it is taken under the epoch of the writer that has the run, no other",
    "row_lock": "it is judged and committed with the run's row locked",
    "batch_numbers": "a number that was taken is not taken again",
    "number_with_batch": "the number is committed with the events",
    "told_with_batch": "so is what the log has been told of inputs and decisions",
    "carry_told": "the next writer's row goes on with what the log was told of inputs",
    "ask_again": "a decision is told again to a log that has its question once more",
    "claim_fences": "a writer that claims gets the next epoch",
    "claim_heeds_ending": "nobody claims a run that is being ended",
    "take_over_first": "whoever ends a run takes it over before they read its log",
    "stored_ending": "how it is to end is stored with that",
    "finish_numbered": "a finish has the number after the last batch's",
    "same_finish": "the same finish again is answered with the run as it ended",
    "finish_of_last_writer": "it is judged by the last writer's epoch, not by that of the ending",
    "end_decides": "from where an end reads the decisions on, nobody decides any more",
    "beats_compared": "a run is called lost only if its counter still stands where it stood",
    "epoch_compared": "and only under the epoch that was seen",
    "takes_again": "a janitor ends what somebody has begun to end",
    "publish_ends": "a janitor brings ends into Redis",
    "doubt_again": "it doubts an end once more when whoever published it has had the time to mark it published",
    "predecessor": "an append names the event before its first, and is refused where that is not the head",
    "heal_on_behind": "who is refused brings everything that is missing",
    "beat_heals": "so does a heartbeat",
    "claim_heals": "and a claim",
    "refill": "what is archived and missing in Redis is appended",
}
SPARE = {
    "redis_fence": "whoever appends under an earlier epoch than Redis knows is refused: all of them append the archive",
    "end_fenced": "an end is committed under the epoch that has read its log: nobody writes to that but another end",
}
"""Of the rules of workers' runs, in code that is shared, those without which nothing goes wrong here."""


@dataclass(frozen=True)
class Store(Logs[State]):
    """The transactions."""

    asks: bool = False
    """Each writer's first batch asks for the same approval."""
    rules: ClassVar = {**RULES, **SPARE}

    # What writers bring.

    def read(self, s: State) -> Row:
        """batches._OPEN, once it has the lock."""
        over = s.status in TERMINAL or (bool(s.ending) and self.on("take_over_first"))
        return Row(over, s.epoch, s.number, s.head, s.told_inputs, s.told, s.approval)

    def refusal(self, c: Call, row: Row) -> str:
        """_Hold.refusal: ended, stale, gap, or nothing."""
        if row.over:
            return "ended"
        if c.epoch != row.epoch and self.on("epoch_check"):
            return "stale"
        return "gap" if c.kind == "batch" and c.seq > row.number + 1 else ""

    def take(self, s: State, c: Call, row: Row) -> tuple[State, Call]:
        """BatchStore.take of one batch or heartbeat, judged by the row: several in one transaction are several steps.

        `_commit` writes seqs after the row's head, and leaves alone what has a seq already. The log is told of inputs
        and decisions by a heartbeat that follows, with what has passed the hooks (External._tell).
        """
        if refused := self.refusal(c, row):
            return s, c._replace(answer=refused)
        new = c.kind == "batch" and not c.facts and (c.seq > row.number or not self.on("batch_numbers"))
        brought, approval, told = self._brought(c, row) if new else ((), row.approval, row.told)
        upto_input, decision = c.facts or (row.told_inputs, False)
        inputs = tuple(f"input:{n}@{row.epoch}" for n in range(row.told_inputs + 1, upto_input + 1))
        tells = decision and not told
        events = (*brought, *inputs, *((f"decided:{approval}@{row.epoch}",) if tells else ()))
        after = self.insert(s, row.head, events)._replace(approval=approval)
        if s.epoch == row.epoch:
            after = after._replace(number=max(row.number, c.seq) if new else row.number, head=row.head + len(events))
            after = after._replace(told_inputs=max(row.told_inputs, upto_input), beats=s.beats + 1)
        after = after._replace(told=told or tells)
        untold = (after.inputs, approval not in ("", "open"))
        left = not c.facts and (after.told_inputs < after.inputs or (untold[1] and not after.told))
        if untold[1] and not left and (decision or not c.facts) and is_open(after.archive):
            raise Violation(f"not told: {approval}, and the question is open in {after.archive}")
        upto = row.head + len(events) if events or c.kind == "beat" else 0
        return after, c._replace(answer="ok", after=row.head, upto=upto, facts=untold if left else ())

    def _brought(self, c: Call, row: Row) -> tuple[Log, str, bool]:
        """_Hold.take: the batch's events, the approval afterwards, and whether the log has its decision."""
        tick = f"tick:{c.seq}.{c.who}@{c.epoch}"
        if not self.asks or c.seq > 1:
            return (tick,), row.approval, row.told
        told = row.told and not self.on("ask_again")
        return (tick, f"asked@{c.epoch}"), row.approval or "open", told

    def insert(self, s: State, after: int, events: Log, **row: object) -> State:
        """INSERT_EVENTS: an event whose seq is there already is left out."""
        if after > len(s.archive):
            raise Violation(f"a gap: an event after the {after}th in {s.archive}")
        return self.archived(s, s.archive + events[len(s.archive) - after :], **row)

    # Start and claim.

    def create(self, s: State, *, later: bool) -> State | None:
        """ExternalStore.create; None: it is there."""
        if s.status != "none":
            return None
        s = s._replace(epoch=1, head=2, beats=UNCLAIMED if later else 0, last_writer=0 if later else 1)
        return self.archived(s, ("created@1", "started@1"), status="running")

    def claim(self, s: State, epoch: int) -> State | None:
        """ExternalStore.claim of the run as it was read; None: not to be had."""
        if s.epoch != epoch or s.status != "running" or (s.ending and self.on("claim_heeds_ending")):
            return None
        if s.beats == UNCLAIMED:
            return s._replace(beats=0, last_writer=epoch)
        if not self.on("claim_fences"):
            return s
        s = self.insert(s, s.head, (f"step@{epoch + 1}",))
        return self._next(s, s.head + 1)._replace(last_writer=s.epoch + 1)

    def _next(self, s: State, head: int, ending: str = "") -> State:
        """_ADVANCE and _insert_writer."""
        told = s.told_inputs if self.on("carry_told") else 0
        return s._replace(epoch=s.epoch + 1, number=0, head=head, beats=0, told_inputs=told, ending=ending)

    # Ends.

    def take_over(self, s: State, wanted: str) -> State:
        """_take_over."""
        if s.accepted not in ("", wanted):
            raise Violation(f"taken over twice: to end as {s.accepted}, and now as {wanted}")
        s = s._replace(accepted=wanted)
        if not self.on("take_over_first"):
            return s._replace(ending=wanted)
        return self._next(s, s.head, wanted if self.on("stored_ending") else "")

    def begin_end(self, s: State, c: Call) -> tuple[State, Call]:
        """ExternalStore.begin_end."""
        if c.epoch != (s.last_writer if self.on("finish_of_last_writer") else s.epoch):
            return s, c._replace(answer="stale")
        if s.ending not in ("", c.wanted) or (s.status in TERMINAL and not self.on("same_finish")):
            return s, c._replace(answer="ended")
        if s.status in TERMINAL:
            return s, c._replace(answer="done")
        if not s.ending and c.seq != s.number + 1 and self.on("finish_numbered"):
            return s, c._replace(answer="gap")
        if not s.ending and batches(s.archive, c.who, c.epoch) != c.seq - 1:
            raise Violation(f"a batch is missing: the finish is number {c.seq} of {s.archive}")
        if s.accepted and not s.ending:
            raise Violation(f"taken over twice: to end as {s.accepted} by {s.accepted_from}, and now by {c.epoch}")
        s = self.take_over(s, c.wanted)._replace(accepted_from=s.accepted_from if s.ending else c.epoch)
        return s, c._replace(at="open", epoch=s.epoch)

    def take_lost(self, s: State, c: Call) -> tuple[State, Call | None]:
        """ExternalStore.take_lost of what a janitor has seen; None: somebody was faster."""
        if s.status != "running" or (s.epoch != c.epoch and self.on("epoch_compared")):
            return s, None
        if s.beats != c.beats and not c.ignore_heartbeat and self.on("beats_compared"):
            return s, None
        if (s.epoch, s.beats) != (c.epoch, c.beats) and not c.ignore_heartbeat:
            raise Violation(f"called lost in spite of a sign of life: {c.epoch}, {c.beats} was seen of {s}")
        wanted = s.ending or c.wanted
        s = self.take_over(s, wanted)
        return s, c._replace(at="open", epoch=s.epoch, wanted=wanted)

    def take_again(self, s: State, epoch: int) -> tuple[State, str] | None:
        """ExternalStore.take_again of the run as it was read."""
        if s.epoch != epoch or s.status != "running" or not s.ending:
            return None
        return self.take_over(s, s.ending), s.ending

    def owns(self, s: State, c: Call) -> bool:
        """`WHERE epoch = … AND status = 'running'`."""
        return s.status == "running" and (s.epoch == c.epoch or not self.on("end_fenced"))

    def close(self, s: State, c: Call) -> tuple[State, Call]:
        """Ownership.open_archived, end and close_approvals: the log is an ended writer's, and no longer written."""
        local = s.archive
        if is_open(local):
            if not self.owns(s, c):
                return s, c._replace(at="publish")
            decision = s.approval if s.approval != "open" else "expired"
            local = (*local, f"decided:{decision}@{c.epoch}")
            s = s._replace(approval=decision) if self.on("end_decides") else s
        return s, c._replace(at="commit_end", after=len(s.archive), local=(*local, f"{c.wanted}@{c.epoch}"))

    def commit_end(self, s: State, c: Call) -> State | None:
        """Ownership.commit_end; None: fenced."""
        if not self.owns(s, c):
            return None
        approval = "expired" if s.approval == "open" else s.approval
        s = self.insert(s, c.after, c.local[c.after :], status=c.wanted, approval=approval)
        if s.archive != c.local:
            raise Violation(f"an end that is not the log's: {c.local}, and the log is {s.archive}")
        return s

    # Users.

    def decide(self, s: State) -> State:
        """Waits.decide."""
        return s._replace(approval="approved")
