"""The whole model of an external run: the calls, and around them writers, users, janitors and faults."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tests.model.explorer import Step, Violation
from tests.model.external_calls import ENDING, Calls, holder
from tests.model.external_states import Call, State, Writer, batches, disorder, is_open, put
from tests.model.external_store import Store
from tests.model.states import TERMINAL


@dataclass(frozen=True)
class ExternalScenario:
    """Who writes, and how much of what may happen."""

    writers: tuple[str, ...] = ("writer",)
    """`writer`: sends its batches and finishes; `later`: starts the run for a writer that comes later."""
    budgets: dict[str, int] = field(default_factory=dict)
    """The fields of State that count down."""
    sends: int = 1
    """Batches of each writer."""
    asks: bool = False
    inputs: int = 0
    wavers: bool = False
    """A writer that was not answered may ask for another end."""
    janitors: int = 1
    off: frozenset[str] = frozenset()

    def without(self, *rules: str) -> "ExternalScenario":
        """The same with these rules off."""
        return replace(self, off=self.off | set(rules))


class ExternalWorld:
    """A `Model` of one run in a scenario."""

    def __init__(self, scenario: ExternalScenario) -> None:
        self._scenario = scenario
        self._do = Store(scenario.off, scenario.asks)
        self._calls = Calls(self._do)

    def start(self) -> State:
        """Nothing is there."""
        writers = tuple(Writer(later=kind == "later") for kind in self._scenario.writers)
        return State(writers=writers, **self._scenario.budgets)  # type: ignore[arg-type]

    def steps(self, s: State) -> Iterator[Step]:
        """Everything that may happen next."""
        for n, call in enumerate(s.calls):
            yield from _guarded(f"{_who(call)} at {call.at}", self._moves(s, n, call))
        for n, writer in enumerate(s.writers):
            yield from self._writer(s, n, writer)
        yield from self._users(s)
        yield from _guarded("the janitor", self._janitor(s))
        yield from self._rollbacks(s)

    def inspect(self, s: State) -> None:
        """What must hold in every state."""
        if wrong := disorder(s.archive):
            raise Violation(f"not what was brought: {wrong} in {s.archive}")
        if s.log != s.archive[: len(s.log)]:
            raise Violation(f"Redis has what Postgres has not: {s.log}, and {s.archive}")
        told = [entry for entry in s.archive if entry.startswith("decided:")]
        if any(entry.partition("@")[0] != f"decided:{s.approval}" for entry in told):
            raise Violation(f"decided otherwise: the log says {told}, the row {s.approval}")
        if s.status in TERMINAL and s.status != s.accepted:
            raise Violation(f"ended otherwise: as {s.status}, and it was to be {s.accepted}")
        if s.status in TERMINAL and is_open(s.archive):
            raise Violation(f"open at the end: {s.archive}")
        for writer in s.writers:
            self._inspect_told(s, writer)

    def _inspect_told(self, s: State, writer: Writer) -> None:
        who = s.writers.index(writer)
        if writer.epoch and batches(s.archive, who, writer.epoch) < writer.told:
            raise Violation(
                f"lost: batch {writer.told} of writer {writer.epoch} was answered, and is not in {s.archive}"
            )
        done = s.accepted == writer.wish and s.status in TERMINAL and s.accepted_from in (0, writer.epoch)
        refused = (s.accepted, s.accepted_from) != (writer.wish, writer.epoch)
        if (writer.outcome == "done" and not done) or (writer.outcome == "refused" and not refused):
            raise Violation(f"told otherwise: its end as {writer.wish} is {writer.outcome}, and it is {s.accepted}")

    def is_good_end(self, s: State) -> bool:
        """It has ended, Redis has what Postgres has, nobody is at it any more."""
        quiet = not s.calls and all(writer.at in ("over", "dead") for writer in s.writers)
        unborn = s.status == "none"
        return quiet and (unborn or (s.status in TERMINAL and s.published and not s.doubt and s.log == s.archive))

    # Calls.

    def _moves(self, s: State, n: int, call: Call) -> Iterator[Step]:
        others = s.calls[:n] + s.calls[n + 1 :]
        if s.crashes:
            dead = self._cut_off(s, call)._replace(crashes=s.crashes - 1, calls=others)
            yield Step(f"{_who(call)}: CRASH at {call.at}", dead, True)
        if call.at == "answer":
            yield Step(f"{_who(call)}: answer {call.answer}", self._answered(s, call)._replace(calls=others))
            return
        if call.at == "late" and call.heard:
            late = put(others, call._replace(heard=False))
            yield Step(f"{_who(call)}: answer ok", self._answered(s, call)._replace(calls=late))
            return
        for label, after, left, fault in self._calls.moves(s, call):
            if call.at != "claim" and after.epoch > s.epoch and _is_at_its_end(s):
                if not s.retakes:
                    continue  # it is fair: who is at it gets to its end
                after = after._replace(retakes=s.retakes - 1)
            yield Step(f"{_who(call)}: {label}", after._replace(calls=put(others, _done(after, left))), fault)

    def _cut_off(self, s: State, call: Call) -> State:
        """Its writer notices that the connection is gone."""
        return _with(s, call.who, s.writers[call.who]._replace(waits=False)) if call.who >= 0 and call.heard else s

    def _answered(self, s: State, call: Call) -> State:
        writer = s.writers[call.who]._replace(waits=False)
        return _with(s, call.who, getattr(self, f"_{call.kind}_answered")(s, writer, call))

    def _start_answered(self, s: State, w: Writer, c: Call) -> Writer:
        return w._replace(at="write", epoch=c.epoch) if c.answer == "writes" else w._replace(at="over")

    def _batch_answered(self, s: State, w: Writer, c: Call) -> Writer:
        if c.answer == "gap":
            return w._replace(seq=w.told, wish="")
        if c.answer != "ok":
            return w._replace(at="over")
        told = max(w.told, c.seq) if c.kind == "batch" else w.told
        return w._replace(told=told, wish="cancelled" if s.cancel else w.wish)

    _beat_answered = _batch_answered

    def _finish_answered(self, s: State, w: Writer, c: Call) -> Writer:
        if c.answer == "gap":
            return w._replace(seq=w.told, wish="")
        if c.answer == "unavailable":
            return w
        return w._replace(at="over", outcome="done" if c.answer == "done" else "refused")

    # Writers.

    def _writer(self, s: State, n: int, w: Writer) -> Iterator[Step]:
        if w.at in ("over", "dead"):
            return
        name = f"writer {n + 1}"
        if s.crashes:
            calls = [left for call in s.calls if (left := _unheard(call) if call.who == n else call)]
            dead = _with(s, n, w._replace(at="dead", waits=False))
            yield Step(f"{name}: CRASH", dead._replace(crashes=s.crashes - 1, calls=put(calls, None)), True)
        if w.waits:
            yield from self._give_up(s, n, w)
            return
        for label, after, call in self._next_calls(s, n, w):
            sent = _with(s, n, after._replace(waits=True))
            yield Step(f"{name}: {label}", sent._replace(calls=put(s.calls, call)))
        if s.heartbeats and w.at == "write":
            sent = _with(s._replace(heartbeats=s.heartbeats - 1), n, w._replace(waits=True))
            yield Step(
                f"{name}: send a heartbeat", sent._replace(calls=put(s.calls, Call("beat", "take", n, epoch=w.epoch)))
            )

    def _next_calls(self, s: State, n: int, w: Writer) -> Iterator[tuple[str, Writer, Call]]:
        """What it sends next: its start, the batch that was not answered yet, or its finish."""
        if w.at == "start":
            yield "start", w, Call("start", "find", n)
        elif w.told < self._scenario.sends and w.seq < self._scenario.sends and not w.wish:
            seq = w.seq + 1 if w.seq == w.told else w.seq
            yield f"send batch {seq}", w._replace(seq=seq), Call("batch", "take", n, epoch=w.epoch, seq=seq)
        elif w.seq > w.told and not w.wish:
            yield f"send batch {w.seq}", w, Call("batch", "take", n, epoch=w.epoch, seq=w.seq)
        else:
            wish = w.wish or "completed"
            finish = Call("finish", "begin_end", n, epoch=w.epoch, seq=w.seq + 1, wanted=wish)
            yield f"finish as {wish}", w._replace(wish=wish), finish

    def _give_up(self, s: State, n: int, w: Writer) -> Iterator[Step]:
        """It does not wait for the answer, and sends the same once more or goes on."""
        if not s.impatience:
            return
        (mine,) = (call for call in s.calls if call.who == n and call.heard)
        others = [call for call in s.calls if call != mine]
        calls = put(others, _unheard(mine))
        left = _with(s._replace(impatience=s.impatience - 1, calls=calls), n, w._replace(waits=False))
        yield Step(f"writer {n + 1}: WAITS NO LONGER", left, True)
        if mine.kind == "batch" and w.seq == self._scenario.sends:
            hasty = w._replace(waits=False, wish="completed")
            yield Step(f"writer {n + 1}: GOES ON WITHOUT THE ANSWER", _with(left, n, hasty), True)
        if mine.kind == "finish" and self._scenario.wavers:
            other = w._replace(waits=False, wish="failed")
            yield Step(f"writer {n + 1}: WAVERS", _with(left, n, other), True)

    # Users.

    def _users(self, s: State) -> Iterator[Step]:
        if s.status in ("none", *TERMINAL):
            return
        if s.cancels:
            yield Step("user: cancel", s._replace(cancels=s.cancels - 1, cancel=True), True)
        if s.inputs < self._scenario.inputs and not s.cancel:
            yield Step("user: input", s._replace(inputs=s.inputs + 1))
        if s.approval == "open" and not s.cancel:
            yield Step("user: decide", self._do.decide(s))

    # Janitors.

    def _janitor(self, s: State) -> Iterator[Step]:
        if s.status == "running" and sum(call.kind == "janitor" for call in s.calls) < self._scenario.janitors:
            yield from self._look(s)
        marking = any(call.at == "mark" for call in s.calls)
        if s.doubt and not (marking and self._do.on("doubt_again")):
            yield Step("janitor: doubt the end", s._replace(doubt=False, published=False))
        if s.status in TERMINAL and not s.published and self._do.on("publish_ends"):
            after, ours = self._do.sync(s, s.epoch)
            yield Step("janitor: publish the end", after._replace(published=ours))

    def _look(self, s: State) -> Iterator[Step]:
        """LostWriters: what it finds has stood still for long enough, rightly (they are gone) or not."""
        kind = holder(s)
        if kind == "ending" and not self._do.on("takes_again"):
            return
        if kind == "ending":
            there = _is_at_its_end(s)
        elif kind == "nobody":
            there = not s.cancel and any(writer.at == "start" and not writer.later for writer in s.writers)
        else:
            there = any(writer.at in ("start", "write") and not writer.later for writer in s.writers)
        wanted = "cancelled" if s.cancel else "failed"
        seen = Call("janitor", "take_lost", epoch=s.epoch, beats=s.beats, wanted=wanted)
        if not there:
            yield Step(f"janitor: sees {kind} gone", s._replace(calls=put(s.calls, seen)))
        elif s.suspicions:
            suspects = s._replace(suspicions=s.suspicions - 1, calls=put(s.calls, seen))
            yield Step(f"janitor: SUSPECTS {kind}", suspects, True)
        if s.cancel and kind == "writer" and there:
            yield Step("janitor: loses patience", s._replace(calls=put(s.calls, seen._replace(ignore_heartbeat=True))))

    # Faults.

    def _rollbacks(self, s: State) -> Iterator[Step]:
        if s.rollbacks and s.status != "none":
            for epoch, log in {*s.past, (0, ())}:
                if (epoch, log) != (s.redis_epoch, s.log):
                    calls = put([call._replace(excused=True) for call in s.calls], None)
                    back = s._replace(redis_epoch=epoch, log=log, past=(), calls=calls)
                    yield Step(
                        f"REDIS IS BACK AT {len(log)} EVENTS",
                        back._replace(rollbacks=s.rollbacks - 1, doubt=True),
                        True,
                    )


def _is_at_its_end(s: State) -> bool:
    """Somebody is about to end the run."""
    return bool(s.ending) and any(call.at in ENDING and call.epoch == s.epoch for call in s.calls)


def _with(s: State, n: int, writer: Writer) -> State:
    return s._replace(writers=(*s.writers[:n], writer, *s.writers[n + 1 :]))


def _unheard(call: Call) -> Call | None:
    """What is left of a call for whose answer nobody waits any more."""
    return None if call.at == "answer" else call._replace(heard=False)


def _done(s: State, call: Call | None) -> Call | None:
    """What is left of a call: of one that is about to answer the answer, if anybody waits for it.

    :raises Violation: what it has committed, or found committed, could be in Redis, and is not.
    """
    if call is None or call.at != "answer":
        return call
    if call.answer in ("ok", "writes") and not call.excused and len(s.log) < call.upto:
        raise Violation(f"late in Redis: {call} is about to be answered, and Redis has {s.log} of {s.archive}")
    if not call.heard:
        return None
    return Call(call.kind, "answer", call.who, epoch=call.epoch, seq=call.seq, answer=call.answer)


def _who(call: Call) -> str:
    if call.kind == "janitor":
        return "janitor"
    return f"{call.kind}{f' {call.seq}' if call.seq else ''} of writer {call.who + 1}"


def _guarded(where: str, steps: Iterator[Step]) -> Iterator[Step]:
    try:
        yield from steps
    except Violation as violation:
        yield Step(where, violation)
