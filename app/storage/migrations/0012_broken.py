"""What a worker could not load: {entry point: sentence}. Demonstration agents are no longer everywhere."""

from typing import Any


def up(migrator: object, db: Any) -> None:
    db.execute_sql("ALTER TABLE workers ADD COLUMN broken json")
    # Workers that have them register them again.
    db.execute_sql("DELETE FROM agents WHERE name IN ('emit', 'support')")


def down(migrator: object, db: Any) -> None:
    db.execute_sql("ALTER TABLE workers DROP COLUMN broken")
