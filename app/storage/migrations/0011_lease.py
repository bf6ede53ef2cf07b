"""Leases that writers of external runs ask for, and when a worker last looked after such runs."""

from typing import Any

UP = """
ALTER TABLE writers ADD COLUMN lease_seconds integer;
ALTER TABLE workers ADD COLUMN janitor_at timestamptz;
"""


def up(migrator: object, db: Any) -> None:
    db.execute_sql(UP)


def down(migrator: object, db: Any) -> None:
    db.execute_sql("ALTER TABLE workers DROP COLUMN janitor_at")
    db.execute_sql("ALTER TABLE writers DROP COLUMN lease_seconds")
