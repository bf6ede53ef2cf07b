"""Runs that somebody else's process writes: who may, and how far it has come.

Every append updates a row of `writers`: half of each page is left free for that.
"""

from typing import Any

UP = """
CREATE TABLE writers (
    run_id text COLLATE "C" NOT NULL,
    epoch integer NOT NULL,
    token_hash text,
    watch_token_hashes text[] NOT NULL,
    producer_seq integer NOT NULL DEFAULT 0,
    head integer NOT NULL,
    inputs_told integer NOT NULL DEFAULT 0,
    ending json,
    beats bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (run_id, epoch)
) WITH (fillfactor = 50);
ALTER TABLE approvals ADD COLUMN told boolean NOT NULL DEFAULT false;
ALTER TABLE api_keys ADD COLUMN writer boolean NOT NULL DEFAULT false;
"""

INDEXES = {"runs_external": "runs (id) WHERE queue = 'external' AND status = 'running'"}


def up(migrator: object, db: Any) -> None:
    db.execute_sql(UP)


def down(migrator: object, db: Any) -> None:
    db.execute_sql("ALTER TABLE api_keys DROP COLUMN writer")
    db.execute_sql("ALTER TABLE approvals DROP COLUMN told")
    db.execute_sql("DROP INDEX IF EXISTS runs_external")
    db.execute_sql("DROP TABLE writers")
