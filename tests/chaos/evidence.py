"""What must be true after a play. Each check returns what is wrong, in sentences that name run and seq.

What is proved of side effects. A call of `plain` makes one row of its own, with a token; the journal records the token
of the call that was committed. Then, for every recorded call:

- the recorded token is that of a row, and of the *last* row of its (run, op): had the call been made once more after
  its record was committed, at whatever moment, there would be a later row;
- an earlier row is of a call that was in flight when its worker died: there are at most as many as new owners took the
  run over after the call ahead of it was recorded, and before this one's `tool.completed`;
- the token is what `tool.completed` shows and what the agent was given, also in the last invocation, which made the
  output from recorded results: the list of the recorded tokens.

`keyed` has exactly one row for each call all the same: its key is the same whenever the call is made again.
"""

import json
from collections import Counter
from collections.abc import Iterator

from app.cli.verification import Claim, Mismatch, verify
from app.protocol.digest import digest
from app.protocol.events import TERMINAL, Event
from app.protocol.reducer import fold, initial
from app.protocol.state import output_of
from tests.chaos.archive import Archive, Asked
from tests.chaos.play import Play
from tests.chaos.schedule import EXTERNAL, order_number
from tests.chaos.windows import Window

UNCOMPARED = ("run.", "message.")
"""Types whose number depends on the blows: attempts, and messages begun anew."""
LEDGERS = ("ledger", "ledger_apart")
TEXT_AGENTS = ("emit", "support")


class Evidence:
    """A play, and what it left behind."""

    def __init__(self, play: Play, archive: Archive) -> None:
        self.play = play
        self.archive = archive

    # Ends and logs.

    def not_ended(self) -> Iterator[str]:
        """Every run ends, and completes: nobody cancelled it, and who is denied gets a reply that says so."""
        yield from self.play.complaints
        yield from (f"not level again: {what}" for what in self.play.unlevel)
        for run_id, order in self.play.started.items():
            row = self.archive.runs.get(run_id)
            if row is None:
                yield f"{run_id} ({order}) has no row"
            elif row.status != "completed":
                last = self.archive.events[run_id][-1]
                yield f"{run_id} ({order.agent}) is {row.status} {row.error} after seq {last.seq} ({last.type}), {row}"
        for run_id in self.archive.runs.keys() - self.play.started.keys():
            yield f"{run_id} was started twice over"

    def not_level(self) -> Iterator[str]:
        """An archived log is 1, 2, 3 …, its terminal event the last and only one."""
        for run_id, events in self.archive.events.items():
            if [event.seq for event in events] != list(range(1, len(events) + 1)):
                yield f"{run_id}: its archive has {[event.seq for event in events]}"
            ends = [event.seq for event in events if event.type in TERMINAL]
            if ends != [len(events)]:
                yield f"{run_id}: its terminal events are {ends} of {len(events)}"

    # Windows.

    def wrong_windows(self) -> Iterator[str]:
        """A window got every seq once, as it is archived, or a snapshot in the place of some."""
        for window in self.play.windows:
            yield from (f"{window.run_id}: {complaint}" for complaint in window.complaints)
            archived = {event.seq: event.text for event in self.archive.events[window.run_id]}
            if not window.done:
                yield f"{window.run_id}: its window is at seq {window.cursor} of {len(archived)}, without the end"
            for seq, text in archived.items():
                got = window.texts.get(seq)
                if got is None and seq <= window.cursor and not _skipped(window, seq):
                    yield f"{window.run_id}: seq {seq} never came"
                elif got is not None and got != text:
                    yield f"{window.run_id}: seq {seq} came as {got[:200]} and is archived as {text[:200]}"
            if strange := window.texts.keys() - archived.keys():
                yield f"{window.run_id}: seqs {sorted(strange)} came and are not archived"

    def gaps(self) -> Iterator[str]:
        """Windows that were told of a loss."""
        return (f"{window.run_id}: {window.gaps} gaps" for window in self.play.windows if window.gaps)

    def wrong_digests(self) -> Iterator[str]:
        """The digest of what a client received is the stored one."""
        for window in self.play.windows:
            row, texts = self.archive.runs[window.run_id], window.texts
            envelopes = [json.loads(text) for _, text in sorted(texts.items())]
            try:
                if not window.snapshots:
                    verify(window.run_id, envelopes, Claim(row.status, row.digest, row.state))
                elif (computed := _digest_after_snapshot(window)) != row.digest:
                    yield f"{window.run_id}: the client computed {computed} from a snapshot, stored is {row.digest}"
            except (Mismatch, ValueError) as error:
                yield f"{window.run_id}: {error}"

    # Calls.

    def made_again(self) -> Iterator[str]:
        """Recorded calls of `plain` that were made once more, or whose record is not what was done."""
        for (run_id, op), effects in self.archive.plain.items():
            name, recorded = self.archive.results.get((run_id, op), (None, None))
            where = f"{run_id}, op {op}"
            if name is None:
                yield f"{where}: {len(effects)} effects and no record"
            elif recorded != effects[-1].token:
                yield f"{where}: recorded is {recorded}, done was {effects}"
            elif len(effects) - 1 > (takeovers := self._takeovers_during(run_id, op)):
                yield f"{where}: {len(effects)} effects, although the run changed hands {takeovers} times meanwhile"
        for (run_id, op), (name, token) in self.archive.results.items():
            if name == "plain" and not self.archive.plain[run_id, op]:
                yield f"{run_id}, op {op}: {token} is recorded, and nothing was done"

    def wrong_results(self) -> Iterator[str]:
        """What the log and the output say of the calls is what is recorded of them."""
        for run_id, order in self.play.started.items():
            if order.agent not in LEDGERS:
                continue
            calls = [(op, result) for (run, op), result in self.archive.results.items() if run == run_id]
            shown = Counter((e.op, e.envelope()["payload"]["preview"]) for e in self._of_type(run_id, "tool.completed"))
            if shown != Counter((op, token) for op, (_, token) in calls):
                yield f"{run_id}: the log shows {shown}, recorded are {calls}"
            output = self.archive.runs[run_id].output or {"entries": []}
            if Counter(output["entries"]) != Counter(token for _, (name, token) in calls if name == "plain"):
                yield f"{run_id}: the agent was given {output['tokens']}, recorded are {calls}"

    def wrong_keyed(self) -> Iterator[str]:
        """A tool that uses its idempotency key has one effect for each call."""
        for (run_id, op), keys in self.archive.keyed.items():
            if keys != [f"{run_id}:{op}"]:
                yield f"{run_id}, op {op}: it has the keys {keys}"
        done = Counter(run_id for run_id, _ in self.archive.keyed)
        for run_id, order in self.play.started.items():
            if order.agent in LEDGERS and done[run_id] != order.input["calls"] + 2:
                yield f"{run_id}: {done[run_id]} of {order.input['calls'] + 2} calls of keyed had an effect"

    def in_flight(self) -> int:
        """Calls of `plain` that were made again because nobody knew what had become of them: their worker had died."""
        return sum(len(effects) - 1 for effects in self.archive.plain.values())

    def doubled(self) -> int:
        """Effects that a recorded call had beyond its one."""
        late = (
            sum(effect.serial > recorded.serial for effect in effects)
            for call, effects in self.archive.plain.items()
            for recorded in effects
            if recorded.token == self.archive.results.get(call, (None, None))[1]
        )
        return sum(late) + sum(count - 1 for count in self.archive.refunds.values() if count > 1)

    def _takeovers_during(self, run_id: str, op: str) -> int:
        """How often the run changed hands while the call may have been in flight.

        Not before the call ahead of it was recorded. `tool.started` does not tell: it may have been lost with the
        worker, while Redis was away.
        """
        events = self.archive.events[run_id]
        done = {event.op: event.seq for event in events if event.type == "tool.completed"}
        since = max((seq for other, seq in done.items() if _precedes(other, op)), default=0)
        return sum(event.type == "run.step" and since < event.seq < done[op] for event in events)

    # Events.

    def emitted_again(self) -> Iterator[str]:
        """Every run emitted what an undisturbed run of its kind did, in the same order within each branch."""
        models = {self.kind(run_id): _branches(self.archive.events[run_id]) for run_id in self.play.references}
        for run_id, order in self.play.started.items():
            kind = self.kind(run_id)
            if kind in models and (differs := _difference(_branches(self.archive.events[run_id]), models[kind])):
                yield f"{run_id} ({kind}): {differs}"
            if order.agent == "emit":
                yield from self._wrong_emit(run_id, order.input)
            if order.agent == EXTERNAL:
                yield from self._wrong_emit(run_id, {**order.input, "type": "custom.tick", "text": ""})
            yield from _repeated_ids(run_id, self.archive.events[run_id])

    def _wrong_emit(self, run_id: str, input: dict[str, object]) -> Iterator[str]:
        count, text = int(str(input["count"])), str(input["text"])
        if input["type"] == "custom.tick":
            ticks = [event.envelope()["payload"]["n"] for event in self._of_type(run_id, "custom.tick")]
            if ticks != list(range(count)):
                yield f"{run_id}: it was to tick {count} times, and ticked {ticks}"
        elif (answer := self.archive.runs[run_id].state["answer"]["text"]) != text * count:
            yield f"{run_id}: its text has {len(answer)} characters, not {len(text) * count}"

    # Approvals.

    def wrong_approvals(self) -> Iterator[str]:
        """Each is decided once: row, log, every answer and the refund agree."""
        answers: dict[str, list[tuple[str, int]]] = {}
        for decided in self.play.decided:
            answers.setdefault(decided.run_id, []).append((decided.verdict, decided.status))
        for run_id, order in self.play.started.items():
            if order.agent != "support" or order.decision.verdict == "none":
                continue
            asked = self.archive.approvals[run_id]
            if self.diverted(run_id) and not asked:
                continue
            if len(asked) != 1 or asked[0].decision not in ("approved", "denied"):
                yield f"{run_id}: its approvals are {asked}"
            else:
                yield from self._disagreements(run_id, asked[0], answers.get(run_id, []), order_number(order))

    def _disagreements(self, run_id: str, asked: Asked, answers: list[tuple[str, int]], number: int) -> Iterator[str]:
        told = {(verdict, 200 if verdict == asked.decision else 409) for verdict, _ in answers}
        if not answers or set(answers) != told:
            yield f"{run_id}: it was {asked.decision}, and the callers were told {answers}"
        if asked.decided_by != "dev" or asked.comment != f"The chaos suite says {asked.decision}.":
            yield f"{run_id}: {asked}"
        resolved = [event.envelope()["payload"] for event in self._of_type(run_id, "approval.resolved")]
        if [payload["decision"] for payload in resolved] != [asked.decision]:
            yield f"{run_id}: it was {asked.decision}, its log says {resolved}"
        issued = any(name == "issue_refund" for (run, _), (name, _) in self.archive.results.items() if run == run_id)
        refunds, most = self.archive.refunds.get(number, 0), int(asked.decision == "approved")
        # A diverted run may have given up on a shop that did refund, and could not say so.
        if refunds > most or refunds < issued or (refunds < most and not self.diverted(run_id)):
            yield f"{run_id}: it was {asked.decision}, and order {number} has {refunds} refunds"

    def kind(self, run_id: str) -> str:
        """Runs of the same kind emit the same events, their texts apart."""
        order = self.play.started[run_id]
        decisions = [str(asked.decision) for asked in self.archive.approvals[run_id]]
        return ", ".join([order.agent, *decisions, *(["diverted"] if self.diverted(run_id) else [])])

    def diverted(self, run_id: str) -> bool:
        """A tool of it failed, because it found its database killed: the agent went another way than undisturbed."""
        return bool(self._of_type(run_id, "tool.failed"))

    def _of_type(self, run_id: str, type: str) -> list[Event]:
        return [event for event in self.archive.events[run_id] if event.type == type]


def _precedes(one: str, other: str) -> bool:
    """Call `other` is made after call `one` has come back: it is further on in the same branch, or within that."""
    *branch, number = one.split(".")
    parts = other.split(".")
    return parts[: len(branch)] == branch and int(number) < int(parts[len(branch)])


def _skipped(window: Window, seq: int) -> bool:
    """A snapshot stands in the place of this event."""
    known = sorted(window.texts)
    return any(
        seq <= snapshot and not any(seq < other <= snapshot for other in known) for snapshot, _ in window.snapshots
    )


def _digest_after_snapshot(window: Window) -> str:
    seq, state = window.snapshots[-1]
    rest = [json.loads(text) for n, text in sorted(window.texts.items()) if n > seq]
    if not rest:
        return str(state["digest"])
    before = fold(rest[:-1], state or initial(window.run_id))
    return digest(before, output_of(before, rest[-1]["payload"]))


def _branches(events: list[Event]) -> dict[str, list[tuple[str, str]]]:
    """(type, op) in order, by branch: branches that run side by side have no order between them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for event in events:
        if not event.type.startswith(UNCOMPARED):
            found.setdefault(event.op.rpartition(".")[0], []).append((event.type, event.op))
    return found


def _difference(found: dict[str, list[tuple[str, str]]], model: dict[str, list[tuple[str, str]]]) -> str:
    for branch in sorted(found.keys() | model.keys()):
        ours, theirs = found.get(branch, []), model.get(branch, [])
        if ours != theirs:
            more, less = Counter(ours) - Counter(theirs), Counter(theirs) - Counter(ours)
            return f"in branch {branch!r} too many are {dict(more)}, missing are {dict(less)}" + (
                "" if more or less else f"; the order is {ours}, not {theirs}"
            )
    return ""


def _repeated_ids(run_id: str, events: list[Event]) -> Iterator[str]:
    """No call, step, approval or message begins twice."""
    begun: Counter[tuple[str, str]] = Counter()
    for event in events:
        if event.type in ("tool.started", "step.started", "message.started", "approval.required"):
            payload = event.envelope()["payload"]
            name = next(name for name in ("tool_call_id", "step_id", "message_id", "approval_id") if name in payload)
            if event.type == "approval.required":
                name = "approval_id"
            if event.type == "step.started":
                name = "step_id"
            begun[event.type, payload[name]] += 1
    yield from (f"{run_id}: {type} of {id} {count} times" for (type, id), count in begun.items() if count > 1)
