"""What a worker could not load: {entry point: sentence}."""

from typing import Any


def up(migrator: object, db: Any) -> None:
    db.execute_sql("ALTER TABLE workers ADD COLUMN broken json")


def down(migrator: object, db: Any) -> None:
    db.execute_sql("ALTER TABLE workers DROP COLUMN broken")
