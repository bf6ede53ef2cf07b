"""The whole model: the owners, and around them the API, the users, the janitor, time and faults."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tests.model.explorer import Step, Violation
from tests.model.owners import Owners
from tests.model.runs import Transactions, resolved
from tests.model.states import ROW, TERMINAL, Actor, Row, State, count, row_of

WORKERS = 2
TRANSACTIONS = 3
"""That Postgres may lose at most."""


@dataclass(frozen=True)
class Scenario:
    """What the agent does, and how much of what may happen."""

    script: tuple[str, ...]
    budgets: dict[str, int] = field(default_factory=dict)
    """The fields of State that count down."""
    inputs: int = 0
    decisions: tuple[str, ...] = ("approved", "denied")
    expires: bool = False
    slow_post: bool = False
    """POST may take longer than the janitor waits."""
    known: bool = False
    """An agent that ends its worker is found on its stack."""
    off: frozenset[str] = frozenset()

    def without(self, *rules: str) -> "Scenario":
        """The same with these rules off."""
        return replace(self, off=self.off | set(rules))


class World:
    """A `Model` of one run in a scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._do = Transactions(scenario.off, scenario.script)
        self._owners = Owners(self._do)

    def start(self) -> State:
        """Nothing is there."""
        return State(**self._scenario.budgets)  # type: ignore[arg-type]

    def steps(self, s: State) -> Iterator[Step]:
        """Everything that may happen next."""
        for n, actor in enumerate(s.actors):
            yield from _remembered(s, self._moves(s, n, actor))
        for steps in (self._post, self._take_job, self._users, self._janitor, self._late_heart, self._faults):
            yield from _remembered(s, _guarded(steps(s)))

    def inspect(self, s: State) -> None:
        """What must hold in every state."""
        if s.attempt > 1 + min(s.losses, s.killed):
            raise Violation(f"charged wrongly: attempt {s.attempt}, and it has ended {s.killed} of {s.losses} workers")
        if s.early and s.status != "none":
            raise Violation("missed cancel: it was noted, and the run is there and does not know")
        if count(s.seen, "run.started") > 1:
            raise Violation(f"started twice: {s.seen}")
        told = resolved(s.archive)
        if told is not None and told != (s.approval or "expired"):  # asked in a log that was committed with the end
            raise Violation(f"decided otherwise: the log says {told}, the row {s.approval}")
        if count(s.archive, "approval.required") > 1 or count(s.archive, "approval.resolved") > 1:
            raise Violation(f"asked or decided twice in the log: {s.archive}")
        for call, epoch in enumerate(s.ops):
            stands = _stands(s, f"tool.completed:{call}")
            if epoch and self._do.script[call] == "tool" and (stands < 1 if s.failed_over else stands != 1):
                raise Violation(f"a result and its event do not agree: call {call} in {s.archive}")
        if s.status == "waiting":
            self._inspect_wait(s)

    def _inspect_wait(self, s: State) -> None:
        asked = resolved(s.archive) is None and count(s.archive, "approval.required") == 1
        if asked and s.approval != "open":
            raise Violation(f"lost wake-up: it waits for a decision that was made: {s.approval}")
        if s.inputs > count(s.archive, "input.received"):
            raise Violation(f"lost wake-up: it waits although {s.inputs} inputs were sent")

    def is_good_end(self, s: State) -> bool:
        """It has ended, Redis and Postgres agree, nobody is at it any more."""
        return s.status in TERMINAL and s.published and not s.doubt and not s.actors and s.log == s.archive

    def _moves(self, s: State, n: int, actor: Actor) -> Iterator[Step]:
        others = s.actors[:n] + s.actors[n + 1 :]
        who = f"{'API' if actor.api else 'worker'}{f' {actor.epoch}' if actor.epoch else ''}"
        try:
            for label, after, left, fault in self._owners.moves(s, actor):
                yield Step(f"{who}: {label}", _with(after, others, left), fault)
        except Violation as violation:
            yield Step(f"{who} at {actor.at}", violation)
        if s.crashes:
            yield Step(f"{who}: CRASH at {actor.at}", _with(s._replace(crashes=s.crashes - 1), others, None), True)
        if s.kills and actor.at == "run":
            yield from _guarded(self._end_worker(s, actor, others))

    def _end_worker(self, s: State, actor: Actor, others: tuple[Actor, ...]) -> Iterator[Step]:
        ended = self._do.end_worker(s, actor, self._scenario.known)
        where = "ITS PROCESS" if actor.alone else "ITS WORKER"
        yield Step(f"worker {actor.epoch}: THE AGENT ENDS {where}", _with(ended, others, None), True)

    # The API.

    def _post(self, s: State) -> Iterator[Step]:
        if s.post == "to do" and not self._do.on("early_lock"):
            yield Step("POST: look for an early cancel", s._replace(post="create", half_read=f"early {s.early}"))
        elif s.post == "to do":
            yield Step("POST: create", self._do.create(s, s.early)._replace(post="append"))
        elif s.post == "create":
            early = s.half_read == "early True"
            yield Step("POST: create", self._do.create(s, early)._replace(post="append", half_read=""))
        elif s.post == "append":
            after, outcome = self._do.append(s, 0, 0, s.archive[:1])
            yield Step(
                f"POST: append run.created: {outcome}", after._replace(post="tell" if outcome == "OK" else "done")
            )
        elif s.post == "tell" and s.cancel:
            yield Step("POST: end it", _with(s._replace(post="done"), s.actors, Actor("claim", api=True)))
        elif s.post == "tell":
            yield Step("POST: enqueue", s._replace(post="done", job=True))
        if s.post in ("append", "tell") and s.crashes:
            yield Step("POST: CRASH", s._replace(post="done", crashes=s.crashes - 1), True)

    def _take_job(self, s: State) -> Iterator[Step]:
        """A crash before the claim is a lost job."""
        if not s.job or sum(not actor.api for actor in s.actors) == WORKERS:
            return
        taken = s._replace(job=False)
        for label, after, worker, fault in self._owners.moves(taken, Actor("claim")):
            yield Step(f"a worker takes a job: {label}", _with(after, s.actors, worker), fault)
        if s.heart_late and (s.claims_under_way or not self._do.on("silent_claims_nothing")):
            left = max(0, s.claims_under_way - 1)
            most = s.most_late_losses + min(1, s.claims_under_way)
            taken = taken._replace(claims_under_way=left, most_late_losses=most)
            for label, after, worker, fault in self._owners.moves(taken, Actor("claim", late=True)):
                yield Step(f"the late worker's claim is carried out: {label}", _with(after, s.actors, worker), fault)

    def _users(self, s: State) -> Iterator[Step]:
        if s.cancels and not any(actor.api for actor in s.actors):
            canceller = Actor("named", api=True)
            yield Step("API: cancel", _with(s._replace(cancels=s.cancels - 1), s.actors, canceller), True)
        if s.inputs < self._scenario.inputs and s.status not in ("none", *TERMINAL):
            yield from self._told(s, "input", self._do.add_input(s), "wake_with_input")
        if s.approval and s.status not in TERMINAL and not s.cancel:
            yield from self._decisions(s)

    def _decisions(self, s: State) -> Iterator[Step]:
        if s.failed_over and resolved(s.seen):
            return  # whoever sees the log knows that this is decided
        again = not self._do.on("decide_once")
        for decision in self._scenario.decisions if s.approval == "open" or again else ():
            if self._do.on("decide_locks"):
                yield from self._told(s, f"decide {decision}", self._do.decide(s, decision), "wake_with_decision")
            elif not s.half_read:
                yield Step(f"API: read, to decide {decision}", s._replace(half_read=f"{decision} {s.status}"))
        if not self._do.on("decide_locks") and s.half_read and s.approval == "open":
            decision, status = s.half_read.split()
            after = s._replace(approval=decision, half_read="")
            yield Step(f"API: decide {decision}", self._do.woken(after) if status == "waiting" else after)

    def _told(self, s: State, what: str, after: State, rule: str) -> Iterator[Step]:
        """In one transaction with the wake-up, or, where that rule is off, in one before it."""
        yield Step(f"API: {what}", after if self._do.on(rule) else after._replace(half_read="wake"))

    # The janitor, time, and what is under way.

    def _janitor(self, s: State) -> Iterator[Step]:
        if s.half_read == "wake":
            yield Step("API: wake it", self._do.woken(s._replace(half_read="")))
        expiring = self._scenario.expires and s.approval == "open"
        if not s.late and (expiring or s.wakes):
            yield Step("time passes", s._replace(late=True))
        if s.late and expiring:
            yield Step("janitor: expire", self._do.decide(s, "expired"))
        if s.late and s.wakes and s.status == "waiting":
            yield Step("janitor: wake", self._do.woken(s))
        posted = s.post == "done" or self._scenario.slow_post
        if s.status == "pending" and not s.job and posted and self._do.on("enqueue_forgotten"):
            yield Step("janitor: enqueue the forgotten", s._replace(job=True))
        if s.status == "running" and not _alive(s):
            yield Step("janitor: release the lost", self._do.release(s, s.epoch, "worker_lost") or s)
        gone_on = s.failed_over and s.status == "waiting" and len(s.log) > len(s.archive)
        if gone_on and self._do.on("wake_lost"):
            yield Step("janitor: wake what had gone on", self._do.woken(s))
        marking = any(actor.at == "mark" for actor in s.actors)
        if s.doubt and not (marking and self._do.on("doubt_again")):
            yield Step("janitor: doubt the end", s._replace(doubt=False, published=False))
        if s.status in TERMINAL and not s.published and self._do.on("publish_ends"):
            after, ours = self._do.publish(s, s.epoch)
            yield Step("janitor: publish the end", after._replace(published=ours))

    def _late_heart(self, s: State) -> Iterator[Step]:
        if not s.heart_late:
            if s.late_hearts and s.status == "running" and any(a.epoch == s.epoch and not a.api for a in s.actors):
                yield Step("A HEARTBEAT IS LATE", self._do.beat_late(s), True)
            return
        yield Step("the heartbeat gets through again", self._do.beat_again(s))
        if s.status != "running" or not any(a.late and a.epoch == s.epoch for a in s.actors):
            return
        if s.watched != (s.version, s.version) or not s.leased:
            yield Step("a lease passes", self._do.watch(s))
        for janitor, who in enumerate(("its own janitor", "janitor")):
            condemned = self._do.condemn(s, janitor)
            if condemned is not None:
                yield Step(f"{who}: release the late", condemned)

    # Faults.

    def _faults(self, s: State) -> Iterator[Step]:
        if s.crashes and s.job:
            yield Step("CRASH before enqueue, or with the job", s._replace(crashes=s.crashes - 1, job=False), True)
        if s.duplicates and not s.job and s.status != "none":
            yield Step("RQ REPEATS THE JOB", s._replace(duplicates=s.duplicates - 1, job=True), True)
        if s.crashes and s.half_read == "wake":
            yield Step("API: CRASH before the wake-up", s._replace(crashes=s.crashes - 1, half_read=""), True)
        if s.suspicions and s.status == "running" and _alive(s):
            released = self._do.release(s, s.epoch, "worker_lost")
            assert released is not None
            yield Step("janitor: WRONGLY release", released._replace(suspicions=s.suspicions - 1, replaced=True), True)
        if s.rollbacks and s.status != "none":
            for epoch, log in {*s.past, (0, ())}:
                if (epoch, log) != (s.redis_epoch, s.log):
                    yield Step(f"REDIS IS BACK AT {len(log)} EVENTS", self._rolled_back(s, epoch, log), True)

        if s.failovers and s.post == "done":
            for row in s.before:
                yield Step(f"POSTGRES IS BACK AT {dict(zip(ROW, row, strict=True))}", self._failed_over(s, row), True)

    def _failed_over(self, s: State, row: Row) -> State:
        """Clients may have seen what only Postgres had: that is lost."""
        actors = tuple(actor._replace(looked=not self._do.on("look_in_redis")) for actor in s.actors)
        rows = dict(zip(ROW, row, strict=True))
        back = s._replace(**rows, before=(), failovers=s.failovers - 1, actors=tuple(sorted(actors)))
        back = back._replace(failed_over=True, replaced=True)
        seen = max(back.archive, back.log, key=len)
        return back._replace(seen=seen, cancelled_from=back.cancelled_from if back.cancel else 0)

    def _rolled_back(self, s: State, epoch: int, log: tuple[str, ...]) -> State:
        """One fault: whoever wrote what is lost is there. So nothing else may have happened or happen."""
        actors = tuple(actor._replace(confirmed=not self._do.on("confirm")) for actor in s.actors)
        back = s._replace(redis_epoch=epoch, log=log, past=(), job=s.job and bool(log), actors=actors)
        return back._replace(rollbacks=s.rollbacks - 1, doubt=True)


def _remembered(s: State, steps: Iterator[Step]) -> Iterator[Step]:
    """Postgres may come back as it was before any of its last transactions."""
    for step in steps:
        after = step.after
        lasting = isinstance(after, State) and s.failovers and s.status != "none"
        if lasting and after.failovers and row_of(after) != row_of(s):
            step = Step(step.label, after._replace(before=(*s.before, row_of(s))[-TRANSACTIONS:]), step.fault)
        yield step


def _with(s: State, others: tuple[Actor, ...], actor: Actor | None) -> State:
    """Actors in one order, because it does not matter who is who."""
    return s._replace(actors=tuple(sorted((*others, actor))) if actor else others)


def _alive(s: State) -> bool:
    return any((actor.epoch, actor.name) == (s.epoch, s.owner) for actor in s.actors)


def _stands(s: State, event: str) -> int:
    return sum(entry.partition("@")[0] == event for entry in s.archive)


def _guarded(steps: Iterator[Step]) -> Iterator[Step]:
    try:
        yield from steps
    except Violation as violation:
        yield Step("this step", violation)
