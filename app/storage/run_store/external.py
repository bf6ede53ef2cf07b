"""External runs and their writers: who may write one, and how one writer follows another.

A run has a row in `writers` for each of its epochs: a writer's, with the hashes of its tokens, or that of an ending
which is being carried out, without. Whoever has written the latest one has the run. What writers bring is
`run_store.batches`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import ProducerGap, RunEnded, RunNotFound, StaleEpoch, StoreUnavailable
from app.protocol.events import Event, Outbound, dumps, encode
from app.storage.coalescing import Coalescer
from app.storage.run_store.creation import Creation, insert_runs
from app.storage.run_store.database import Database, columns
from app.storage.run_store.records import RUN_COLUMNS, NewRun, Principal, RunRecord
from app.storage.run_store.runs import insert_events

EXTERNAL = "external"
"""The queue of these runs, which no worker serves, and their agent."""
WATCHERS_PER_QUERY = 100
WATCH_TOKENS_MAX = 10
"""Of one writer; a question that is repeated for ever must not make its row longer for ever."""
ENDING_SECONDS = 5.0
"""A run that was taken over to end it and has not ended for so long is given up. Doubled at each try,"""
ENDING_MAX_SECONDS = 600.0
"""up to this. What ends the process that tries does so ever more rarely, and what takes long gets the time."""
FREE_TRIES = 3
"""So often who asks for the end takes the run over at once."""
UNCLAIMED = -1
"""In place of the signs of life of a writer that is yet to come: there is no token yet."""

_BEGIN = f"""
UPDATE runs SET status = 'running', epoch = 1, started_at = now() WHERE id = %s RETURNING {RUN_COLUMNS}
"""
_INSERT_WRITER = """
INSERT INTO writers (run_id, epoch, token_hash, watch_token_hashes, head, inputs_told, ending, beats, lease_seconds,
                     kept)
VALUES (%s, %s, %s, %s::text[], %s, %s, %s, %s, %s, %s)
"""
_COME = f"""
UPDATE writers SET token_hash = %s, beats = 0, lease_seconds = %s
WHERE run_id = %s AND epoch = %s AND beats = {UNCLAIMED}
"""
# The last WATCH_TOKENS_MAX of them stay good.
_WATCH_TOO = f"""
UPDATE writers SET watch_token_hashes =
    (array_append(watch_token_hashes, %s))[greatest(1, cardinality(watch_token_hashes) + 2 - {WATCH_TOKENS_MAX}):]
WHERE run_id = %s AND epoch = %s
"""
_LOCK = "SELECT epoch, finished_at IS NOT NULL FROM runs WHERE id = %s AND queue = 'external' FOR NO KEY UPDATE"
# A statement of its own: one that had to wait for the lock would see this table as it was before it waited.
_LATEST = """
SELECT producer_seq, head, inputs_told, ending, beats,
       (SELECT max(epoch) FROM writers WHERE run_id = w.run_id AND token_hash IS NOT NULL), kept,
       (SELECT count(*) FROM writers WHERE run_id = w.run_id AND ending IS NOT NULL),
       extract(epoch FROM now() - taken_at)
FROM writers w WHERE run_id = %s AND epoch = %s
"""
_ADVANCE = f"""
UPDATE runs SET epoch = epoch + 1, attempt = attempt + %s WHERE id = %s AND status = 'running' RETURNING {RUN_COLUMNS}
"""
_WATCHERS = """
SELECT run_id, hash, tenant_id, user_id FROM unnest(%s::text[], %s::text[]) AS asked (run_id, hash)
JOIN runs ON runs.id = run_id
WHERE EXISTS (SELECT FROM writers w WHERE w.run_id = asked.run_id AND hash = ANY (watch_token_hashes))
"""
_BEATS = """
SELECT r.id, r.epoch, w.beats, w.ending IS NOT NULL, r.cancel_requested, extract(epoch FROM now() - r.created_at),
       w.lease_seconds,
       (SELECT count(*) FROM writers WHERE run_id = r.id AND ending IS NOT NULL)
FROM runs r JOIN writers w ON w.run_id = r.id AND w.epoch = r.epoch
WHERE r.queue = 'external' AND r.status = 'running'
"""

Wanted = dict[str, Any]
"""How a run is to end: `status`, and `output` or `error`, as its writer has asked for it."""


@dataclass(frozen=True, slots=True)
class Hashes:
    """Of the tokens of one writer. `writer` None: it is yet to come."""

    writer: str | None
    watch: str
    lease_seconds: int | None = None
    """The lease of the writer; None: the server's own."""


@dataclass(frozen=True, slots=True)
class WriterBeat:
    """A running external run as it was seen: who has it, and the counter that shows that they are there."""

    run_id: str
    epoch: int
    beats: int
    ending: bool
    """It is being ended."""
    cancel_requested: bool
    age_seconds: float
    """Since it was started."""
    lease_seconds: int | None = None
    """What its writer has asked for; None: the server's own."""
    tries: int = 0
    """How often it was taken over to end it."""

    @classmethod
    def unclaimed(cls, run: RunRecord) -> "WriterBeat":
        """A run that no writer has claimed yet, and whose cancel was requested."""
        return cls(run.id, run.epoch, UNCLAIMED, ending=False, cancel_requested=True, age_seconds=0.0)

    @property
    def claimed(self) -> bool:
        """It has, or had, a writer."""
        return self.beats != UNCLAIMED


@dataclass(frozen=True, slots=True)
class _Latest:
    """The latest row of a run's writers."""

    producer_seq: int
    head: int
    inputs_told: int
    ending: Wanted | None
    beats: int
    last_writer: int
    """The epoch of the last writer that had a token."""
    kept: dict[str, int] | None
    """What the run keeps of its writers' events: see `run_store.batches`."""
    tries: int
    """How often the run was taken over to end it."""
    taken_seconds: float
    """Since this row was written."""


class ExternalStore:
    """Every method may raise StoreUnavailable; one call, one transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watchers = Coalescer(self._find_watchers, WATCHERS_PER_QUERY)

    def create(self, new: NewRun, events: Sequence[Event], hashes: Hashes) -> RunRecord | None:
        """Commit a run that is running, with its first events and its writer; None, as by `RunStore.create`."""
        with self._database.session(atomic=True) as db:
            if insert_runs(db, [Creation.of(new, events)]) == [None]:
                return None
            _insert_writer(db, new.id, 1, len(events), 0, hashes=hashes)
            return RunRecord(*db.execute_sql(_BEGIN, (new.id,)).fetchone())

    def claim(self, run: RunRecord, hashes: Hashes, step: Outbound) -> RunRecord | None:
        """Fence off the writer that the run has, for the next one, and commit the event that says so.

        One that has had none yet is given its first, which is no event.

        None: it is being ended, has ended, or has another writer by now.

        :param step: the payload of that event, of the attempt after the run's.
        """
        with self._database.session(atomic=True) as db:
            latest = _lock(db, run.id, run.epoch)
            if latest is None or latest.ending is not None:
                return None
            if latest.beats == UNCLAIMED:
                db.execute_sql(_COME, (hashes.writer, hashes.lease_seconds, run.id, run.epoch))
                _watch_too(db, run, hashes)
                return run
            claimed = RunRecord(*db.execute_sql(_ADVANCE, (1, run.id)).fetchone())
            event = encode(run.id, latest.head + 1, "run.step", step)
            if insert_events(db, [(run.id, event)]):
                raise StoreUnavailable(f"Postgres has lost events of {run.id}.")
            _insert_writer(db, run.id, claimed.epoch, event.seq, latest.inputs_told, hashes=hashes, kept=latest.kept)
            return claimed

    def watch_too(self, run: RunRecord, hashes: Hashes) -> bool:
        """Give the run another watch token; its writer stays who it is. False: it has ended, or another writer."""
        with self._database.session(atomic=True) as db:
            return _lock(db, run.id, run.epoch) is not None and _watch_too(db, run, hashes)

    def watch_ended(self, run: RunRecord, hashes: Hashes) -> bool:
        """Give a run that has ended another watch token. False: it was erased."""
        with self._database.session() as db:
            return _watch_too(db, run, hashes)

    # Who a token belongs to.

    def epoch_of(self, run_id: str, token_hash: str) -> int | None:
        """The epoch of the writer with this token, over or not; None: the run has had none."""
        sql = "SELECT epoch FROM writers WHERE run_id = %s AND token_hash = %s"
        with self._database.session() as db:
            found = db.execute_sql(sql, (run_id, token_hash)).fetchone()
        return int(found[0]) if found else None

    def watcher(self, run_id: str, watch_token_hash: str) -> Principal | None:
        """The user whose run it is, for who has a token to watch it. Those who ask at the same time share a query."""
        return self._watchers.ask((run_id, watch_token_hash))

    def _find_watchers(self, asked: Sequence[tuple[str, str]]) -> list[Principal | None]:
        with self._database.session() as db:
            found = db.execute_sql(_WATCHERS, columns(asked)).fetchall()
        owners = {(run_id, hash): Principal(tenant, user) for run_id, hash, tenant, user in found}
        return [owners.get(one) for one in asked]

    # Ends.

    def begin_end(self, run_id: str, epoch: int, producer_seq: int, wanted: Wanted) -> RunRecord:
        """Take the run from its writer, to end it as that one wants; from here on it can only end like that.

        The same again gives the run as it ended, or takes it from whoever has not brought it to its end.

        :param epoch: of the writer's token.
        :raises RunNotFound: the run was erased.
        :raises RunEnded: it has ended, or will, in another way.
        :raises StaleEpoch: another writer has it.
        :raises ProducerGap: batches are missing, or this number was a batch's.
        :raises StoreUnavailable: it is about to end; its end has failed too often to be tried again at once.
        """
        with self._database.session(atomic=True) as db:
            row = db.execute_sql(_LOCK, (run_id,)).fetchone()
            if row is None:
                raise RunNotFound(f"There is no run {run_id!r}.")
            current, ended = row
            latest = _latest(db, run_id, current)
            if epoch != latest.last_writer:
                raise StaleEpoch(f"{run_id} was given to another writer.")
            if latest.ending not in (None, wanted):
                raise RunEnded(f"{run_id} is to end, or has ended, in another way.")
            if ended:
                return RunRecord(*db.execute_sql(f"SELECT {RUN_COLUMNS} FROM runs WHERE id = %s", (run_id,)).fetchone())
            if latest.ending is None and producer_seq != latest.producer_seq + 1:
                raise ProducerGap(latest.producer_seq + 1)
            _check_turn(run_id, latest)
            return _take_over(db, run_id, latest, wanted)

    def take_lost(self, beat: WriterBeat, wanted: Wanted, *, ignore_heartbeat: bool) -> tuple[RunRecord, Wanted] | None:
        """Take over, to end it, a run that was not given on since; and how it is to end, if that was not decided yet.

        None: somebody was faster.

        :param ignore_heartbeat: whether it has shown a sign of life since does not count.
        """
        with self._database.session(atomic=True) as db:
            latest = _lock(db, beat.run_id, beat.epoch)
            if latest is None or (latest.beats != beat.beats and not ignore_heartbeat):
                return None
            wanted = latest.ending or wanted
            return _take_over(db, beat.run_id, latest, wanted), wanted

    def ending(self, run: RunRecord) -> Wanted | None:
        """How the run, as it is in this epoch, is to end; None: its writer has it."""
        with self._database.session() as db:
            sql = "SELECT ending FROM writers WHERE run_id = %s AND epoch = %s"
            found = db.execute_sql(sql, (run.id, run.epoch)).fetchone()
        return found[0] if found else None

    def take_again(self, run: RunRecord) -> tuple[RunRecord, Wanted] | None:
        """Take over a run that is being ended from whoever is at it. None: it has ended, or somebody was faster.

        :raises StoreUnavailable: its end has failed too often to be tried again at once.
        """
        with self._database.session(atomic=True) as db:
            latest = _lock(db, run.id, run.epoch)
            if latest is None or latest.ending is None:
                return None
            _check_turn(run.id, latest)
            return _take_over(db, run.id, latest, latest.ending), latest.ending

    def beats(self) -> list[WriterBeat]:
        """Every external run that has not ended."""
        with self._database.session() as db:
            return [WriterBeat(*row) for row in db.execute_sql(_BEATS).fetchall()]


def _lock(db: Any, run_id: str, epoch: int) -> _Latest | None:
    """Lock the run; None: it is not running under this epoch."""
    row = db.execute_sql(_LOCK, (run_id,)).fetchone()
    return _latest(db, run_id, epoch) if row == (epoch, False) else None


def _watch_too(db: Any, run: RunRecord, hashes: Hashes) -> bool:
    return bool(db.execute_sql(_WATCH_TOO, (hashes.watch, run.id, run.epoch)).rowcount)


def _latest(db: Any, run_id: str, epoch: int) -> _Latest:
    return _Latest(*db.execute_sql(_LATEST, (run_id, epoch)).fetchone())


def ending_seconds(tries: int, first: float = ENDING_SECONDS) -> float:
    """How long whoever has taken a run over to end it is left alone, at the so-manieth try."""
    return float(min(first * 2 ** (max(tries, 1) - 1), ENDING_MAX_SECONDS))


def _check_turn(run_id: str, latest: _Latest) -> None:
    """That the run may be taken over now by who asks for its end.

    :raises StoreUnavailable: it was tried too often, the last time too short a while ago.
    """
    if latest.tries >= FREE_TRIES and latest.taken_seconds < ending_seconds(latest.tries):
        raise StoreUnavailable(f"{run_id} is about to end.")


def _take_over(db: Any, run_id: str, latest: _Latest, wanted: Wanted) -> RunRecord:
    taken = RunRecord(*db.execute_sql(_ADVANCE, (0, run_id)).fetchone())
    _insert_writer(db, run_id, taken.epoch, latest.head, latest.inputs_told, ending=wanted)
    return taken


def _insert_writer(
    db: Any,
    run_id: str,
    epoch: int,
    head: int,
    inputs_told: int,
    *,
    hashes: Hashes | None = None,
    ending: Mapping[str, Any] | None = None,
    kept: Mapping[str, int] | None = None,
) -> None:
    token, watchers = (hashes.writer, [hashes.watch]) if hashes else (None, [])
    beats = UNCLAIMED if hashes and token is None else 0
    stored = dumps(ending) if ending is not None else None
    lease = hashes.lease_seconds if hashes else None
    values = (run_id, epoch, token, watchers, head, inputs_told, stored, beats, lease, dumps(kept) if kept else None)
    db.execute_sql(_INSERT_WRITER, values)
