"""Runs, their events, and who executes and calls them.

`json`, not `jsonb`: what was written is read back to the letter (a float stays a float), and nothing queries inside.
`run_events.run_id` has no foreign key: rows are only inserted under a lock on their run, and the table is to be
partitioned by month.
"""

from typing import Any

UP = """
CREATE TABLE runs (
    id text COLLATE "C" PRIMARY KEY,
    tenant_id text NOT NULL,
    user_id text NOT NULL,
    session_id text NOT NULL,
    parent_run_id text,
    agent text NOT NULL,
    input json NOT NULL,
    metadata json NOT NULL,
    on_disconnect text NOT NULL,
    timeout_s integer,
    idempotency_key text,
    request_hash text,
    status text NOT NULL
        CHECK (status IN ('pending', 'running', 'waiting', 'completed', 'failed', 'cancelled')),
    epoch integer NOT NULL DEFAULT 0,
    attempt integer NOT NULL DEFAULT 1,
    requeue_reason text,
    owner text,
    cancel_requested boolean NOT NULL DEFAULT false,
    output json,
    error json,
    usage json,
    state json NOT NULL,
    state_seq integer NOT NULL,
    digest text,
    published boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz
);
CREATE UNIQUE INDEX runs_idempotency ON runs (tenant_id, user_id, idempotency_key);
CREATE INDEX runs_history ON runs (tenant_id, user_id, id DESC);
CREATE INDEX runs_pending ON runs (enqueued_at) WHERE status = 'pending';
CREATE INDEX runs_running ON runs (owner) WHERE status = 'running';
CREATE INDEX runs_finished ON runs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX runs_unpublished ON runs (finished_at) WHERE finished_at IS NOT NULL AND NOT published;

CREATE TABLE run_events (
    run_id text COLLATE "C" NOT NULL,
    seq integer NOT NULL,
    type text NOT NULL,
    ts timestamptz NOT NULL,
    op text NOT NULL,
    e text NOT NULL,
    PRIMARY KEY (run_id, seq)
);

CREATE TABLE agents (
    name text PRIMARY KEY,
    input_schema json NOT NULL,
    isolation text NOT NULL,
    version text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE workers (
    id text PRIMARY KEY,
    beats bigint NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT now(),
    seen_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
    id text PRIMARY KEY,
    key_hash text NOT NULL UNIQUE,
    tenant_id text NOT NULL,
    user_id text NOT NULL,
    admin boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now()
);
"""


def up(migrator: object, db: Any) -> None:
    db.execute_sql(UP)


def down(migrator: object, db: Any) -> None:
    db.execute_sql("DROP TABLE api_keys, workers, agents, run_events, runs")
