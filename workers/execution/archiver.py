"""Commits what runs have recorded: all in one transaction, and where that fails, all but the runs that are to blame.

Postgres refuses a run's records for good, which ends that run, or it fails at them for a while: then they are committed
apart from those of the others. Not responsible for when something is due (`workers.execution.flusher`).
"""

import logging
import random
from collections.abc import Callable, Iterable, Sequence

from app.errors import Behind, StoreUnavailable
from app.storage.run_store import Checkpoint, RunStore
from workers.execution.blame import refused_call, sentence
from workers.execution.interrupts import Unstorable
from workers.execution.outbox import Outbox

_Due = tuple[Outbox, Checkpoint]

log = logging.getLogger(__name__)


class Archiver:
    """For the runs of one process. One greenlet uses it."""

    def __init__(self, store: RunStore, archived: Callable[[Outbox, Checkpoint, bool | Behind | None], None]) -> None:
        """:param archived: told what the store answered of each checkpoint; None: the run is not ours."""
        self._store = store
        self._archived = archived
        self._failing: dict[Outbox, None] = {}
        """Postgres fails at these, and not at others. The first is the next to be tried."""

    def archive(self, outboxes: Iterable[Outbox]) -> None:
        """Commit what these have recorded, but for those that Postgres fails at.

        :raises StoreUnavailable: Postgres cannot take anything at the moment.
        """
        due = self._checkpoints(outbox for outbox in outboxes if outbox not in self._failing)
        error = self._commit(due)
        if error is None:
            return
        if len(due) == 1:
            return self._blame(*due[0], error)
        random.shuffle(due)  # two runs that are to blame are in the same half sooner or later
        halves = _halves(due)
        errors = [self._commit(half) for half in halves]
        outages = [found for found in errors if isinstance(found, StoreUnavailable)]
        if len(outages) == len(halves):
            raise outages[0]
        for half, found in zip(halves, errors, strict=True):
            if found is not None:
                self._search(half, found)

    def try_again(self) -> None:
        """Commit the records that Postgres fails at, until it fails again: the next time it is another run's turn."""
        for outbox in list(self._failing):
            del self._failing[outbox]
            if outbox.unarchived:
                self.archive([outbox])
            if outbox in self._failing:
                return

    def forget(self, outbox: Outbox) -> None:
        """It is closed."""
        self._failing.pop(outbox, None)

    def _checkpoints(self, outboxes: Iterable[Outbox]) -> list[_Due]:
        due = []
        for outbox in outboxes:
            try:
                due.append((outbox, outbox.checkpoint()))
            except Exception as error:  # its state is none that could be stored
                self._end(outbox, "The run's state", error)
        return due

    def _commit(self, due: Sequence[_Due]) -> Exception | None:
        """Commit these in one transaction; why Postgres did not, although it could be reached.

        :raises StoreUnavailable: it could not.
        """
        if not due:
            return None
        try:
            seen = [losses for outbox, _ in due if (losses := outbox.writer.seen_losses) is not None]
            owned = self._store.archive([checkpoint for _, checkpoint in due], min(seen, default=None))
        except StoreUnavailable as error:
            if error.answered:
                return error
            raise
        except Exception as error:
            return error
        for outbox, checkpoint in due:
            self._archived(outbox, checkpoint, owned.get(checkpoint.run_id))
        return None

    def _search(self, due: Sequence[_Due], error: Exception) -> None:
        """Commit all of these but the ones that are to blame for the error."""
        if len(due) == 1:
            return self._blame(*due[0], error)
        for half in _halves(due):
            found = self._commit(half)
            if found is not None:
                self._search(half, found)

    def _blame(self, outbox: Outbox, checkpoint: Checkpoint, error: Exception) -> None:
        if isinstance(error, StoreUnavailable):
            log.warning("%s is archived later. %s", outbox.writer.run_id, error.detail)
            self._failing[outbox] = None
        else:
            self._end(outbox, refused_call(self._store, checkpoint), error)

    def _end(self, outbox: Outbox, call: str, error: Exception) -> None:
        """What the run has recorded will never be archived: it ends here, and nothing of it is done again."""
        log.error("%s: %s cannot be archived.", outbox.writer.run_id, call, exc_info=error)
        outbox.unstorable = True
        outbox.interrupt(Unstorable(sentence(call, error)))


def _halves(due: Sequence[_Due]) -> tuple[Sequence[_Due], Sequence[_Due]]:
    middle = len(due) // 2
    return due[:middle], due[middle:]
