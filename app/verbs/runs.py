"""The verbs of the API: start, find, list, cancel, erase. Knows neither Flask nor wire formats."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from app.agents import KnownAgents
from app.errors import (
    Behind,
    Fenced,
    IdempotencyConflict,
    NotTerminal,
    StoreUnavailable,
)
from app.hooks import Hooks
from app.identifiers import askable, new_id, no_run
from app.protocol.events import TERMINAL, Event, encode
from app.protocol.reducer import initial, reduce
from app.storage.coalescing import Coalescer
from app.storage.event_log import Append, Outcome
from app.storage.run_queue import queue_of
from app.storage.run_store import EXTERNAL, AgentRecord, ListedRun, NewRun, Principal, RunPosition, RunRecord, RunStore
from app.turns import give_way
from app.verbs.external_ends import Ends
from app.wiring import Services
from runtail.redaction import preview

CANCEL_WAIT_SECONDS = 2.0
"""How long a cancel waits for the owner to end the run before it answers that it is still on its way."""
WAIT_MS = 1_000
"""How long one wait for events may block: well below a Redis connection's timeout."""
FOLLOW_EVENTS = 500
ANNOUNCED_AT_ONCE = 100

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StartRequest:
    """A valid body of POST /runs, cleaned."""

    agent: str
    input: dict[str, Any]
    session_id: str | None
    on_disconnect: str
    timeout_s: int | None
    metadata: dict[str, Any]
    client_run_id: str | None
    idempotency_key: str | None
    writer_later: bool = False
    """An external run that nobody is to write yet."""
    lease_seconds: int | None = None
    """How long the writer of an external run may be silent; None: as long as the server's settings say."""

    @property
    def hash(self) -> str:
        """Equal for equal requests; what headers say is not part of it."""
        body = [self.agent, self.input, self.session_id, self.on_disconnect, self.timeout_s, self.metadata]
        if self.client_run_id is not None:
            body.append(self.client_run_id)
        return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class Runs:
    """Verbs on runs. Every one that needs Postgres may raise StoreUnavailable."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self._agents = KnownAgents(services.registry)
        self._announcements = Coalescer(self._announce_all, ANNOUNCED_AT_ONCE)

    def start(self, principal: Principal, request: StartRequest) -> RunRecord:
        """Commit a run, then tell the log and the workers. A repeated key or client's id gives the earlier run.

        A run that was cancelled before it came has ended when this returns, or will.

        :raises UnknownAgent: no worker has registered the agent.
        :raises InvalidInput: the input does not fit the agent's schema.
        :raises IdempotencyConflict: the key, or the client's id, was used with another request.
        """
        run = started_before(self.services.store, principal, request)
        while run is None:
            agent = self._agents.that_takes(request.agent, request.input)
            new, created = new_run(principal, request, self.services.hooks, agent)
            made = self.services.store.create(new, created)
            if made is not None:
                return self._announce(made, created)
            # The same key or id was used at the same time, or the agent was registered anew.
            self._agents.forget(agent.name)
            run = started_before(self.services.store, principal, request)
        return run

    def find(self, principal: Principal, run_id: str) -> RunRecord:
        """
        :raises RunNotFound: there is no such run, or it is somebody else's.
        """
        return _found(self.services.store.find(principal, askable(run_id)), run_id)

    def position(self, principal: Principal, run_id: str) -> RunPosition:
        """As `find`, but only where the run's log is: one small query.

        :raises RunNotFound: there is no such run, or it is somebody else's.
        """
        return _found(self.services.store.position(principal, askable(run_id)), run_id)

    def positions(self, principal: Principal, run_ids: Sequence[str]) -> list[RunPosition]:
        """As `position`, of several runs in one query.

        :raises RunNotFound: one of them is not there, or is somebody else's.
        """
        found = self.services.store.positions(principal, list(map(askable, run_ids)))
        return [_found(position, run_id) for position, run_id in zip(found, run_ids, strict=True)]

    def await_end(self, run: RunRecord, seconds: float) -> RunRecord:
        """The run once it has ended; after so long, or where the log cannot be followed, as it is then."""
        try:
            self._follow_to_end(run.id, seconds, ring=False)
        except StoreUnavailable as error:
            log.warning("The end of %s is not waited for. %s", run.id, error.detail)
        return self.services.store.get(run.id) or run

    def page(
        self, principal: Principal, filters: Mapping[str, Any], before: str | None, limit: int
    ) -> tuple[list[ListedRun], str | None]:
        """Runs, newest first, and the cursor of the next page (None: this is the last). A page may end early."""
        found = self.services.store.page(principal, filters, before, limit + 1)
        runs = found[:limit]
        return runs, runs[-1].id if runs and runs[0].found > len(runs) else None

    def cancel(self, principal: Principal, run_id: str) -> RunRecord:
        """Cancel a run that has not ended; wait a moment for it to end. Returns the row as it is then.

        The request is committed before anything else: whatever fails from there on, the run will end.

        :raises RunNotFound: there is no such run, or it is somebody else's.
        """
        run = self.services.store.request_cancel(self.find(principal, run_id).id)
        if run is None:
            raise no_run(run_id)
        if run.terminal:
            return run
        try:
            if run.queue == EXTERNAL:
                Ends(self.services).end_unclaimed(run)
            else:
                self.services.ownership.end_unowned(run)
            self._follow_to_end(run.id, CANCEL_WAIT_SECONDS, ring=True)
        except StoreUnavailable:
            log.warning("%s is to be cancelled; its owner or the janitor will find out.", run.id)
        return self.services.store.get(run.id) or run

    def cancel_named(self, principal: Principal, kind: str, key: str) -> RunRecord | None:
        """Cancel a run by the name that its client gave it. None: there is none yet; it will end when it comes.

        :param kind: `client_run_id` or `idempotency_key`.
        :raises RunNotFound: it was erased at this moment.
        """
        run_id = self.services.early_cancels.find_or_note(principal, kind, key)
        return self.cancel(principal, run_id) if run_id is not None else None

    def erase(self, principal: Principal, run_id: str) -> None:
        """Remove every trace of a finished run.

        :raises RunNotFound: there is no such run, or it is somebody else's.
        :raises NotTerminal: it has not ended.
        """
        run = self.find(principal, run_id)
        if not run.terminal:
            raise NotTerminal(f"{run.id} is {run.status}; cancel it first.")
        self.services.erasure.erase(run)

    def _announce(self, run: RunRecord, created: Event) -> RunRecord:
        """Tell the log, and the workers, or end what was cancelled before it was there. The row as it is after that.

        All of it is repaired where it fails: a claim levels the log, the janitor enqueues.
        """
        try:
            outcome = self._announcements.ask((run, created))
            if not isinstance(outcome, int):
                raise outcome
            if not run.cancel_requested:
                return run
            self.services.ownership.end_unowned(run)
            return self.services.store.get(run.id) or run
        except Fenced:
            return run  # somebody has claimed it already
        except (StoreUnavailable, Behind) as error:
            log.warning("%s is committed but not announced yet. %s", run.id, error.detail)
            return run

    def _announce_all(self, made: Sequence[tuple[RunRecord, Event]]) -> list[Outcome]:
        """What is announced at the same time, to the log and to the queue: in one round trip, where they share a Redis.

        A hint for a run whose first event is not in the log does no harm: the claim appends it.
        """
        appends = [Append(run.id, 0, [event], archived=event.seq) for run, event in made]
        pending = [(run.id, run.epoch, run.queue) for run, _ in made if not run.cancel_requested]
        # What was cancelled is to end, also where the queue is refused.
        if self.services.config.share_redis and len(pending) == len(made):
            return self.services.log.append_all(appends, along=self.services.queue.hints(pending))
        outcomes = self.services.log.append_all(appends)
        try:
            if pending:
                self.services.queue.enqueue_all(pending)
        except StoreUnavailable as error:
            return [
                outcome if run.cancel_requested else error for outcome, (run, _) in zip(outcomes, made, strict=True)
            ]
        return outcomes

    def _follow_to_end(self, run_id: str, seconds: float, *, ring: bool) -> None:
        """Follow the log to its end, for at most so long. With `ring`, tell the owner first, and expect one."""
        deadline = time.monotonic() + seconds
        seq = self.services.history.head(run_id)  # before the row: an end that comes in between is not waited for
        latest = self.services.store.get(run_id)
        if latest is None or latest.terminal:
            return
        if ring:
            if latest.owner is None:
                return
            self.services.log.ring(latest.owner)
        while (left_ms := round((deadline - time.monotonic()) * 1_000)) > 0:
            events = self.services.log.wait(run_id, seq, min(left_ms, WAIT_MS), FOLLOW_EVENTS)
            if any(event.type in TERMINAL for event in events):
                return
            seq = events[-1].seq if events else seq


def _found(run: T | None, run_id: str) -> T:
    if run is None:
        raise no_run(run_id)
    return run


def started_before(store: RunStore, principal: Principal, request: StartRequest) -> RunRecord | None:
    """The run that an earlier request, equal to this one, has started under one of its names.

    :raises IdempotencyConflict: the key, or the client's id, was used with another request.
    """
    run = None
    if request.client_run_id is not None:
        run = store.find_by_client_id(principal, request.client_run_id)
    if run is None and request.idempotency_key is not None:
        run = store.find_by_key(principal, request.idempotency_key)
    if run is None:
        return None
    if run.request_hash != request.hash:
        raise IdempotencyConflict(f"{run.id} was started with another body.")
    if request.idempotency_key not in (None, run.idempotency_key):
        raise IdempotencyConflict(f"{run.id} was started with another idempotency key, or none.")
    return run


def new_run(
    principal: Principal, request: StartRequest, hooks: Hooks, agent: AgentRecord | None = None
) -> tuple[NewRun, Event]:
    """What is asked for as a run of its own, with its first event.

    :param agent: that of a worker; None: the run is external.
    """
    run_id, session_id = new_id("run"), request.session_id or new_id("ses")
    give_way()
    shown = preview(request.input)["preview"]
    give_way()
    payload = {"agent": request.agent, "input_preview": shown, "session_id": session_id}
    created = encode(run_id, 1, "run.created", hooks("run.created", payload))
    new = NewRun(
        id=run_id,
        principal=principal,
        session_id=session_id,
        agent=request.agent,
        input=request.input,
        metadata=request.metadata,
        on_disconnect=request.on_disconnect,
        timeout_s=request.timeout_s,
        idempotency_key=request.idempotency_key,
        request_hash=request.hash,
        client_run_id=request.client_run_id,
        queue=queue_of(agent.isolation) if agent else EXTERNAL,
        agent_version=agent.version if agent else None,
        registered_at=agent.registered_at if agent else None,
        state=reduce(initial(run_id), created.envelope()),
    )
    return new, created
