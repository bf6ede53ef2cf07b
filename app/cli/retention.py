"""The command `runtail retention`: erases what is due, and says how much. Workers do so by themselves."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple

from app.errors import ConfigError
from app.storage.run_store import Leftovers, Tally
from app.wiring import Services

HEADINGS = ("", "runs", "events", "ops", "approvals", "inputs", "bytes of events")


def purge(services: Services, days: int | None, *, dry_run: bool) -> Iterator[str]:
    """Remove what is older than it is to be kept, or with `dry_run` nothing. Yields lines that say what.

    :param days: that a run is kept after its end; None: by the settings.
    :raises ConfigError: by the settings runs are kept for ever.
    :raises StoreUnavailable: Postgres or Redis cannot be reached; what is removed by then is removed.
    """
    days = days or services.config.run_retention_days
    if not days:
        raise ConfigError("RUN_RETENTION_DAYS is 0: runs are kept for ever. Say after how many days to remove them.")
    erasure = services.erasure
    if dry_run:
        yield f"Runs that ended more than {days:,} days ago:"
        yield from _table(erasure.retention.tally(days))
        yield _leftovers(erasure.retention.leftovers())
        return
    erased = sum(iter(lambda: erasure.erase_old(days), 0))
    yield f"Runs that ended more than {days:,} days ago: {erased:,} removed."
    yield _leftovers(erasure.retention.remove_leftovers())


def _table(tallies: Sequence[Tally]) -> Iterator[str]:
    """By the status they ended in, and in all."""
    totals = Tally("total", *(sum(numbers) for numbers in _columns(tallies)))
    cells = [HEADINGS, *((t.status, *(f"{number:,}" for number in astuple(t)[1:])) for t in [*tallies, totals])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for status, *numbers in cells:
        aligned = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        yield "  ".join([status.ljust(widths[0]), *aligned])


def _columns(tallies: Sequence[Tally]) -> list[list[int]]:
    return [[astuple(tally)[n] for tally in tallies] for n in range(1, len(HEADINGS))]


def _leftovers(found: Leftovers) -> str:
    return f"Workers that are gone: {found.workers:,}. Cancels whose run did not come: {found.early_cancels:,}."
