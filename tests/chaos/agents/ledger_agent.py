"""`ledger`: an agent whose every effect can be counted.

    chaos_plain   a row for each time that a call was made: nothing keeps a second one out
    chaos_keyed   a row for each idempotency key

A tool waits for a database that is away: what is under test is the run, not the tool. Of one call it makes one row,
also where it had to ask twice because the first answer got lost: the row's token is the call's own.
"""

import os
import uuid
from collections.abc import Callable
from contextlib import closing
from threading import BoundedSemaphore

import psycopg2
from marshmallow import Schema, fields
from psycopg2.errors import UndefinedTable

from runtail import Run, agent

MAX_CONNECTIONS = 4
RETRY_SECONDS = 0.3
# As one message, so one transaction; the lock makes processes that begin at once take turns.
CREATE = """
SELECT pg_advisory_xact_lock(1128812627);
CREATE TABLE IF NOT EXISTS chaos_plain (
    token text PRIMARY KEY, run_id text NOT NULL, op text NOT NULL, pid int NOT NULL, at timestamptz NOT NULL,
    serial bigserial
);
CREATE TABLE IF NOT EXISTS chaos_keyed (
    key text PRIMARY KEY, run_id text NOT NULL, op text NOT NULL, token text NOT NULL
);
"""
INSERT_PLAIN = "INSERT INTO chaos_plain VALUES (%s, %s, %s, %s, clock_timestamp()) ON CONFLICT DO NOTHING"
INSERT_KEYED = "INSERT INTO chaos_keyed VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"

_slots = BoundedSemaphore(MAX_CONNECTIONS)


class LedgerInput(Schema):
    """How much to write down, and how slowly."""

    calls = fields.Integer(required=True, strict=True)
    pause_ms = fields.Integer(load_default=0, strict=True)


@agent("ledger", input=LedgerInput)
def ledger(run: Run) -> object:
    """Calls of both kinds in turn, one pair side by side, and one event of every kind that is emitted between them."""
    calls, pause = run.input["calls"], run.input["pause_ms"] / 1_000
    run.plan(["Book", "Together", "Close"])
    tokens = []
    with run.step("Book") as step:
        for n in range(calls):
            step.progress(n / calls)
            tokens.append(run.tool("plain", plain, run, pause, label=f"Booking {n}", summary={"n": n}))
            run.tool("keyed", keyed, run, pause)
            run.emit("custom.booked", {"n": n})
            run.source(f"Entry {n}")
    with run.step("Together"):
        tokens += run.parallel(_branch(pause), _branch(pause))
    with run.step("Close"):
        run.check("complete", len(tokens) == calls + 2)
        run.usage(input_tokens=calls)
    return {"entries": tokens, "draw": run.random(), "at": run.now().isoformat()}


@agent("ledger_apart", input=LedgerInput, isolation="process")
def ledger_apart(run: Run) -> object:
    """The same in a process of its own."""
    return ledger(run)


def _branch(pause: float) -> Callable[[Run], str]:
    def branch(run: Run) -> str:
        run.tool("keyed", keyed, run, pause)
        token: str = run.tool("plain", plain, run, pause)
        run.source("Entry of a branch")
        return token

    return branch


def plain(run: Run, pause: float) -> str:
    """A row of its own for each call; returns its token."""
    token = uuid.uuid4().hex
    run.sleep(pause / 2)
    _insert(run, INSERT_PLAIN, token, *_call(run), os.getpid())
    run.sleep(pause / 2)  # a blow in here falls between the effect and its record
    return token


def keyed(run: Run, pause: float) -> str:
    """One row, however often the call is made; returns its key."""
    run.sleep(pause / 2)
    _insert(run, INSERT_KEYED, run.idempotency_key, *_call(run), uuid.uuid4().hex)
    return run.idempotency_key


def _call(run: Run) -> tuple[str, str]:
    run_id, _, op = run.idempotency_key.rpartition(":")
    return run_id, op


def _insert(run: Run, sql: str, *values: object) -> None:
    while True:
        try:
            with _slots, closing(psycopg2.connect(os.environ["DATABASE_URL"], connect_timeout=5)) as connection:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    try:
                        cursor.execute(sql, values)
                    except UndefinedTable:
                        cursor.execute(CREATE)
                        cursor.execute(sql, values)
            return
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            run.sleep(RETRY_SECONDS)
