"""The model of one run: each method of `Transactions` is one transaction in Postgres or one script in Redis.

Between any two of them anything else may happen. What the real code does in one process without a transaction or a
script in between is one step here. `off` leaves out rules, to see that they are needed.
"""

from dataclasses import dataclass

from tests.model.explorer import Violation
from tests.model.logs import Logs
from tests.model.states import TERMINAL, Actor, Log, State, count

RULES = {
    "redis_fence": "a claim raises the epoch in Redis, and whoever appends under an earlier one is refused",
    "fenced_rows": "every write of an owner names its epoch",
    "fenced_suspend": "so does the suspension",
    "level_archive": "a claim archives what Redis holds beyond the archive",
    "refill": "at a claim, on BEHIND and at the end, what is archived and missing in Redis is appended",
    "predecessor": "an append names the event before its first, and is refused where that is not the head",
    "confirm": "after a new connection to Redis the epoch is confirmed before anything is appended",
    "commit_first": "a fact is committed before it is appended",
    "op_with_event": "a call's result is committed with the event that tells of it",
    "journal": "what is recorded is not done again",
    "reread": "the suspension reads again whether what it waits for has come",
    "reread_cancel": "the suspension reads again whether the run is to be cancelled",
    "cancel_after_claim": "the cancel flag is read after the claim",
    "decide_locks": "a decision locks the run before it reads whether it waits",
    "decide_once": "only an open approval is decided",
    "wake_with_decision": "a decision wakes the run in its own transaction",
    "wake_with_input": "so does an input",
    "cancel_claims_waiting": "whoever cancels claims a waiting run as well",
    "cancel_wakes": "a cancel's request wakes a waiting run, in case whoever cancels goes no further",
    "end_rereads": "the end of a run reads the decisions under the lock under which it is committed",
    "early_lock": "a cancel by name and the run's creation lock the name",
    "early_heeded": "the run's creation reads the early cancel",
    "enqueue_forgotten": "the janitor enqueues what is pending without a job",
    "publish_ends": "the janitor brings ends into Redis",
    "doubt_again": "it doubts an end once more when whoever published it has had the time to mark it published",
    "only_losses_count": "an attempt is counted when a worker is lost, and only then",
    "epoch_owner": "a claim whose epoch Redis knows as another owner's raises its row above it",
    "owner_rows": "every write of an owner names the owner as well",
    "look_in_redis": "after a lost connection to Postgres an owner looks in Redis whether it is fenced",
    "archive_follows": "what is archived follows the archive's last event; otherwise the archive is refilled first",
    "rows_restored": "with what the archive takes in from the log the rows are restored that it tells of",
    "end_restored": "a run whose log has its end, which its row has lost, is not executed again",
    "started_once": "a run whose log has begun is not started again",
    "wake_lost": "after a failover a waiting run whose log goes on is woken",
    "only_known_charged": "and only where the run is known to have ended it",
    "known_charged": "a run that is known to have ended its worker is charged, and fails at last",
    "alone_after_two": "a run that has lost two workers in a row is executed in a process of its own",
    "recorded_resets": "in a row are those between which nothing was recorded",
    "loss_changes_row": "whoever calls a worker lost changes its row, which is to be watched for a lease again",
    "silent_claims_nothing": "a worker whose heartbeat does not get through claims nothing",
    "silent_condemns_nobody": "nor does it call anybody lost, itself among them",
}
MOST_ATTEMPTS = 1
"""RUN_MAX_ATTEMPTS."""
ALONE_AFTER = 2
"""Losses in a row after which a run is executed in a process of its own."""


@dataclass(frozen=True)
class Transactions(Logs[State]):
    """What happens to the state in one atomic step. `script` is the agent's calls; see `Owners` for them."""

    script: tuple[str, ...] = ()
    rules = RULES

    # Postgres: creation and commands.

    def create(self, s: State, early: bool) -> State:
        """RunStore.create."""
        heeded = early and self.on("early_heeded")
        s = s._replace(
            cancel=heeded, cancelled_from=int(heeded), early=s.early and not heeded, ops=(0,) * len(self.script)
        )
        return self.archived(s, ("run.created",), status="pending")

    def request_cancel(self, s: State) -> State:
        """RunStore.request_cancel."""
        if s.status in TERMINAL:
            return s
        s = s._replace(cancel=True, cancelled_from=s.cancelled_from or s.epoch + 1)
        return self.woken(s) if self.on("cancel_wakes") else s

    def woken(self, s: State) -> State:
        """_WAKE, and enqueue; nothing where it is not waiting. A crash between the two is a lost job."""
        if s.status != "waiting":
            return s
        return s._replace(status="pending", reason="resumed", wakes=False, job=True)

    def decide(self, s: State, decision: str) -> State:
        """Waits.decide, and Waits.expire_due for the decision `expired`."""
        if s.status in TERMINAL or (s.cancel and decision != "expired"):
            return s
        if s.approval != "open" and self.on("decide_once"):
            return s
        if s.approval not in ("", "open", decision):
            raise Violation(f"decided twice: {s.approval}, then {decision}")
        s = s._replace(approval="expired" if s.late and self.on("decide_once") else decision)
        return self.woken(s) if self.on("wake_with_decision") else s

    def add_input(self, s: State) -> State:
        """Waits.add_input."""
        if s.status in TERMINAL or s.cancel:
            return s
        s = s._replace(inputs=s.inputs + 1)
        return self.woken(s) if self.on("wake_with_input") else s

    # Postgres: owners.

    def claim(self, s: State, *, start: bool) -> State | None:
        """RunStore.claim; None: it is not to be had."""
        waiting = not start and self.on("cancel_claims_waiting")
        if s.status != "pending" and not (waiting and s.status == "waiting"):
            return None
        attempt = s.attempt + (s.epoch > 0 and not self.on("only_losses_count"))
        claims = s.claims + bool(s.claims or s.failovers)
        row = {"status": "running", "epoch": s.epoch + 1, "owner": claims, "wakes": False, "attempt": attempt}
        return s._replace(claims=claims, **row)

    def raise_epoch(self, s: State, a: Actor) -> State | None:
        """RunStore.raise_epoch; None: it was taken over."""
        if (s.epoch, s.owner, s.status) != (a.epoch, a.name, "running"):
            return None
        return s._replace(epoch=max(s.epoch, s.redis_epoch) + 1)

    # Redis, by an owner.

    def is_taken(self, s: State, a: Actor) -> bool:
        """append.lua and raise_epoch.lua: the epoch is another owner's."""
        return a.epoch == s.redis_epoch and a.name != s.redis_owner and self.on("epoch_owner")

    def append_own(self, s: State, a: Actor, events: Log) -> tuple[State, str]:
        """As `append`, by the owner of the epoch."""
        if self.is_taken(s, a):
            return s, "FENCED"
        s, outcome = self.append(s, a.epoch, a.appended, events)
        return (s._replace(redis_owner=a.name) if outcome == "OK" else s), outcome

    def publish(self, s: State, epoch: int) -> tuple[State, bool]:
        """Ownership.publish: under the epoch that Redis has, which a claim that Postgres has lost may have left."""
        return self.sync(s, max(epoch, s.redis_epoch) if s.failed_over and s.status in TERMINAL else epoch)

    # Postgres has lost events.

    def is_behind(self, s: State, a: Actor) -> bool:
        """The archive ends before the first event that the actor is to archive.

        :raises Violation: and it would be archived all the same.
        """
        behind = len(s.archive) < a.archived and s.epoch == a.epoch
        if behind and not self.on("archive_follows"):
            raise Violation(f"hole: {a.local[a.archived :]} after {s.archive}")
        return behind

    def refill(self, s: State, a: Actor) -> State | None:
        """Ownership.refill; None: fenced, or nobody has the events."""
        have, remembered = len(s.archive), min(a.appended, a.archived)
        found = a.local[have : a.archived] if have >= remembered else s.log[have : a.archived]
        if not self.owns(s, a) or have + len(found) < a.archived:
            return None
        return self.take_in(s, found)

    def take_in(self, s: State, events: Log) -> State:
        """RunStore.take_in."""
        return self.restored(self.archived(s, s.archive + events))

    def restored(self, s: State) -> State:
        """restore_rows."""
        if not self.on("rows_restored") or not s.failed_over:
            return s  # it changes nothing then, or what it would change is to be seen
        approval = s.approval or ("open" if count(s.archive, "approval.required") else "")
        inputs = max(s.inputs, count(s.archive, "input.received"))
        return s._replace(approval=resolved(s.archive) or approval, inputs=inputs)

    def owns(self, s: State, a: Actor, rule: str = "fenced_rows") -> bool:
        """`WHERE epoch = … AND status = 'running'`."""
        ours = s.owner == a.name or not self.on("owner_rows")
        return (s.epoch == a.epoch and ours and s.status == "running") or not self.on(rule)

    def commit(self, s: State, a: Actor, *, events: bool = True) -> State | None:
        """RunStore.archive with what the actor waits for at `at`; None: fenced."""
        if not self.owns(s, a):
            return None
        ops, approval = s.ops, s.approval
        if a.at in ("commit", "record") and not ops[a.call]:
            ops = (*ops[: a.call], a.epoch, *ops[a.call + 1 :])
        if a.at == "ask" and not approval:
            approval = "open"
        if ops != s.ops:
            s = s._replace(killed_in_row=0, taken_in_row=0, lost_in_row=0)
        s = s._replace(ops=ops, approval=approval)
        return self.restored(self.archived(s, merged(s.archive, a.local))) if events else s

    def suspend(self, s: State, a: Actor) -> tuple[State, str]:
        """Ownership.suspend of the actor, whose log has run.waiting already: FENCED, WAITS or GOES ON."""
        if not self.owns(s, a, "fenced_suspend"):
            return s, "WAITS" if (s.epoch, s.status) == (a.epoch, "waiting") else "FENCED"
        call = self.script[a.call]
        decided = call == "approve" and s.approval != "open"
        arrived = self.on("reread") and (decided or s.inputs > count(a.local, "input.received"))
        arrived = arrived or (self.on("reread_cancel") and s.cancel)
        s = self.restored(self.archived(s, merged(s.archive, a.local)))
        if arrived:
            return s, "GOES ON"
        s = s._replace(uncharged=0, killed_in_row=0, taken_in_row=0, lost_in_row=0)
        return s._replace(status="waiting", wakes=call == "sleep"), "WAITS"

    def finish(self, s: State, a: Actor) -> State | None:
        """Ownership.commit_end; None: fenced."""
        if not self.owns(s, a):
            return s if (s.epoch, s.status, s.archive) == (a.epoch, a.end, a.local) else None
        s = self.restored(self.archived(s, a.local, status=a.end, wakes=False))
        return s._replace(approval="expired") if s.approval == "open" else s

    def release(self, s: State, epoch: int, reason: str) -> State | None:
        """RunStore.release, and release_lost, which charges the run if it is known to have ended its owner."""
        if s.epoch != epoch or s.status != "running":
            return None
        recorded = any(op > s.crashed_epoch for op in s.ops) and self.on("recorded_resets")
        s = s._replace(status="pending", reason=reason, job=True, uncharged=0 if recorded else s.uncharged)
        if reason == "worker_lost":
            charged = (s.culprit and self.on("known_charged")) or not self.on("only_known_charged")
            s = s._replace(
                attempt=(1 if recorded else s.attempt) + charged,
                uncharged=s.uncharged + (not charged),
                crashed_epoch=epoch,
                culprit=False,
                losses=s.losses + 1,
                lost_in_row=s.lost_in_row + 1,
            )
        return s

    def is_alone(self, s: State) -> bool:
        """Whether whoever claims the run executes it in a process of its own."""
        alone = s.uncharged >= ALONE_AFTER and self.on("alone_after_two")
        if alone and s.lost_in_row < ALONE_AFTER:
            raise Violation(f"alone without need: it has lost {s.lost_in_row} workers in a row")
        return alone

    def end_worker(self, s: State, a: Actor, known: bool) -> State:
        """The agent ends the process in which it is executed; `known`: it is on the stack that is found."""
        s = s._replace(kills=s.kills - 1, killed=s.killed + 1, killed_in_row=s.killed_in_row + 1)
        s = s._replace(taken_in_row=s.taken_in_row + (not a.alone))
        most = MOST_ATTEMPTS if known else ALONE_AFTER
        if s.taken_in_row > most or s.killed_in_row > most + MOST_ATTEMPTS:
            raise Violation(f"goes on and on: it has ended {s.taken_in_row} workers of others in a row")
        if s.epoch == a.epoch and s.status == "running" and (known or a.alone):
            s = s._replace(culprit=True)
        # The parent of a process sees at once that it has ended.
        return (self.release(s, a.epoch, "worker_lost") or s) if a.alone else s

    # The row of a worker whose heartbeat is late.

    def beat_late(self, s: State) -> State:
        """From now on the heartbeat of the run's owner does not get through."""
        actors = tuple(sorted(a._replace(late=a.epoch == s.epoch and not a.api) for a in s.actors))
        return s._replace(heart_late=True, late_losses=0, actors=actors, late_hearts=s.late_hearts - 1)

    def beat_again(self, s: State) -> State:
        """It does again."""
        actors = tuple(sorted(a._replace(late=False) for a in s.actors))
        return s._replace(heart_late=False, version=s.version + 1, watched=(-1, -1), leased=False, actors=actors)

    def watch(self, s: State) -> State:
        """All janitors have watched the row for a full lease."""
        return s._replace(watched=(s.version, s.version), leased=True)

    def condemn(self, s: State, janitor: int) -> State | None:
        """Janitor.release_lost of the late worker, by itself (0) or another one (1); None: it may not."""
        if s.watched[janitor] != s.version or (janitor == 0 and self.on("silent_condemns_nobody")):
            return None
        if not s.leased:
            raise Violation("called lost without a lease: what was watched was over when it was last called lost")
        if janitor == 0:
            raise Violation("a bad judge: a worker that does not get through itself calls one lost that lives")
        if s.late_losses == s.most_late_losses:
            raise Violation(f"lost again: the same late heartbeat costs the run {s.late_losses + 1} workers")
        released = self.release(s, s.epoch, "worker_lost")
        assert released is not None
        version = s.version + self.on("loss_changes_row")
        return released._replace(replaced=True, leased=False, late_losses=s.late_losses + 1, version=version)


def merged(archive: Log, local: Log) -> Log:
    """ON CONFLICT DO NOTHING: what is archived stays; a repeated commit brings nothing new."""
    return local if len(local) > len(archive) else archive if archive[: len(local)] == local else local


def resolved(log: Log) -> str | None:
    """The decision that the log tells of."""
    told = [entry.partition("@")[0].partition(":")[2] for entry in log if entry.startswith("approval.resolved")]
    return told[0] if told else None
