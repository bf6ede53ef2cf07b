"""When a key stops to open doors by itself."""

from typing import Any


def up(migrator: object, db: Any) -> None:
    db.execute_sql("ALTER TABLE api_keys ADD COLUMN expires_at timestamptz")


def down(migrator: object, db: Any) -> None:
    db.execute_sql("ALTER TABLE api_keys DROP COLUMN expires_at")
