"""Two slow workers, the API and a janitor on the real stores, one step at a time, in orders that hypothesis chooses.

RUNTAIL_MODEL_EXAMPLES says how many orders are tried, RUNTAIL_MODEL_SEED which (a number; else the same ones always).
"""

import os
from collections import Counter

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from redis import Redis

from app.protocol.digest import digest
from app.protocol.events import TERMINAL, Event
from app.protocol.reducer import fold, initial
from app.storage.event_log import meta_key, stream_key
from app.storage.run_store import OwnerBeat, RunRecord
from app.wiring import Services
from tests.harness import DEV, pending_run
from tests.model.slow_worker import APPROVAL, SlowWorker

EXAMPLES = int(os.environ.get("RUNTAIL_MODEL_EXAMPLES", "30"))
SEED = os.environ.get("RUNTAIL_MODEL_SEED")
STEPS = 40
"""Of one order, before what was begun is brought to its end."""
WORKERS, INPUTS, REDIS_LOSSES = 2, 2, 2
PAUSES = ("claim", "read the journal", "append", "EXECUTE", "commit the call", "commit the question", "write the end")
"""After which a worker may stop for a while; not at every one equally often, or most orders would be short."""
THEN = ("nothing", "decide", "decide", "input", "crash")
PATIENCE = 200
"""Steps that bring any run to its end."""

tried: Counter[str] = Counter()
"""How often each step was made, to be printed."""


class OneRun(RuleBasedStateMachine):
    """One run and all who are at it. Every step is followed by a look at what a client can see."""

    def __init__(self, services: Services, redis: Redis) -> None:
        super().__init__()
        self.services, self.redis = services, redis
        self.workers: list[SlowWorker] = []
        self.made = self.losses = 0
        self.cancelled_from = 0
        """The first epoch whose owner knows from the start that the run is cancelled; 0: it is not."""
        self.decision: str | None = None
        """What somebody was told that the decision is."""
        self.seen: list[Event] = []
        self.image: list[bytes | None] = [None, None]

    @initialize(expired=st.sampled_from([False, False, True]), announced=st.booleans(), cancels=st.integers(0, 1))
    def begin(self, expired: bool, announced: bool, cancels: int) -> None:
        tried["orders"] += 1
        self.expired, self.cancels, self.redis_losses, self.sent = expired, cancels, REDIS_LOSSES, 0
        self.run_id = pending_run(self.services, announce=announced).id
        self.keys = stream_key(self.run_id), meta_key(self.run_id)
        self.look()

    # Workers.

    @precondition(lambda self: len(self.alive()) < WORKERS and self.known.status == "pending")
    @rule()
    def take_a_job(self) -> None:
        self.made += 1
        worker = SlowWorker(self.services, self.run_id, f"w{self.made}", self.execute, self.expired)
        self.workers.append(worker)
        self.advance(worker)

    @precondition(lambda self: self.alive())
    @rule(which=st.integers(0, WORKERS - 1), until=st.sampled_from(PAUSES), then=st.sampled_from(THEN))
    def go_on(self, which: int, until: str, then: str) -> None:
        """As far as where something else could come in between, which then does."""
        worker = self.alive()[which % len(self.alive())]
        while worker.alive and self.advance(worker) != until:
            pass
        if then == "decide" and self.asked():
            self.decide("approved")
        elif then == "input" and worker.alive:
            self.send_input(1 + self.sent % INPUTS)
        elif then == "crash" and worker.alive and self.whole():
            self.note("crash")
            worker.crash()

    @precondition(lambda self: self.alive() and self.whole())
    @rule(which=st.integers(0, WORKERS - 1))
    def crash(self, which: int) -> None:
        self.note("crash")
        self.alive()[which % len(self.alive())].crash()

    @precondition(lambda self: any(w.interruptible for w in self.alive()) and self.whole())
    @rule()
    def deploy(self) -> None:
        self.note("deploy")
        next(w for w in self.alive() if w.interruptible).hand_back()
        self.look()

    @precondition(lambda self: self.whole() and self.known.status == "running")
    @rule()
    def call_the_owner_lost(self) -> None:
        """Rightly or wrongly."""
        self.note("lost")
        released = self.services.store.release_lost(OwnerBeat(self.row().owner or "", None, None))
        self.losses += len(released)
        self.look()

    def execute(self, epoch: int) -> None:
        """The tool's effect."""
        row = self.row()
        assert not (0 < self.cancelled_from <= epoch), "it executes although it was cancelled before"
        if row.epoch == epoch:
            # Pending: it was called lost a moment ago, and nobody has the run yet.
            assert row.status in ("running", "pending"), "it executes after its end"
            assert not self.services.journal.recorded(self.run_id).ops, "it executes what is recorded"

    # Users.

    @precondition(lambda self: self.asked())
    @rule(decision=st.sampled_from(["approved", "denied"]))
    def decide(self, decision: str) -> None:
        decided = self.services.waits.decide(DEV, self.run_id, APPROVAL, decision, None)
        if decided is not None and decided.made:
            self.note("decide")
            assert self.decision is None, "it was decided twice"
        if decided is not None and decided.approval.decision is not None:
            assert self.decision in (None, decided.approval.decision), "it was decided otherwise"
            self.decision = decided.approval.decision
        self.look()

    @precondition(lambda self: self.sent < 2 * INPUTS)
    @rule(n=st.integers(1, INPUTS))
    def send_input(self, n: int) -> None:
        """The same key twice is one input."""
        self.sent += 1
        self.note("input")
        self.services.waits.add_input(DEV, self.run_id, f"text {n}", f"key {n}")
        self.look()

    @precondition(lambda self: self.cancels and len(self.seen) > 2)
    @rule(dies=st.booleans())
    def cancel(self, dies: bool) -> None:
        """Whoever cancels may be killed once the request is committed."""
        self.note("cancel")
        self.cancels -= 1
        row = self.services.store.request_cancel(self.run_id)
        assert row is not None
        if not row.terminal:
            self.cancelled_from = row.epoch + 1
        if not row.terminal and not dies:
            self.services.ownership.end_unowned(row)
        self.look()

    # The janitor, and Redis.

    @precondition(lambda self: self.expired)
    @rule()
    def expire(self) -> None:
        self.services.waits.expire_due(10)
        self.look()

    @rule()
    def take_an_image(self) -> None:
        self.image = [self.redis.dump(key) for key in self.keys]

    @precondition(lambda self: self.redis_losses and len(self.seen) > 1 and self.whole() and self.can_heal())
    @rule(all=st.booleans())
    def redis_is_back_with_less(self, all: bool) -> None:
        self.note("Redis")
        self.redis_losses -= 1
        self.redis.delete(*self.keys)
        for key, dump in zip(self.keys, self.image, strict=True):
            if dump is not None and not all:
                self.redis.restore(key, 0, dump)
        for worker in self.workers:
            worker.confirmed = False
        self.services.store.doubt_published(60)
        self.look()

    def can_heal(self) -> bool:
        """Whoever wrote what is lost is there, or it is archived."""
        archived, row = self.heads[1], self.known
        writers = [w.writer for w in self.alive() if w.epoch == row.epoch and row.status == "running" and w.writer]
        return archived >= len(self.seen) or any(writer.head >= len(self.seen) for writer in writers)

    # The end.

    def teardown(self) -> None:
        """Without a further fault everything comes to its end."""
        if not hasattr(self, "run_id"):
            return
        for _ in range(PATIENCE):
            if self.row().terminal and not self.alive():
                break
            self.help_on()
        row = self.row()
        assert row.terminal, f"it is {row.status} for ever"
        self.services.ownership.publish(row.id, row.epoch)
        self.look()
        self.inspect_end(self.row())
        self.redis.delete(*self.keys)

    def _decided(self, run_id: str) -> bool:
        return any(approval.decision for approval in self.services.journal.recorded(run_id).approvals)

    def help_on(self) -> None:
        row = self.row()
        if alive := self.alive():
            self.advance(alive[0])
        elif row.status == "running":
            self.call_the_owner_lost()
        elif row.status == "pending":
            self.take_a_job()
        elif row.status == "waiting":
            assert not self._decided(row.id), "it waits for a decision that was made"
            assert not row.cancel_requested, "it waits although it was cancelled"
            assert len(self.services.waits.inputs(row.id, 0, 10)) == sum(e.type == "input.received" for e in self.seen)
            self.decide("approved")

    def inspect_end(self, row: RunRecord) -> None:
        events = self.services.store.events(row.id, 0, 1_000)
        assert self.services.log.read(row.id, 0, 1_000) == events == self.seen
        types = [event.type for event in events]
        assert [type for type in types if type in TERMINAL] == [types[-1]] == [f"run.{row.status}"]
        before = fold((event.envelope() for event in events[:-1]), initial(row.id))
        assert digest(before, row.output) == row.digest
        assert row.attempt == 1, "it was charged although nobody knows who ended its workers"
        assert row.losses <= self.losses, "a loss was counted that was none"
        recorded = self.services.journal.recorded(row.id)
        assert types.count("tool.completed") == len(recorded.ops)
        assert types.count("approval.required") == len(recorded.approvals) == types.count("approval.resolved")
        told = [event.envelope()["payload"]["decision"] for event in events if event.type == "approval.resolved"]
        assert told == [approval.decision for approval in recorded.approvals]
        if row.status == "completed":
            assert row.output == told[0]

    # What they share.

    def alive(self) -> list[SlowWorker]:
        return [worker for worker in self.workers if worker.alive]

    def row(self) -> RunRecord:
        row = self.services.store.get(self.run_id)
        assert row is not None
        return row

    def asked(self) -> bool:
        return any(event.type == "approval.required" for event in self.seen)

    def whole(self) -> bool:
        """Nothing that was seen is missing: a further fault is a second one otherwise."""
        return max(self.heads) >= len(self.seen)

    def advance(self, worker: SlowWorker) -> str:
        self.note(step := worker.step())
        self.look()
        return step

    def note(self, step: str) -> None:
        tried[step] += 1

    def look(self) -> None:
        """As windows do, in Redis and in the archive: nothing that was seen may be rewritten."""
        logs = self.services.log.read(self.run_id, 0, 1_000), self.services.store.events(self.run_id, 0, 1_000)
        self.known, self.heads = self.row(), tuple(len(log) for log in logs)
        for log in logs:
            assert [event.seq for event in log] == list(range(1, len(log) + 1))
            shared = min(len(log), len(self.seen))
            assert log[:shared] == self.seen[:shared], "what was seen is rewritten"
            if len(log) > len(self.seen):
                assert not (self.seen and self.seen[-1].type in TERMINAL), "something follows the end"
                self.seen = log


@pytest.mark.timeout(3_600)
def test_no_order_of_steps_on_the_real_stores_breaks_an_invariant(apart: Services) -> None:
    with Redis.from_url(apart.config.events_redis_url) as redis:

        def one_run() -> OneRun:
            return OneRun(apart, redis)

        if SEED is not None:
            seed(int(SEED))(one_run)
        phases = [Phase.generate, Phase.shrink]
        run_state_machine_as_test(
            one_run,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=SEED is None,
                database=None,
                phases=phases,
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(f"\n{tried.pop('orders')} orders, {sum(tried.values())} steps: {dict(tried.most_common())}")
