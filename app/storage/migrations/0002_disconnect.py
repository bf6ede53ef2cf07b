"""Why a run was cancelled, and which runs are cancelled once nobody follows them."""

from typing import Any

UP = "ALTER TABLE runs ADD COLUMN cancel_reason text"
INDEXES = {"runs_cancelled_on_disconnect": "runs (id) WHERE on_disconnect = 'cancel' AND finished_at IS NULL"}


def up(migrator: object, db: Any) -> None:
    db.execute_sql(UP)


def down(migrator: object, db: Any) -> None:
    db.execute_sql("DROP INDEX IF EXISTS runs_cancelled_on_disconnect")
    db.execute_sql("ALTER TABLE runs DROP COLUMN cancel_reason")
