"""The runs that wait, to be looked through where Postgres may have lost that they went on."""

INDEXES = {"runs_waiting": "runs (id) WHERE status = 'waiting'"}


def up(migrator: object, db: object) -> None:
    """Only an index, which is built concurrently."""


def down(migrator: object, db: object) -> None:
    """An index that nobody reads does no harm."""
