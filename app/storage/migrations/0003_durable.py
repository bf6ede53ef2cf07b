"""The journal, approvals, inputs, and what a run needs to wait for them."""

from typing import Any

UP = """
ALTER TABLE runs ADD COLUMN queue text NOT NULL DEFAULT 'runs';
ALTER TABLE runs ADD COLUMN client_run_id text;
ALTER TABLE runs ADD COLUMN agent_version text;
ALTER TABLE runs ADD COLUMN generation integer NOT NULL DEFAULT 1;
ALTER TABLE runs ADD COLUMN crashed_epoch integer NOT NULL DEFAULT 0;
ALTER TABLE runs ADD COLUMN wake_at timestamptz;

CREATE TABLE run_ops (
    run_id text COLLATE "C" NOT NULL,
    op text COLLATE "C" NOT NULL,
    epoch integer NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    arguments json NOT NULL,
    fingerprint text NOT NULL,
    failed boolean NOT NULL,
    result json NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, op)
);

CREATE TABLE approvals (
    run_id text COLLATE "C" NOT NULL,
    id text NOT NULL,
    tenant_id text NOT NULL,
    user_id text NOT NULL,
    agent text NOT NULL,
    tool_call_id text,
    label text NOT NULL,
    requires text NOT NULL CHECK (requires IN ('owner', 'operator')),
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    decision text CHECK (decision IN ('approved', 'denied', 'expired')),
    decided_by text,
    comment text,
    decided_at timestamptz,
    PRIMARY KEY (run_id, id)
);
CREATE INDEX approvals_of_tenant ON approvals (tenant_id, created_at DESC);
CREATE INDEX approvals_of_user ON approvals (tenant_id, user_id, created_at DESC);
CREATE INDEX approvals_open ON approvals (tenant_id, created_at DESC) WHERE decision IS NULL;
CREATE INDEX approvals_expiring ON approvals (expires_at) WHERE decision IS NULL AND expires_at IS NOT NULL;

CREATE TABLE run_inputs (
    run_id text COLLATE "C" NOT NULL,
    n integer NOT NULL,
    text text NOT NULL,
    idempotency_key text,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, n)
);
CREATE UNIQUE INDEX run_inputs_idempotency ON run_inputs (run_id, idempotency_key);

CREATE TABLE early_cancels (
    tenant_id text NOT NULL,
    user_id text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('client_run_id', 'idempotency_key')),
    key text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, user_id, kind, key)
);
"""

INDEXES = {
    "UNIQUE runs_client_run_id": "runs (tenant_id, user_id, client_run_id)",
    "runs_waking": "runs (wake_at) WHERE status = 'waiting' AND wake_at IS NOT NULL",
}

COLUMNS = ("queue", "client_run_id", "agent_version", "generation", "crashed_epoch", "wake_at")


def up(migrator: object, db: Any) -> None:
    db.execute_sql(UP)


def down(migrator: object, db: Any) -> None:
    db.execute_sql("DROP TABLE early_cancels, run_inputs, approvals, run_ops")
    for column in COLUMNS:
        db.execute_sql(f"ALTER TABLE runs DROP COLUMN {column}")
