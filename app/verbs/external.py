"""The verbs of runs that somebody else's process writes: start, append, heartbeat, finish. Knows no HTTP.

What a writer brings is committed in Postgres before it is appended to Redis, so Redis holds nothing of such a run that
the archive does not: whatever it misses is brought from there, and nothing here waits for it to come back.
"""

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.errors import (
    Behind,
    Fenced,
    InvalidRequest,
    RuntailError,
    ScopeRequired,
    StaleEpoch,
    StoreUnavailable,
)
from app.identifiers import askable, no_run
from app.protocol.events import encode
from app.protocol.reducer import reduce
from app.storage.coalescing import Bounded, Coalescer
from app.storage.event_log import Append
from app.storage.run_store import (
    EXTERNAL,
    Batch,
    BatchResult,
    Checkpoint,
    Hashes,
    Principal,
    RunRecord,
    hash_key,
)
from app.verbs.external_ends import Ends, Wanted
from app.verbs.external_payloads import kept_of, outbound_of
from app.verbs.runs import StartRequest, new_run, started_before
from app.wiring import Services

BATCHES_PER_COMMIT = 200
BYTES_PER_COMMIT = 2_000_000
"""Of all batches together, and so of one pipeline to Redis: whoever comes next waits no longer than for so much."""
KNOWN_MAX = 10_000
"""Tokens that are remembered; beyond it the one that was looked up first is forgotten."""
JANITOR_LOOK_SECONDS = 60.0
"""Between two looks whether there is a janitor."""
NO_JANITOR = (
    "No worker is running: nothing ends a run whose writer is lost, or puts right what else a process left behind. "
    "Start `python -m workers`."
)
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Of one writer, as they are shown once. `writer` None: it is yet to come."""

    writer: str | None
    watch: str

    @classmethod
    def make(cls, request: StartRequest) -> "Tokens":
        """New ones."""
        writer = None if request.writer_later else f"rtw_{secrets.token_urlsafe(32)}"
        return cls(writer, f"rtv_{secrets.token_urlsafe(32)}")

    def hashes(self, lease_seconds: int | None) -> Hashes:
        """What is stored of them."""
        return Hashes(hash_key(self.writer) if self.writer else None, hash_key(self.watch), lease_seconds)


@dataclass(frozen=True, slots=True)
class Started:
    """A run that was asked for. `tokens`: of its writer, who has its epoch; None: it has ended."""

    run: RunRecord
    tokens: Tokens | None
    lease_seconds: int


@dataclass(frozen=True, slots=True)
class Writer:
    """Who calls with a token, which is some writer's of the run: whether still, the store decides."""

    run_id: str
    epoch: int
    token_hash: str | None = None
    """None: the token is known to be the epoch's."""


class External:
    """The verbs of one process. Every one may raise StoreUnavailable for Postgres, and may then be called again."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._ends = Ends(services)
        self._batches = Coalescer(self._take, BATCHES_PER_COMMIT, Bounded(_weigh_batch, BYTES_PER_COMMIT))
        self._appends = Coalescer(self._append, BATCHES_PER_COMMIT, Bounded(_weigh, BYTES_PER_COMMIT))
        self._known: dict[tuple[str, str], int] = {}
        """Epochs by run and token. They are for good: nothing that is known here ever changes."""
        self._storing: set[str] = set()
        """Runs whose state is being stored at the moment."""
        self._look_for_janitor_at = 0.0

    # Start.

    def start(self, principal: Principal, request: StartRequest) -> Started:
        """Commit a run that is running, and its writer. A repeated key or client's id gives the run the next writer.

        :raises ScopeRequired: the principal may not write.
        :raises InvalidRequest: external runs have no timeout.
        :raises IdempotencyConflict: the key, or the client's id, was used with another request.
        """
        if not principal.writer:
            raise ScopeRequired("`runtail keys create --write` makes a key that may start external runs.")
        if request.timeout_s is not None:
            raise InvalidRequest("timeout_s: an external run ends when its writer finishes it, or falls silent.")
        self._warn_without_janitor()
        while True:
            earlier = started_before(self._services.store, principal, request)
            if earlier is not None and earlier.terminal:
                return self._ended(earlier, request)
            started = self._claim(earlier, request) if earlier is not None else self._begin(principal, request)
            if started is not None:  # None: somebody else did something to the run, or with its name
                return started

    def _begin(self, principal: Principal, request: StartRequest) -> Started | None:
        new, created = new_run(principal, request, self._services.hooks)
        payload = self._services.hooks.fact("run.started", {"attempt": 1, "worker": EXTERNAL})
        started = encode(new.id, 2, "run.started", payload)
        new.state.update(reduce(new.state, started.envelope()))
        tokens, lease = Tokens.make(request), self._lease(request)
        run = self._services.external.create(new, [created, started], tokens.hashes(lease))
        if run is None:
            return None
        self._append([Append(run.id, run.epoch, [created, started], archived=started.seq)])
        if request.writer_later and run.cancel_requested and self._ends.end_unclaimed(run):
            run = self._services.store.get(run.id) or run
        return Started(run, tokens, lease)

    def _claim(self, run: RunRecord, request: StartRequest) -> Started | None:
        if run.cancel_requested and self._ends.end_unclaimed(run):
            return None
        tokens, lease = Tokens.make(request), self._lease(request)
        hashes = tokens.hashes(lease)
        if request.writer_later:
            return Started(run, tokens, lease) if self._services.external.watch_too(run, hashes) else None
        about = {"attempt": run.attempt + 1, "reason": "retry", "restart": True}
        self._services.recovery.level([run.id])
        claimed = self._services.external.claim(run, hashes, self._services.hooks.fact("run.step", about))
        if claimed is not None:
            self.heal(claimed.id, claimed.epoch)
            return Started(claimed, tokens, lease)
        if (again := self._services.external.take_again(run)) is not None:
            self._ends.end(*again)
        return None

    def _warn_without_janitor(self) -> None:
        if time.monotonic() < self._look_for_janitor_at:
            return
        self._look_for_janitor_at = time.monotonic() + JANITOR_LOOK_SECONDS
        if not self._services.registry.has_janitor():
            log.warning(NO_JANITOR)

    def _ended(self, run: RunRecord, request: StartRequest) -> Started:
        """A run that has ended has no writer any more. A view that asks for it may show it once more."""
        tokens, lease = Tokens.make(request), self._lease(request)
        shown = request.writer_later and self._services.external.watch_ended(run, tokens.hashes(lease))
        return Started(run, tokens if shown else None, lease)

    def _lease(self, request: StartRequest) -> int:
        """Seconds that a writer gets."""
        own = self._services.config.external_lease_seconds
        longest = max(own, self._services.config.external_lease_max_seconds)
        return min(request.lease_seconds or own, longest)

    # Append and heartbeat.

    def authorise(self, run_id: str, token: str, epoch: int | None) -> Writer:
        """Who calls.

        :param epoch: that they say they have; None: they do not say.
        :raises RunNotFound: there is no such run, or the token is none of its writers'.
        :raises StaleEpoch: the token is another epoch's.
        """
        key = (run_id, hash_key(token))
        found = self._known.get(key)
        if found is None:
            found = self._services.external.epoch_of(askable(run_id), key[1])
            if found is None:
                raise no_run(run_id)
            while len(self._known) >= KNOWN_MAX:
                del self._known[next(iter(self._known))]
            self._known[key] = found
        if epoch not in (None, found):
            raise StaleEpoch(f"The token is that of epoch {found}.")
        return Writer(run_id, found, key[1])

    def watcher(self, run_id: str, token: str) -> Principal | None:
        """The user whose run it is, for who has one of its tokens to watch it; None: it is none."""
        return self._services.external.watcher(askable(run_id), hash_key(token))

    def append(
        self, writer: Writer, producer_seq: int, events: Sequence[Any], inputs_after: int, size: int
    ) -> BatchResult:
        """Take a batch of events, or none of it: it is committed when this returns.

        :param events: as the writer has sent them.
        :param size: in bytes.
        :raises InvalidEvent, InvalidJson, TooDeep, HookFailed, ReservedType: one of them is not fit; the detail
            says which.
        :raises RunNotFound, RunEnded, StaleEpoch, ProducerGap, TooManyApprovals, TooManyItems: the batch is not taken.
        """
        outbound, approvals = outbound_of(events, self._services.hooks)
        of, token, keeps = (writer.run_id, writer.epoch), writer.token_hash, kept_of(outbound)
        batch = Batch(*of, producer_seq, outbound, approvals, inputs_after, size, token_hash=token, keeps=keeps)
        return self._ask(batch)

    def beat(self, writer: Writer, inputs_after: int) -> BatchResult:
        """Show that the writer is there, and bring Redis what it misses of the run.

        :raises RunNotFound, RunEnded, StaleEpoch: the writer does not have the run.
        """
        heartbeat = Batch(writer.run_id, writer.epoch, None, (), (), inputs_after, token_hash=writer.token_hash)
        taken = self._ask(heartbeat)
        self.heal(writer.run_id, writer.epoch)
        return taken

    def _ask(self, batch: Batch) -> BatchResult:
        outcome = self._batches.ask(batch)
        if isinstance(outcome, RuntailError):
            raise outcome
        self._bring(batch, outcome)
        if outcome.untold:
            outcome = self._tell(batch, outcome)
        if outcome.state_due and batch.run_id not in self._storing:
            self._store_state(batch.run_id, batch.epoch)
        return outcome

    def _bring(self, batch: Batch, taken: BatchResult) -> None:
        if taken.added:
            last = taken.added[-1].seq
            self._appends.ask(Append(batch.run_id, batch.epoch, taken.added, archived=last, batch=taken.producer_seq))

    def _tell(self, batch: Batch, taken: BatchResult) -> BatchResult:
        """Tell the log what its user has said meanwhile, by a heartbeat that brings it past the hooks."""
        facts = {fact: self._services.hooks.fact(fact[0], payload) for fact, payload in taken.untold.items()}
        told = self._batches.ask(replace(batch, producer_seq=None, events=(), approvals=(), facts=facts, size=0))
        if isinstance(told, RuntailError):
            return taken  # the batch was taken, and the run has gone elsewhere since
        self._bring(batch, told)
        return replace(told, repeated=taken.repeated)

    def _take(self, batches: Sequence[Batch]) -> list[BatchResult | RuntailError]:
        losses = self._services.recovery.level(batch.run_id for batch in batches)
        return self._services.batches.take(batches, losses)

    def _append(self, appends: Sequence[Append]) -> list[None]:
        """Bring what is committed into Redis. Where that fails it is brought later: see `heal`."""
        try:
            outcomes = self._services.log.append_all(appends)
        except StoreUnavailable as error:
            log.debug("Events are committed, and will be in Redis later. %s", error.detail)
            outcomes = []
        for append, outcome in zip(appends, outcomes, strict=False):
            if isinstance(outcome, Behind):
                self.heal(append.run_id, append.epoch)
        return [None] * len(appends)

    def heal(self, run_id: str, epoch: int) -> None:
        """Bring into Redis what it misses of the run, as far as that is possible now."""
        try:
            self._services.ownership.sync(run_id, epoch)
        except Fenced:
            pass  # somebody else has the run, and brings all that is committed
        except StoreUnavailable as error:
            log.debug("The log of %s will be brought into Redis later. %s", run_id, error.detail)

    def _store_state(self, run_id: str, epoch: int) -> None:
        """Reading the run folds what follows its stored state: that is not to become ever more."""
        self._storing.add(run_id)
        try:
            run = self._services.store.get(run_id)
            if run is not None:
                state = self._services.history.snapshot(run)
                due = Checkpoint(run_id, epoch, (), state.text, state.seq)
                self._services.store.archive([due])
        except StoreUnavailable as error:
            log.warning("The state of %s is stored next time. %s", run_id, error.detail)
        finally:
            self._storing.discard(run_id)

    # Finish.

    def finish(self, writer: Writer, producer_seq: int, wanted: Wanted) -> RunRecord:
        """End the run as its writer wants; the same again gives the run as it ended.

        :param wanted: `status`, and `output` or `error`.
        :raises RunNotFound, RunEnded, StaleEpoch, ProducerGap: it is not the writer's to end, or not yet.
        """
        external = self._services.external
        token = writer.token_hash
        if token and external.epoch_of(writer.run_id, token) != writer.epoch:  # Postgres may have lost it since
            raise no_run(writer.run_id)
        run = external.begin_end(writer.run_id, writer.epoch, producer_seq, wanted)
        return self._ends.publish(run) if run.terminal else self._ends.end(run, wanted)


def _weigh_batch(batch: Batch) -> tuple[str, int]:
    return batch.run_id, batch.size


def _weigh(append: Append) -> tuple[str, int]:
    return append.run_id, sum(len(event.text) for event in append.events)
