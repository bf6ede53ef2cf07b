"""Runs and their archived events. Postgres decides here who may write: see `app.storage.ownership` for the rules."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from app.errors import Behind, Fenced, StoreUnavailable
from app.pace import dumps_paced, in_chunks
from app.protocol.ending import NOT_DECIDED
from app.protocol.events import Event, unbroken
from app.storage.coalescing import Bounded, Coalescer
from app.storage.run_store import losses
from app.storage.run_store.as_json import INSERT_NEW_EVENTS, NEW_EVENTS, event_row, recordset
from app.storage.run_store.creation import Creation, insert_runs
from app.storage.run_store.database import Database, columns
from app.storage.run_store.early_cancels import names_of
from app.storage.run_store.journal import insert_journal
from app.storage.run_store.long_texts import LONG_CHARS, LONG_TEXT, long_text
from app.storage.run_store.records import (
    RUN_COLUMNS,
    Checkpoint,
    EndedRun,
    ListedRun,
    NewRun,
    OwnedRun,
    OwnerBeat,
    Principal,
    RunPosition,
    RunRecord,
)
from app.storage.run_store.restoring import restore_rows, restore_writer, tells_of_rows
from app.storage.run_store.retention import erase_runs
from app.turns import give_way

POSITIONS_PER_QUERY = 100
CREATED_PER_QUERY = 100
HEADS_PER_QUERY = 100
PUBLISHED_PER_QUERY = 100
READ_BYTES = 4_000_000
"""Of events that are read at once, whatever they were asked for: each may have megabytes."""
INSERTED_CHARS = 1_000_000
"""Of events, or of new runs, that go into one statement, but one in any case: the driver quotes them all in one go."""
LISTED_BYTES = 1_000_000
"""Of inputs, outputs and the like of runs that are listed at once."""

# The lengths are known without reading the texts.
_EVENTS = """
SELECT seq, type, e, op FROM (
    SELECT seq, type, e, op, sum(octet_length(e)) OVER before AS bytes, row_number() OVER before AS n FROM (
        SELECT seq, type, e, op FROM run_events WHERE run_id = %s AND seq > %s ORDER BY seq LIMIT %s
    ) AS page WINDOW before AS (ORDER BY seq)
) AS counted WHERE bytes <= %s OR n = 1 ORDER BY seq
"""
_HEAVY = ("input", "output", "error", "usage", "metadata")
_LIGHT = (
    *("id", "status", "agent", "attempt", "session_id", "client_run_id", "cancel_requested", "state_seq", "digest"),
    *("created_at", "started_at", "finished_at"),
)
_LISTED = f"""
SELECT {", ".join(_LIGHT)}, {", ".join(_HEAVY)}, found FROM (
    SELECT *, sum({" + ".join(f"coalesce(octet_length({name}), 0)" for name in _HEAVY)}) OVER newer AS bytes,
           row_number() OVER newer AS n, count(*) OVER () AS found
    FROM (
        SELECT {", ".join(_LIGHT)}, {", ".join(f"{name}::text AS {name}" for name in _HEAVY)} FROM runs
        WHERE {{where}} ORDER BY id DESC LIMIT %s
    ) AS page WINDOW newer AS (ORDER BY id DESC)
) AS counted WHERE bytes <= %s OR n = 1 ORDER BY id DESC
"""
INSERT_EVENTS = f"""
WITH new AS (
    SELECT * FROM {NEW_EVENTS}
), archive AS (
    SELECT run_id, min(seq) AS first,
           (SELECT coalesce(max(seq), 0) FROM run_events e WHERE e.run_id = new.run_id) AS head
    FROM new GROUP BY run_id
), inserted AS (
    {INSERT_NEW_EVENTS} FROM new JOIN archive USING (run_id) WHERE first <= head + 1
    ON CONFLICT DO NOTHING
) SELECT run_id, head FROM archive WHERE first > head + 1
"""
"""Inserts what follows each run's archive; the answer is the runs whose archive ends before, which get nothing.

A conflict is a commit that was repeated because its outcome was unknown: same owner, same events.
"""
_LOCK_OWNED = """
SELECT r.id, r.cancel_requested FROM runs r
JOIN unnest(%s::text[], %s::int[], %s::text[]) AS mine (id, epoch, owner)
ON r.id = mine.id AND r.epoch = mine.epoch AND coalesce(mine.owner, r.owner) IS NOT DISTINCT FROM r.owner
WHERE r.status = 'running' ORDER BY r.id FOR NO KEY UPDATE OF r
"""
_LOCK = """
SELECT FROM runs WHERE id = %s AND epoch = %s AND coalesce(%s, owner) IS NOT DISTINCT FROM owner AND status = 'running'
FOR NO KEY UPDATE
"""
_HEAD = "SELECT coalesce(max(seq), 0) FROM run_events WHERE run_id = %s"
_HEADS = """
SELECT (SELECT coalesce(max(seq), 0) FROM run_events WHERE run_id = asked.run_id)
FROM unnest(%s::text[]) WITH ORDINALITY AS asked (run_id, n) ORDER BY n
"""
_UPDATE_STATES = """
UPDATE runs SET state = due.state::json, state_seq = due.seq
FROM unnest(%s::text[], %s::text[], %s::int[]) AS due (id, state, seq) WHERE runs.id = due.id
"""
_UPDATE_STATE = f"UPDATE runs SET state = {LONG_TEXT}::json, state_seq = %s WHERE id = %s"
_FINISH = f"""
UPDATE runs SET status = %s, output = {LONG_TEXT}::json, error = %s, usage = %s, state = {LONG_TEXT}::json,
                state_seq = %s, digest = %s, owner = NULL, finished_at = now()
WHERE id = %s AND epoch = %s AND coalesce(%s, owner) IS NOT DISTINCT FROM owner AND status = 'running'
"""
# One that had to wait for the row looks at the archive as it was before it waited: then it may find it too short.
_FINISH_AT_ONCE = f"""
WITH finished AS ({_FINISH} AND ({_HEAD}) >= %s RETURNING id)
{INSERT_NEW_EVENTS} FROM finished, {NEW_EVENTS}
ON CONFLICT DO NOTHING RETURNING seq
"""
# A row that somebody else has locked is left to a janitor: one run is not to hold up all ends of a process.
_MARK_PUBLISHED = """
UPDATE runs SET published = finished_at IS NOT NULL
                            AND state_seq <= coalesce((%s::int[])[array_position(%s, runs.id)], state_seq)
WHERE id IN (SELECT id FROM runs WHERE id = ANY (%s) FOR NO KEY UPDATE SKIP LOCKED) RETURNING id
"""
_SET_OUTPUT = f"UPDATE runs SET output = {LONG_TEXT}::json WHERE id = %s"
_CLOSE_APPROVALS = """
UPDATE approvals SET decision = %s, comment = %s, decided_at = now() WHERE run_id = %s AND decision IS NULL
"""
_REQUEST_CANCEL = f"""
UPDATE runs SET cancel_requested = true, cancel_reason = coalesce(cancel_reason, %s), wake_at = NULL,
                enqueued_at = CASE status WHEN 'waiting' THEN now() ELSE enqueued_at END,
                requeue_reason = CASE status WHEN 'waiting' THEN 'resumed' ELSE requeue_reason END,
                status = CASE status WHEN 'waiting' THEN 'pending' ELSE status END
WHERE id = %s AND finished_at IS NULL RETURNING {RUN_COLUMNS}
"""
_CLAIM = f"""
UPDATE runs SET epoch = epoch + 1, status = 'running', owner = %s, wake_at = NULL,
                started_at = CASE WHEN %s THEN coalesce(started_at, now()) ELSE started_at END
WHERE id = %s AND status = ANY (%s) RETURNING {RUN_COLUMNS}
"""
_RAISE_EPOCH = f"""
UPDATE runs SET epoch = greatest(epoch, %s) + 1 WHERE id = %s AND epoch = %s AND owner = %s AND status = 'running'
RETURNING {RUN_COLUMNS}
"""
_RELEASE = f"""
UPDATE runs SET status = 'pending', owner = NULL, requeue_reason = %s, queue = coalesce(%s, queue),
                enqueued_at = now(), losses = {losses.STILL_LOST}
WHERE id = %s AND epoch = %s AND coalesce(%s, owner) IS NOT DISTINCT FROM owner AND status = 'running'
RETURNING {RUN_COLUMNS}
"""
_SET_VERSION = """
UPDATE runs SET agent_version = %s, generation = %s
WHERE id = %s AND epoch = %s AND coalesce(%s, owner) IS NOT DISTINCT FROM owner AND status = 'running' RETURNING id
"""
_LOCK_ANY = "SELECT FROM runs WHERE id = %s AND epoch = coalesce(%s, epoch) AND status = 'running' FOR NO KEY UPDATE"
# A statement of its own: one that had to wait for the lock would look at the rows as they were before it waited.
_HAS_ARRIVED = """
SELECT cancel_requested
       OR (SELECT count(*) FROM run_inputs i WHERE i.run_id = runs.id) > %s
       OR EXISTS (SELECT FROM approvals a WHERE a.run_id = runs.id AND a.id = ANY (%s) AND a.decision IS NOT NULL)
FROM runs WHERE id = %s
"""
_SUSPEND = f"""
UPDATE runs SET status = 'waiting', owner = NULL, wake_at = %s, state = {LONG_TEXT}::json, state_seq = %s, losses = 0
WHERE id = %s
"""


class RunStore:
    """Blunt verbs over `runs` and `run_events`. Every method may raise StoreUnavailable.

    What a call does is done in one transaction. Where it says so, those made at the same time share it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._positions = Coalescer(self._find_positions, POSITIONS_PER_QUERY)
        self._archived = Coalescer(self.archived_heads, HEADS_PER_QUERY)
        self._published = Coalescer(self.mark_all_published, PUBLISHED_PER_QUERY)
        by_size: Bounded[Creation] = Bounded(lambda creation: (creation.new.id, creation.chars), INSERTED_CHARS)
        self._creations = Coalescer(self._create_all, CREATED_PER_QUERY, by_size)

    # Created by the API.

    def create(self, new: NewRun, created: Event) -> RunRecord | None:
        """Commit a run together with its `run.created`. A cancel that came before it is requested in the same commit.

        Runs that are created at the same time share a round trip, but for those with names.

        None: the principal has a run with its idempotency key, or its client's id; or the agent was registered anew.
        """
        creation = Creation.of(new, [created])
        return self._create_all([creation])[0] if names_of(new) else self._creations.ask(creation)

    def _create_all(self, creations: Sequence[Creation]) -> list[RunRecord | None]:
        with self._database.session() as db:
            return insert_runs(db, creations)

    # Read.

    def get(self, run_id: str) -> RunRecord | None:
        """One run, whoever it belongs to."""
        return self._one(f"SELECT {RUN_COLUMNS} FROM runs WHERE id = %s", run_id)

    def find(self, principal: Principal, run_id: str) -> RunRecord | None:
        """One run, if it belongs to the principal."""
        sql = f"SELECT {RUN_COLUMNS} FROM runs WHERE id = %s AND tenant_id = %s AND user_id = %s"
        return self._one(sql, run_id, principal.tenant_id, principal.user_id)

    def position(self, principal: Principal, run_id: str) -> RunPosition | None:
        """Where a run's log is, if the run belongs to the principal: all that a window needs of the row.

        Windows that open at the same time share a query.
        """
        return self._positions.ask((run_id, principal.tenant_id, principal.user_id))

    def positions(self, principal: Principal, run_ids: Sequence[str]) -> list[RunPosition | None]:
        """As `position`, of several runs in one query, in order."""
        return self._find_positions([(run_id, principal.tenant_id, principal.user_id) for run_id in run_ids])

    def _find_positions(self, wanted: Sequence[tuple[str, str, str]]) -> list[RunPosition | None]:
        # Whose they are is looked at here: to join with the users, too, costs Postgres twice as much.
        sql = "SELECT id, tenant_id, user_id, finished_at IS NOT NULL, state_seq FROM runs WHERE id = ANY (%s)"
        with self._database.session() as db:
            found = db.execute_sql(sql, ([run_id for run_id, _, _ in wanted],)).fetchall()
        positions = {tuple(row[:3]): RunPosition(row[0], *row[3:]) for row in found}
        return [positions.get(key) for key in wanted]

    def tenants(self, run_ids: Sequence[str]) -> dict[str, str]:
        """Of each run its tenant, where there is such a run."""
        with self._database.session() as db:
            sql = "SELECT id, tenant_id FROM runs WHERE id = ANY (%s)"
            return dict(db.execute_sql(sql, (list(run_ids),)).fetchall())

    def find_by_key(self, principal: Principal, idempotency_key: str) -> RunRecord | None:
        """The run that the principal started with this key."""
        sql = f"SELECT {RUN_COLUMNS} FROM runs WHERE tenant_id = %s AND user_id = %s AND idempotency_key = %s"
        return self._one(sql, principal.tenant_id, principal.user_id, idempotency_key)

    def find_by_client_id(self, principal: Principal, client_run_id: str) -> RunRecord | None:
        """The run that the principal has given this id."""
        sql = f"SELECT {RUN_COLUMNS} FROM runs WHERE tenant_id = %s AND user_id = %s AND client_run_id = %s"
        return self._one(sql, principal.tenant_id, principal.user_id, client_run_id)

    def page(self, principal: Principal, filters: Mapping[str, Any], before: str | None, limit: int) -> list[ListedRun]:
        """The principal's runs, newest first, older than the id `before`: what of them fits into LISTED_BYTES.

        :param filters: any of `status`, `agent`, `session_id`, `client_run_id` (equal), `since` (created at or after).
        """
        clauses, values = ["tenant_id = %s", "user_id = %s"], [principal.tenant_id, principal.user_id]
        for column in ("status", "agent", "session_id", "client_run_id"):
            if column in filters:
                clauses.append(f"{column} = %s")
                values.append(filters[column])
        if "since" in filters:
            clauses.append("created_at >= %s")
            values.append(filters["since"])
        if before is not None:
            clauses.append("id < %s")
            values.append(before)
        with self._database.session() as db:
            sql = _LISTED.format(where=" AND ".join(clauses))
            return [ListedRun(*row) for row in db.execute_sql(sql, (*values, limit, LISTED_BYTES)).fetchall()]

    def events(self, run_id: str, after: int, limit: int) -> list[Event]:
        """Consecutive archived events with seq > `after`, at most `limit` and READ_BYTES, but one in any case.

        The first need not be `after` + 1.
        """
        with self._database.session() as db:
            rows = db.execute_sql(_EVENTS, (run_id, after, limit, READ_BYTES)).fetchall()
            return unbroken([Event(*row) for row in rows])

    def read_many(self, cursors: Mapping[str, int], limit: int) -> dict[str, list[Event]]:
        """For each run that has archived events after its cursor: as `events`."""
        sql = """SELECT run_id, e.seq, e.type, e.e, e.op FROM unnest(%s::text[], %s::int[]) AS known (run_id, cursor)
                 CROSS JOIN LATERAL (SELECT seq, type, e, op FROM run_events WHERE run_events.run_id = known.run_id
                     AND seq > cursor ORDER BY seq LIMIT %s) AS e ORDER BY run_id, e.seq"""
        found: dict[str, list[Event]] = {}
        if not cursors:
            return found
        with self._database.session() as db:
            for run_id, *event in db.execute_sql(sql, (list(cursors), list(cursors.values()), limit)).fetchall():
                found.setdefault(run_id, []).append(Event(*event))
        return {run_id: unbroken(events) for run_id, events in found.items()}

    def ends(self, run_ids: Sequence[str]) -> dict[str, list[Event]]:
        """Of each run its last archived event, and nothing before it, where there is one."""
        sql = """SELECT DISTINCT ON (run_id) run_id, seq, type, e, op FROM run_events WHERE run_id = ANY (%s)
                 ORDER BY run_id, seq DESC"""
        with self._database.session() as db:
            return {run_id: [Event(*event)] for run_id, *event in db.execute_sql(sql, (list(run_ids),)).fetchall()}

    def is_over(self, run_id: str, seq: int) -> bool:
        """Nothing will ever follow `seq`: it is the end of the run, or there is no such run."""
        sql = "SELECT 1 FROM runs WHERE id = %s AND (finished_at IS NULL OR state_seq > %s)"
        with self._database.session() as db:
            return db.execute_sql(sql, (run_id, seq)).fetchone() is None

    def archived_head(self, run_id: str) -> int:
        """Seq of the last archived event, 0 where there is none. Who asks at the same time shares a round trip."""
        return self._archived.ask(run_id)

    def archived_heads(self, run_ids: Sequence[str]) -> list[int]:
        """As `archived_head`, of many runs, in order."""
        with self._database.session() as db:
            return [head for (head,) in db.execute_sql(_HEADS, (list(run_ids),)).fetchall()]

    # Owned: every write is under an epoch.

    def claim(self, run_id: str, owner: str, *, start: bool) -> RunRecord | None:
        """Take a run that nobody has: the next epoch is the caller's. None: it is running, or has ended.

        :param start: the claim is to execute the run: it counts as its start, and the run must be pending. Otherwise
            it is to finish the run, which may be waiting as well.
        """
        return self._one(_CLAIM, owner, start, run_id, ["pending"] if start else ["pending", "waiting"])

    def raise_epoch(self, run: RunRecord, taken: int) -> RunRecord | None:
        """Give a claimed run an epoch that nobody else has: one above its own and `taken`. None: it was taken over."""
        return self._one(_RAISE_EPOCH, taken, run.id, run.epoch, run.owner)

    def take_in(self, run_id: str, events: Sequence[Event], *, epoch: int | None = None, batch: int = 0) -> int | None:
        """Archive what Postgres has lost of a running run, and what its rows have lost with it.

        Returns where the archive ends now: nothing was added where it did not end before the first of the events.
        None: the run is not running, or not under this epoch.

        :param events: consecutive ones, from the log that still has them.
        :param epoch: None: any.
        :param batch: the number of the last batch of an external run's writer that is in that log; 0: not known.
        """
        with self._database.session(atomic=True) as db:
            if db.execute_sql(_LOCK_ANY, (run_id, epoch)).fetchone() is None:
                return None
            (head,) = db.execute_sql(_HEAD, (run_id,)).fetchone()
            if head != events[0].seq - 1:
                return int(head)
            _insert_following(db, run_id, events)
            restore_rows(db, run_id, events)
            restore_writer(db, run_id, events, batch)
            return events[-1].seq

    @property
    def losses(self) -> int:
        """As `Database.losses`. Commits that are told it are made if no connection was lost since, and else refused."""
        return self._database.losses

    def _check(self, losses: int | None) -> None:
        if losses not in (None, self._database.losses):
            raise StoreUnavailable("The connection to Postgres was lost.")

    def owned(self, epochs: Mapping[str, int], owner: str | None = None) -> dict[str, bool]:
        """Which of these runs (id → epoch) are still running under that epoch → whether their cancel was requested.

        :param owner: whose they have to be; None: anybody's.
        """
        with self._database.session() as db:
            return _lock_owned(db, [(id, epoch, owner) for id, epoch in epochs.items()])

    def archive(self, checkpoints: Sequence[Checkpoint], losses: int | None = None) -> dict[str, bool | Behind]:
        """Commit the checkpoints of any number of runs in one transaction.

        A run that is no longer running under the checkpoint's epoch is left alone and missing from the answer;
        for the others the answer says whether their cancel was requested. Behind: the archive ends before the
        checkpoint's first event, because Postgres has lost some; nothing of the checkpoint was committed.
        """
        with self._database.session(atomic=True) as db:
            self._check(losses)
            return _archive(db, checkpoints)

    def would_archive(self, checkpoint: Checkpoint) -> bool:
        """Whether Postgres takes the checkpoint, which it does not keep; False: it refuses it for good.

        :raises StoreUnavailable: that cannot be found out now.
        """
        try:
            with self._database.session(atomic=True) as db:
                _archive(db, [checkpoint])
                db.rollback()
            return True
        except StoreUnavailable:
            raise
        except Exception:  # refused, or without a form in which it could be sent
            return False

    def finish(
        self,
        run_id: str,
        epoch: int,
        status: str,
        state: Mapping[str, Any],
        events: Sequence[Event],
        *,
        owner: str | None = None,
        losses: int | None = None,
    ) -> None:
        """Commit the end of a run: row, final state and every event not yet archived, the terminal one last.

        :raises Fenced: the run is not running under this epoch.
        :raises Behind: the archive ends before the first of the events.
        """
        told = (state["output"], state["error"], state["usage"])
        output, error, usage = (None if value is None else dumps_paced(value) for value in told)
        text = dumps_paced(state)
        if self._finished_at_once((run_id, epoch, owner), (status, output, error, usage, text), state, events, losses):
            return
        with self._database.session(atomic=True) as db:
            self._check(losses)
            later = output is not None and len(output) > LONG_CHARS  # one statement with both would be very long
            now = None if later else long_text(db, output)
            end = (status, now, error, usage, long_text(db, text), state["last_seq"], state["digest"])
            if db.execute_sql(_FINISH, (*end, run_id, epoch, owner)).rowcount == 0:
                raise Fenced(f"{run_id} is not running under epoch {epoch}.")
            if later:
                db.execute_sql(_SET_OUTPUT, (long_text(db, output), run_id))
            _insert_following(db, run_id, events)
            restore_rows(db, run_id, events)

    def _finished_at_once(
        self,
        owned: tuple[str, int, str | None],
        row: tuple[str, str | None, str | None, str | None, str],
        state: Mapping[str, Any],
        events: Sequence[Event],
        losses: int | None,
    ) -> bool:
        """In one round trip, if the end is short and Postgres as expected.

        False: nothing was done, or all of the events were archived before.

        :param row: status, output, error, usage and state.
        """
        size = sum(len(text) for text in (*row, *(event.text for event in events)) if text)
        if not events or size > LONG_CHARS or tells_of_rows(events):
            return False
        archived = recordset(event_row(owned[0], event) for event in events)
        with self._database.session() as db:
            self._check(losses)
            status, output, error, usage, text = row
            end = (status, long_text(db, output), error, usage, long_text(db, text), state["last_seq"], state["digest"])
            values = (*end, *owned, owned[0], events[0].seq - 1, archived)
            return db.execute_sql(_FINISH_AT_ONCE, values).fetchone() is not None

    def suspend(
        self,
        last: Checkpoint,
        approval_ids: Sequence[str],
        inputs_seen: int,
        wake_at: datetime | None,
        *,
        losses: int | None = None,
    ) -> bool:
        """Commit the last checkpoint of a run that is to wait, and let it wait; False: what it waits for is there.

        Then only the checkpoint is committed and the run stays the caller's.

        :param approval_ids: it waits for a decision on one of these.
        :param inputs_seen: it waits for the next input after so many.
        :param wake_at: it waits no longer than until then.
        :raises Fenced: the run is not running under the checkpoint's epoch.
        :raises Behind: the archive ends before the checkpoint's first event.
        """
        with self._database.session(atomic=True) as db:
            self._check(losses)
            if db.execute_sql(_LOCK, (last.run_id, last.epoch, last.owner)).fetchone() is None:
                raise Fenced(f"{last.run_id} is not running under epoch {last.epoch}.")
            _insert_following(db, last.run_id, last.events)
            insert_journal(db, [last])
            restore_rows(db, last.run_id, last.events)
            waited_for = (inputs_seen, list(approval_ids), last.run_id)
            (arrived,) = db.execute_sql(_HAS_ARRIVED, waited_for).fetchone()
            if not arrived:
                db.execute_sql(_SUSPEND, (wake_at, long_text(db, last.state), last.state_seq, last.run_id))
            return not arrived

    def set_version(self, run_id: str, epoch: int, version: str, generation: int, *, owner: str | None = None) -> None:
        """The run goes on under this version of its agent and this generation of its journal.

        :param owner: whose it has to be; None: anybody's.
        :raises Fenced: the run is not running under this epoch, or is another owner's.
        """
        with self._database.session() as db:
            if db.execute_sql(_SET_VERSION, (version, generation, run_id, epoch, owner)).fetchone() is None:
                raise Fenced(f"{run_id} is not running under epoch {epoch}.")

    def mark_published(self, run_id: str, head: int | None = None) -> bool:
        """Nothing of this finished run is left to append. False: there is no such run.

        Runs that are marked at the same time share a round trip.

        :param head: up to which it was appended; None: up to the end. Postgres may have lost that it had ended, and
            it another end since.
        """
        return self._published.ask((run_id, head))

    def mark_all_published(self, ended: Sequence[tuple[str, int | None]]) -> list[bool]:
        """As `mark_published`, of many runs in one round trip."""
        heads: dict[str, int | None] = {}
        for run_id, head in ended:
            heads[run_id] = min(filter(None, (head, heads.get(run_id))), default=None)
        run_ids = list(heads)
        with self._database.session() as db:
            values = (list(heads.values()), run_ids, run_ids)
            found = {run_id for (run_id,) in db.execute_sql(_MARK_PUBLISHED, values).fetchall()}
            if rest := [run_id for run_id in run_ids if run_id not in found]:
                found |= {id for (id,) in db.execute_sql("SELECT id FROM runs WHERE id = ANY (%s)", (rest,)).fetchall()}
        return [run_id in found for run_id, _ in ended]

    def release(
        self, run_id: str, epoch: int, reason: str | None, queue: str | None = None, *, owner: str | None = None
    ) -> RunRecord | None:
        """Hand an owned run back as pending, which costs no attempt. None: it is not the caller's any more.

        :param queue: where it goes from now on; None: where it came from.
        :param owner: whose it has to be; None: anybody's.
        """
        return self._one(_RELEASE, reason, queue, run_id, epoch, owner)

    # Commands.

    def request_cancel(self, run_id: str, reason: str = "requested") -> RunRecord | None:
        """Set the cancel flag of a run that has not ended. Returns the row as it is after that.

        A waiting run becomes pending with it: whoever cancels may die before it has ended the run.
        """
        return self._one(_REQUEST_CANCEL, reason, run_id) or self.get(run_id)

    def close_approvals(self, run_id: str, epoch: int, *, owner: str | None = None) -> dict[str, dict[str, str | None]]:
        """From here on nobody decides on the run, which is about to end: {decision, by, comment} by approval id.

        :param owner: whose it has to be; None: anybody's.
        :raises Fenced: the run is not running under this epoch, or is another owner's.
        """
        sql = "SELECT id, decision, decided_by, comment FROM approvals WHERE run_id = %s"
        with self._database.session(atomic=True) as db:
            if db.execute_sql(_LOCK, (run_id, epoch, owner)).fetchone() is None:
                raise Fenced(f"{run_id} is not running under epoch {epoch}.")
            db.execute_sql(_CLOSE_APPROVALS, (NOT_DECIDED["decision"], NOT_DECIDED["comment"], run_id))
            found = db.execute_sql(sql, (run_id,)).fetchall()
        return {id: {"decision": decision, "by": by, "comment": comment} for id, decision, by, comment in found}

    def owned_by(self, owner: str) -> list[OwnedRun]:
        """The running runs of this owner."""
        sql = """SELECT id, epoch, owner, queue, cancel_requested,
                        (SELECT count(*) FROM run_inputs i WHERE i.run_id = runs.id)
                 FROM runs WHERE owner = %s AND status = 'running'"""
        with self._database.session() as db:
            return [OwnedRun(*row) for row in db.execute_sql(sql, (owner,)).fetchall()]

    def erase(self, run_id: str) -> bool:
        """Delete every row of a finished run. False: it has not ended (or does not exist)."""
        with self._database.session(atomic=True) as db:
            sql = "SELECT FROM runs WHERE id = %s AND finished_at IS NOT NULL FOR UPDATE"
            if db.execute_sql(sql, (run_id,)).fetchone() is None:
                return False
            erase_runs(db, [run_id])
            return True

    # What the janitor looks at.

    def owner_beats(self) -> list[OwnerBeat]:
        """The owners of running runs, as their rows are. A run that is written from outside has none."""
        with self._database.session() as db:
            return losses.owner_beats(db)

    def release_lost(self, seen: OwnerBeat) -> list[RunRecord]:
        """Put back as pending every run of an owner whose row is still as it was seen. See `losses` for who is charged.

        Only one caller who saw it like that does; the others have seen nothing yet of the row as it is now.
        """
        with self._database.session(atomic=True) as db:
            return losses.release_lost(db, seen)

    def release_culprit(self, owner: str, run_id: str, epoch: int) -> RunRecord | None:
        """Put back a run whose own process has ended, and charge it. None: it is not that owner's under that epoch."""
        with self._database.session(atomic=True) as db:
            released = losses.release_culprit(db, owner, run_id, epoch)
            return released[0] if released else None

    def unserved(self, queue: str) -> bool:
        """Whether runs wait in the queue of isolated ones while no worker for them is there."""
        with self._database.session() as db:
            return losses.unserved(db, queue)

    def take_forgotten(self, seconds: float, limit: int) -> list[RunRecord]:
        """Pending runs last enqueued longer ago than `seconds`, oldest first; each is handed to one caller."""
        sql = f"""UPDATE runs SET enqueued_at = now() WHERE id IN (
                     SELECT id FROM runs WHERE status = 'pending' AND enqueued_at < now() - make_interval(secs => %s)
                     ORDER BY enqueued_at LIMIT %s FOR UPDATE SKIP LOCKED
                 ) RETURNING {RUN_COLUMNS}"""
        return self._many(sql, seconds, limit)

    def waiting(self, after: str, limit: int) -> list[tuple[str, int]]:
        """The next waiting runs after that id, at most `limit`, each with the seq of its last event."""
        sql = "SELECT id, state_seq FROM runs WHERE status = 'waiting' AND id > %s ORDER BY id LIMIT %s"
        with self._database.session() as db:
            return [(run_id, seq) for run_id, seq in db.execute_sql(sql, (after, limit)).fetchall()]

    def cancelled_on_disconnect(self) -> list[str]:
        """Ids of the runs that are to be cancelled once nobody follows them, and that nobody has cancelled yet."""
        sql = """SELECT id FROM runs
                 WHERE on_disconnect = 'cancel' AND finished_at IS NULL AND NOT cancel_requested"""
        with self._database.session() as db:
            return [run_id for (run_id,) in db.execute_sql(sql).fetchall()]

    def doubt_published(self, seconds: float) -> None:
        """Runs that finished within so many seconds may have lost their end in Redis: see about them again."""
        sql = "UPDATE runs SET published = false WHERE published AND finished_at > now() - make_interval(secs => %s)"
        self._write(sql, seconds)

    def unpublished(self, limit: int, seconds: float) -> list[EndedRun]:
        """Finished runs whose terminal event is not known to be in Redis, in no order: none may block the others.

        :param seconds: longer ago, and an end is overdue.
        """
        sql = """SELECT id, epoch, state_seq, finished_at < now() - make_interval(secs => %s) FROM runs
                 WHERE finished_at < now() - interval '2 seconds' AND NOT published ORDER BY random() LIMIT %s"""
        with self._database.session() as db:
            return [EndedRun(*row) for row in db.execute_sql(sql, (seconds, limit)).fetchall()]

    def _one(self, sql: str, *values: Any) -> RunRecord | None:
        found = self._many(sql, *values)
        return found[0] if found else None

    def _many(self, sql: str, *values: Any) -> list[RunRecord]:
        with self._database.session() as db:
            found = [RunRecord(*row) for row in db.execute_sql(sql, values).fetchall()]
        give_way()  # to read them, too, may have taken long
        return found

    def _write(self, sql: str, *values: Any) -> None:
        with self._database.session() as db:
            db.execute_sql(sql, values)


def _archive(db: Any, checkpoints: Sequence[Checkpoint]) -> dict[str, bool | Behind]:
    owned: dict[str, bool | Behind] = {**_lock_owned(db, [(c.run_id, c.epoch, c.owner) for c in checkpoints])}
    mine = [c for c in checkpoints if c.run_id in owned]
    behind = insert_events(db, [(c.run_id, event) for c in mine for event in c.events])
    owned |= {run_id: Behind(head) for run_id, head in behind.items()}
    mine = [c for c in mine if c.run_id not in behind]
    insert_journal(db, mine)
    for checkpoint in mine:
        restore_rows(db, checkpoint.run_id, checkpoint.events)
    _update_states(db, [c for c in mine if c.state is not None])
    return owned


def _update_states(db: Any, due: Sequence[Checkpoint]) -> None:
    small = [(c.run_id, c.state, c.state_seq) for c in due if c.state and len(c.state) <= LONG_CHARS]
    if small:
        db.execute_sql(_UPDATE_STATES, columns(small))
    for checkpoint in due:
        if checkpoint.state and len(checkpoint.state) > LONG_CHARS:
            values = (long_text(db, checkpoint.state), checkpoint.state_seq, checkpoint.run_id)
            db.execute_sql(_UPDATE_STATE, values)


def _lock_owned(db: Any, claims: Sequence[tuple[str, int, str | None]]) -> dict[str, bool]:
    """:param claims: id, epoch and owner of each run; None: whoever has it."""
    return dict(db.execute_sql(_LOCK_OWNED, columns(claims) or [[], [], []]).fetchall())


def insert_events(db: Any, events: Iterable[tuple[str, Event]]) -> dict[str, int]:
    """Within a transaction that has locked the runs: archive the events, each with its run's id.

    Returns the runs whose archive ends before the first of their events, and where: nothing was archived of these.
    """
    behind: dict[str, int] = {}
    rows = (event_row(run_id, event) for run_id, event in events)
    for chunk in in_chunks(rows, weigh=len, most=INSERTED_CHARS):
        behind |= db.execute_sql(INSERT_EVENTS, (recordset(chunk),)).fetchall()
    return behind


def _insert_following(db: Any, run_id: str, events: Iterable[Event]) -> None:
    """As `insert_events`, of one run.

    :raises Behind: its archive ends before the first of them.
    """
    behind = insert_events(db, [(run_id, event) for event in events])
    if behind:
        raise Behind(behind[run_id])
