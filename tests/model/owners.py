"""What an owner does, step by step: a worker with its agent, or an API process that ends a run.

An agent is a script of calls: `tool`, `approve`, `input` (waits for one) and `sleep` (long enough to suspend). While
its outbox is open, appending and archiving go on beside it, and so do the looks at its commands.
"""

from collections.abc import Iterator

from tests.model.explorer import Violation
from tests.model.runs import MOST_ATTEMPTS, Transactions, resolved
from tests.model.states import TERMINAL, Actor, Log, State, count, has

OPEN = ("bring", "call", "run", "commit", "record", "ask")
"""Where the outbox is open."""
COMMITS = ("commit", "record", "ask")
"""Where the agent waits for a commit."""

Move = tuple[str, State, Actor | None, bool]
"""What was done, the state, the actor afterwards (None: it is gone), and whether that was a fault."""


class Owners:
    """The moves of one actor."""

    def __init__(self, transactions: Transactions) -> None:
        self._do = transactions

    def moves(self, s: State, a: Actor) -> Iterator[Move]:
        """Every step that the actor may make next."""
        yield from getattr(self, f"_{a.at}")(s, a)
        if a.at in OPEN:
            yield from self._append(s, a)
            yield from self._archive(s, a)
            yield from self._commands(s, a)

    # From the claim to the first call.

    def _claim(self, s: State, a: Actor) -> Iterator[Move]:
        claimed = self._do.claim(s, start=not a.api)
        if claimed is None:
            yield "claim refused", s, None, False
        else:
            alone = not a.api and self._do.is_alone(s)
            yield (
                "claim",
                claimed,
                a._replace(at="fence", epoch=claimed.epoch, name=claimed.owner, reason=s.reason, alone=alone),
                False,
            )

    def _fence(self, s: State, a: Actor) -> Iterator[Move]:
        if not self._do.on("redis_fence"):
            yield "no fence", s, a._replace(at="sync"), False
        elif a.epoch < s.redis_epoch or self._do.is_taken(s, a):
            yield "the epoch is taken", s, a._replace(at="raise"), False
        else:
            fenced = self._do.set_log(s, a.epoch, s.log)._replace(redis_owner=a.name)
            yield "raise the epoch in Redis", fenced, a._replace(at="sync"), False

    def _raise(self, s: State, a: Actor) -> Iterator[Move]:
        raised = self._do.raise_epoch(s, a)
        left = a._replace(at="fence", epoch=raised.epoch) if raised else None
        yield "raise the row above it" if raised else "raise refused", raised or s, left, False

    def _sync(self, s: State, a: Actor) -> Iterator[Move]:
        s, ours = self._do.sync(s, a.epoch)
        yield "append what is archived", s, a._replace(at="rest") if ours else None, False

    def _rest(self, s: State, a: Actor) -> Iterator[Move]:
        """_archive_rest reads Redis: the commit is a step of its own."""
        rest = s.log[len(s.archive) :] if self._do.on("level_archive") else ()
        if rest:
            yield "read what is not archived", s, a._replace(at="rest_commit", local=s.archive + rest), False
        else:
            head = len(s.archive)
            after = a._replace(at="end" if a.api else "journal", local=s.archive, appended=head, archived=head)
            ended = [status for status in TERMINAL if has(s.archive, status)]
            if ended and self._do.on("end_restored"):
                yield "the log has its end", s, after._replace(at="commit_end", end=ended[0]), False
            else:
                yield "log and archive are level", s, after._replace(end="cancelled" if a.api else ""), False

    def _rest_commit(self, s: State, a: Actor) -> Iterator[Move]:
        ours = self._do.owns(s, a)
        follows = a.local[: len(s.archive)] == s.archive  # else somebody else has archived meanwhile
        committed = self._do.take_in(s, a.local[len(s.archive) :]) if ours and follows else s
        yield "archive what Redis held", committed, a._replace(at="rest") if ours else None, False

    def _journal(self, s: State, a: Actor) -> Iterator[Move]:
        if len(s.archive) < a.archived and self._do.owns(s, a):
            yield from self._refill(s, a)
            return
        known = tuple(op > 0 and self._do.on("journal") for op in s.ops)
        yield "read the journal", s, a._replace(at="confirm", known_ops=known, known_approval=s.approval, call=0), False

    def _confirm(self, s: State, a: Actor) -> Iterator[Move]:
        if not self._do.owns(s, a):
            yield "confirm refused", s, None, False
        elif s.cancel and self._do.on("cancel_after_claim"):
            yield "confirm: it is cancelled", s, a._replace(at="end", end="cancelled"), False
        elif s.attempt > MOST_ATTEMPTS:
            yield "confirm: it has ended too many workers", s, a._replace(at="end", end="failed"), False
        else:
            begun = count(a.local, "run.started") and not a.reason and self._do.on("started_once")
            reason = "retry" if begun else a.reason
            says = {"": "run.started", "resumed": "run.resumed"}.get(reason, "run.step")
            after = self._say(a, says)._replace(at="bring" if reason else "call")
            yield "confirm, announce", s, after, False

    def _bring(self, s: State, a: Actor) -> Iterator[Move]:
        yield "bring inputs", s, self._heard(a, s.inputs)._replace(at="call"), False

    # The agent.

    def _call(self, s: State, a: Actor) -> Iterator[Move]:
        """Everything up to where the agent waits for something is one step: nobody else sees it."""
        if a.call == len(self._do.script):
            yield "return", s, a._replace(at="end", end="completed"), False
            return
        kind, known = self._do.script[a.call], a.known_ops[a.call]
        if kind == "tool":
            started = a if has(a.local, f"tool.started:{a.call}") else self._say(a, f"tool.started:{a.call}")
            after = self._next(a) if known else started._replace(at="run")
        elif kind == "approve":
            after = self._approve(a)
        elif kind == "input":
            taken = sum(k == "input" for k in self._do.script[: a.call])
            arrived = count(a.local, "input.received") > taken
            after = self._next(a) if known else a._replace(at="record") if arrived else self._unwind(a)
        else:
            slept = self._next(a) if s.late else self._unwind(a)
            after = slept if known else a._replace(at="record")
        yield f"call {a.call}: {kind}", s, after, False

    def _approve(self, a: Actor) -> Actor:
        if not a.known_approval:
            asked = self._say(a, f"approval.required:{a.call}")
            return asked._replace(at="ask", held=len(asked.local))
        if a.known_approval == "open":
            return self._unwind(a)
        told = resolved(a.local) is not None
        return self._next(a if told else self._say(a, f"approval.resolved:{a.known_approval}"))

    def _run(self, s: State, a: Actor) -> Iterator[Move]:
        """The tool's effect on the world."""
        if s.ops[a.call] and a.epoch >= s.ops[a.call]:
            raise Violation(f"done twice: call {a.call}, recorded by owner {s.ops[a.call]}, is made by owner {a.epoch}")
        if s.status in TERMINAL and not (s.replaced and a.epoch < s.epoch):
            raise Violation(f"done after the end: call {a.call} by owner {a.epoch}")
        if 0 < s.cancelled_from <= a.epoch:
            raise Violation(f"done after its cancel: call {a.call} by owner {a.epoch}")
        after = self._say(a, f"tool.completed:{a.call}")
        yield f"TOOL {a.call} IS EXECUTED", s, after._replace(at="commit", held=len(after.local)), False

    def _commit(self, s: State, a: Actor) -> Iterator[Move]:
        """The agent waits; the archive's move makes the commit."""
        if not self._do.on("op_with_event"):
            committed = self._do.commit(s, a, events=False)
            after = self._next(a._replace(held=0)) if committed else None
            yield "commit the result alone", committed or s, after, False

    _record = _commit

    def _ask(self, s: State, a: Actor) -> Iterator[Move]:
        if s.approval and s.timeouts and a.held == 0:
            yield "the time is over", s._replace(timeouts=s.timeouts - 1), a._replace(at="end", end="failed"), True
        if a.held == 0:
            yield "unwind", s, self._unwind(a), False

    # Beside the agent.

    def _append(self, s: State, a: Actor) -> Iterator[Move]:
        if a.behind >= 0:
            if not self._do.owns(s, a) or a.behind > len(a.local):
                yield "behind, and lost", s, None, False
            else:
                yield "behind: level", s, a._replace(appended=a.behind, behind=-1), False
            return
        end = a.held - 1 if a.held and self._do.on("commit_first") else len(a.local)
        if end <= a.appended:
            return
        if not a.confirmed:
            ours = self._do.owns(s, a)
            yield "confirm the epoch again", s, a._replace(confirmed=True) if ours else None, False
            return
        after, outcome = self._do.append_own(s, a, a.local[a.appended : end])
        left = {
            "OK": a._replace(appended=end),
            "FENCED": None,
            "BEHIND": a._replace(behind=len(s.log)),
        }
        yield f"append: {outcome}", after, left[outcome], False
        if s.lost_answers and outcome == "OK":
            yield "append, ANSWER LOST", after._replace(lost_answers=s.lost_answers - 1), a, True

    def _archive(self, s: State, a: Actor) -> Iterator[Move]:
        if (a.archived == len(a.local) and a.at not in COMMITS) or (a.at == "ask" and not a.held):
            return
        if not a.looked:
            yield from self._look(s, a)
            return
        if self._do.is_behind(s, a):
            yield from self._refill(s, a)
            return
        committed = self._do.commit(s, a)
        if committed is None:
            yield "archive refused", s, None, False
            return
        if s.lost_answers:
            yield "archive, ANSWER LOST", committed._replace(lost_answers=s.lost_answers - 1), a, True
        kept = a._replace(archived=len(a.local), held=0)
        if committed.cancel:
            yield "archive, and see the cancel", committed, kept._replace(at="end", end="cancelled"), False
        elif a.at in ("commit", "record"):
            yield f"COMMIT call {a.call}", committed, self._next(kept), False
        else:
            yield "archive" if a.at != "ask" else "COMMIT the question", committed, kept, False

    def _look(self, s: State, a: Actor) -> Iterator[Move]:
        fenced = a.epoch < s.redis_epoch or self._do.is_taken(s, a)
        yield "look in Redis" + ": FENCED" * fenced, s, None if fenced else a._replace(looked=True), False

    def _refill(self, s: State, a: Actor) -> Iterator[Move]:
        filled = self._do.refill(s, a)
        yield "refill the archive" if filled else "refill refused", filled or s, a if filled else None, False

    def _commands(self, s: State, a: Actor) -> Iterator[Move]:
        """check_commands, once it was rung or by itself."""
        if not self._do.owns(s, a):
            return
        if s.cancel:
            yield "see the cancel", s, a._replace(at="end", end="cancelled"), False
        elif s.inputs > count(a.local, "input.received"):
            yield "bring inputs", s, self._heard(a, s.inputs), False
        if s.deploys:
            yield "DEPLOY", s._replace(deploys=s.deploys - 1), Actor("hand_back", a.epoch, a.name), True

    # The end of the invocation.

    def _suspend(self, s: State, a: Actor) -> Iterator[Move]:
        if not a.looked:
            yield from self._look(s, a)
            return
        if self._do.is_behind(s, a):
            yield from self._refill(s, a)
            return
        after, outcome = self._do.suspend(s, a)
        if outcome == "FENCED":
            yield "suspend refused", s, None, False
            return
        if s.lost_answers:
            yield "suspend, ANSWER LOST", after._replace(lost_answers=s.lost_answers - 1), a, True
        kept = a._replace(archived=len(a.local), held=0)
        if outcome == "WAITS":
            yield "SUSPEND", after, Actor("publish_wait", a.epoch, a.name), False
        else:
            yield "suspend: go on", after, kept._replace(at="journal", reason="resumed"), False

    def _publish_wait(self, s: State, a: Actor) -> Iterator[Move]:
        yield "append run.waiting", self._do.sync(s, a.epoch)[0], None, False

    def _hand_back(self, s: State, a: Actor) -> Iterator[Move]:
        released = self._do.release(s, a.epoch, "deploy")
        yield "hand back" if released else "hand back refused", released or s, None, False

    def _end(self, s: State, a: Actor) -> Iterator[Move]:
        """Ownership.end: reads the decisions, closes what is open."""
        local = a.local
        if count(local, "approval.required") and resolved(local) is None:
            decision = s.approval if s.approval not in ("", "open") else "expired"
            local = (*local, f"approval.resolved:{decision}@{_by(a)}")
        for call in range(len(self._do.script)):
            running = has(local, f"tool.started:{call}") and not has(local, f"tool.completed:{call}")
            if running:
                local = (*local, f"tool.failed:{call}@{_by(a)}")
        yield "read the decisions", s, a._replace(at="commit_end", local=(*local, f"{a.end}@{_by(a)}")), False

    def _commit_end(self, s: State, a: Actor) -> Iterator[Move]:
        stale = s.approval not in ("", "open", "expired") and resolved(a.local) != s.approval
        if stale and self._do.on("end_rereads") and self._do.owns(s, a):
            yield "decided meanwhile", s, a._replace(at="end", local=_before_end(a.local)), False
            return
        if not a.looked:
            yield from self._look(s, a)
            return
        if self._do.is_behind(s, a):
            yield from self._refill(s, a)
            return
        finished = self._do.finish(s, a)
        if finished is None:
            yield "the end is refused", s, None, False
            return
        if s.lost_answers:
            yield "COMMIT the end, ANSWER LOST", finished._replace(lost_answers=s.lost_answers - 1), a, True
        yield f"COMMIT the end: {a.end}", finished, Actor("publish", a.epoch, a.name, a.api), False

    def _publish(self, s: State, a: Actor) -> Iterator[Move]:
        s, ours = self._do.publish(s, a.epoch)
        yield "append the end", s, Actor("mark", a.epoch, a.name, a.api, appended=len(s.log)) if ours else None, False

    def _mark(self, s: State, a: Actor) -> Iterator[Move]:
        yield (
            "mark it published",
            s._replace(published=s.status in TERMINAL and a.appended >= len(s.archive)),
            None,
            False,
        )

    # The API's part of a cancel; its claim and all that follows are above.

    def _named(self, s: State, a: Actor) -> Iterator[Move]:
        """EarlyCancels.find_or_note."""
        if s.status != "none":
            yield "cancel by name: found", s, a._replace(at="request"), False
        elif self._do.on("early_lock"):
            yield "cancel by name: noted", s._replace(early=True), None, False
        else:
            yield "cancel by name: not found", s, a._replace(at="note"), False

    def _note(self, s: State, a: Actor) -> Iterator[Move]:
        yield "cancel by name: noted", s._replace(early=True), None, False

    def _request(self, s: State, a: Actor) -> Iterator[Move]:
        yield "request the cancel", self._do.request_cancel(s), a._replace(at="claim"), False

    # Memory only.

    def _say(self, a: Actor, event: str) -> Actor:
        return a._replace(local=(*a.local, f"{event}@{_by(a)}"))

    def _heard(self, a: Actor, sent: int) -> Actor:
        for n in range(count(a.local, "input.received"), sent):
            a = self._say(a, f"input.received:{n + 1}")
        return a

    def _next(self, a: Actor) -> Actor:
        return a._replace(at="call", call=a.call + 1)

    def _unwind(self, a: Actor) -> Actor:
        """Suspended: the outbox is closed, and run.waiting is written."""
        said = self._say(a, "run.waiting")
        return said._replace(at="suspend", held=len(said.local))


def _before_end(local: Log) -> Log:
    """The log without what `_end` has added to it. What was there before may have been appended."""
    rest = local[:-1]
    while rest[-1].startswith("tool.failed"):
        rest = rest[:-1]
    return rest[:-1] if rest[-1].startswith("approval.resolved") else rest


def _by(a: Actor) -> str:
    """Who writes: owners with one epoch write different events."""
    return f"{a.epoch}.{a.name}" if a.name else str(a.epoch)
