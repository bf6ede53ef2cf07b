"""What a run keeps of its writers' events, and when a run was taken over to end it."""

from typing import Any

UP = """
ALTER TABLE writers ADD COLUMN kept json;
ALTER TABLE writers ADD COLUMN taken_at timestamptz NOT NULL DEFAULT now();
"""


def up(migrator: object, db: Any) -> None:
    db.execute_sql(UP)


def down(migrator: object, db: Any) -> None:
    db.execute_sql("ALTER TABLE writers DROP COLUMN taken_at")
    db.execute_sql("ALTER TABLE writers DROP COLUMN kept")
