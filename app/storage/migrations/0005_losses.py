"""Which workers were called lost, who ended them, and what their runs have lost without being charged for it."""

from typing import Any

UP = """
ALTER TABLE workers ADD COLUMN isolated boolean NOT NULL DEFAULT false;
ALTER TABLE workers ADD COLUMN losses integer NOT NULL DEFAULT 0;
ALTER TABLE workers ADD COLUMN culprit text;
ALTER TABLE runs ADD COLUMN losses integer NOT NULL DEFAULT 0;
"""


def up(migrator: object, db: Any) -> None:
    db.execute_sql(UP)


def down(migrator: object, db: Any) -> None:
    db.execute_sql("ALTER TABLE runs DROP COLUMN losses")
    for column in ("isolated", "losses", "culprit"):
        db.execute_sql(f"ALTER TABLE workers DROP COLUMN {column}")
