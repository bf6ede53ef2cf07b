"""What web processes and janitors do for an external run, step by step.

A web process answers many calls and keeps nothing between them that could be wrong (`External._known` never changes),
so each call is an actor of its own, which may die on its own or stand still: as many processes as there are calls.
`Together` lets calls share a round trip: the same as some order of theirs.
"""

from collections.abc import Iterator

from tests.model.external_states import UNCLAIMED, Call, Row, State
from tests.model.external_store import Store
from tests.model.states import TERMINAL

Move = tuple[str, State, Call | None, bool]
"""What was done, the state, the call afterwards (None: a janitor's that is over), and whether that was a fault."""

ENDING = ("open", "commit_end", "publish", "mark")
"""Where a call ends the run."""


class Calls:
    """The moves of one call. Whoever is at `answer` is done: see `ExternalWorld`."""

    def __init__(self, store: Store) -> None:
        self._do = store

    def moves(self, s: State, c: Call) -> Iterator[Move]:
        """Every step that the call may make next."""
        yield from getattr(self, f"_{c.at}")(s, c)

    # External.start.

    def _find(self, s: State, c: Call) -> Iterator[Move]:
        """Runs.started_before."""
        if s.status == "none":
            yield "is not there yet", s, c._replace(at="create"), False
        elif s.status in TERMINAL:
            yield "has ended", s, c._replace(at="answer", answer="ended"), False
        else:
            yield "is there", s, c._replace(at="claim", epoch=s.epoch), False

    def _create(self, s: State, c: Call) -> Iterator[Move]:
        """External._begin."""
        later = s.writers[c.who].later
        created = self._do.create(s, later=later)
        if created is None:
            yield "was created meanwhile", s, c._replace(at="find"), False
        else:
            after = c._replace(at="append", answer="later" if later else "writes", epoch=1, after=0, upto=2)
            yield "CREATE", created, after, False

    def _claim(self, s: State, c: Call) -> Iterator[Move]:
        """External._claim."""
        if s.writers[c.who].later:
            mine = (s.epoch, s.status) == (c.epoch, "running")
            after = c._replace(at="answer", answer="later") if mine else c._replace(at="find", epoch=0)
            yield "watch it too", s, after, False
            return
        claimed = self._do.claim(s, c.epoch)
        if claimed is not None:
            at = "heal" if self._do.on("claim_heals") else "answer"
            after = c._replace(at=at, answer="writes", epoch=claimed.epoch, upto=len(claimed.archive))
            yield "CLAIM", claimed, after, False
        else:
            yield "claim refused", s, c._replace(at="again"), False

    def _again(self, s: State, c: Call) -> Iterator[Move]:
        """External._claim: take_again."""
        taken = self._do.take_again(s, c.epoch)
        if taken is None:
            yield "is not being ended", s, c._replace(at="find", epoch=0), False
        else:
            yield "TAKE OVER AGAIN", taken[0], c._replace(at="open", epoch=taken[0].epoch, wanted=taken[1]), False

    # External.append and beat.

    def _take(self, s: State, c: Call) -> Iterator[Move]:
        """BatchStore.take, and what is left of it where a rule is off."""
        row = self._do.read(s)
        if not self._do.on("row_lock") and not c.read:
            yield "read the row", s, c._replace(read=row), False
        elif not self._do.on("commit_first") and not c.upto and not self._do.refusal(c, row) and c.seq > row.number:
            yield from self._append_uncommitted(s, c, row)
        else:
            yield from self._commit(s, c, c.read or row)

    def _commit(self, s: State, c: Call, row: Row) -> Iterator[Move]:
        after, taken = self._do.take(s, c, row)
        left = "facts" if taken.facts else "answer"
        taken = taken._replace(read=(), at="append" if taken.answer == "ok" and taken.upto else left)
        label = "COMMIT" if taken.answer == "ok" else f"refused: {taken.answer}"
        if not self._do.on("answer_committed") and taken.answer == "ok" and c.at == "take":
            yield "answer before the commit", s, c._replace(at="late", answer="ok", upto=0, after=0), False
        elif not self._do.on("number_with_batch"):
            yield "commit the events", after._replace(number=s.number), taken._replace(at="number"), False
        elif c.facts and not self._do.on("told_with_batch"):
            events = after._replace(told=s.told, told_inputs=s.told_inputs)
            yield "commit the events", events, taken._replace(at="tell"), False
        else:
            yield label, after, taken, False

    def _facts(self, s: State, c: Call) -> Iterator[Move]:
        """External._tell: the batch was taken, whatever is answered now."""
        if self._do.refusal(c, self._do.read(s)):
            yield "not told, the run is elsewhere", s, c._replace(at=self._after(c), facts=()), False
        else:
            yield from self._commit(s, c, self._do.read(s))

    def _late(self, s: State, c: Call) -> Iterator[Move]:
        """It was answered before."""
        yield from self._commit(s, c, self._do.read(s))

    def _number(self, s: State, c: Call) -> Iterator[Move]:
        numbered = s._replace(number=max(s.number, c.seq)) if s.epoch == c.epoch else s
        yield "commit the number", numbered, c._replace(at="append"), False

    def _tell(self, s: State, c: Call) -> Iterator[Move]:
        told = s._replace(told=s.approval not in ("", "open"), told_inputs=s.inputs)
        yield "commit what was told", told, c._replace(at="append"), False

    def _append_uncommitted(self, s: State, c: Call, row: Row) -> Iterator[Move]:
        after, taken = self._do.take(s, c, row)
        s, outcome = self._do.append(s, c.epoch, row.head, after.archive[row.head :])
        yield f"append before the commit: {outcome}", s, c._replace(upto=taken.upto, after=taken.after), False

    def _after(self, c: Call) -> str:
        """A heartbeat heals in any case (External.beat)."""
        return "heal" if c.kind == "beat" and self._do.on("beat_heals") else "answer"

    def _append(self, s: State, c: Call) -> Iterator[Move]:
        """External._append_now; a heartbeat heals in any case (External.beat)."""
        healed = "facts" if c.facts else self._after(c)
        if c.after == c.upto:
            yield "nothing to append", s, c._replace(at=healed), False
            return
        after, outcome = self._do.append(s, c.epoch, c.after, s.archive[c.after : c.upto])
        behind = "heal" if self._do.on("heal_on_behind") else healed
        fenced = c.excused or outcome == "FENCED"
        left = c._replace(at=behind if outcome == "BEHIND" else healed, excused=fenced)
        yield f"append: {outcome}", after, left, False
        yield from self._outage(s, c)

    def _heal(self, s: State, c: Call) -> Iterator[Move]:
        """External.heal."""
        after, ours = self._do.sync(s, c.epoch)
        yield "sync", after, c._replace(at="answer", excused=c.excused or not ours), False
        yield from self._outage(s, c)

    def _outage(self, s: State, c: Call) -> Iterator[Move]:
        if s.outages:
            after = c._replace(at="answer", excused=True)
            yield "REDIS DOES NOT ANSWER", s._replace(outages=s.outages - 1), after, True

    # External.finish, and LostWriters.end.

    def _begin_end(self, s: State, c: Call) -> Iterator[Move]:
        after, taken = self._do.begin_end(s, c)
        if taken.at == "open":
            yield "TAKE OVER", after, taken, False
        else:
            yield f"finish: {taken.answer}", after, taken._replace(at="answer"), False

    def _take_lost(self, s: State, c: Call) -> Iterator[Move]:
        after, taken = self._do.take_lost(s, c)
        yield "TAKE OVER" if taken else "somebody was faster", after, taken, False

    # Ends.end.

    def _open(self, s: State, c: Call) -> Iterator[Move]:
        after, closed = self._do.close(s, c)
        yield "read the log, write its end", after, closed, False

    def _commit_end(self, s: State, c: Call) -> Iterator[Move]:
        ended = self._do.commit_end(s, c)
        label = "the end is refused" if ended is None else f"COMMIT the end: {c.wanted}"
        yield label, ended or s, c._replace(at="publish", local=(), after=0), False

    def _publish(self, s: State, c: Call) -> Iterator[Move]:
        """It is looked up whether it has ended; then Ownership.publish."""
        if s.status not in TERMINAL:
            yield "about to end", s, self._over(c, "unavailable"), False
            return
        after, ours = self._do.sync(s, s.epoch)
        yield "append the end", after, c._replace(at="mark") if ours else self._over(c, "done"), False
        if s.outages:
            yield "REDIS DOES NOT ANSWER", s._replace(outages=s.outages - 1), self._over(c, "done"), True

    def _mark(self, s: State, c: Call) -> Iterator[Move]:
        yield "mark it published", s._replace(published=True), self._over(c, "done"), False

    def _over(self, c: Call, answer: str) -> Call | None:
        """A janitor is gone; a start looks again; a finish is answered."""
        if c.kind == "janitor":
            return None
        if c.kind == "start":
            return Call("start", "find", c.who, c.heard)
        return c._replace(at="answer", answer=answer, wanted=c.wanted, local=(), after=0)


def holder(s: State) -> str:
    """Whom a janitor sees that finds the run as it is: nobody yet, an ending, or a writer."""
    return "ending" if s.ending else "nobody" if s.beats == UNCLAIMED else "writer"
