"""The `support` agent asked for a refund: approved, denied, expired, and its worker killed at every point of it.

A point is held by a lock that the test has: in Postgres a trigger makes the worker's statement wait for it.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg2
import pytest

from tests.conftest import StackMaker
from tests.harness import Process, Stack, eventually

REQUEST = "I want a refund for order 48291"
LOOKUPS = ["Look up order #48291", "Check inventory", "Check refund eligibility"]
APPROVAL, ISSUE, REPLY = "Get approval for the refund", "Issue the refund", ["Draft the reply", "Check the draft"]
HOLD = 4829100
"""Key of the advisory lock at which a worker's statement is held."""

Event = dict[str, Any]
Row = tuple[str, int, int]


@dataclass
class Desk:
    """A server with the one worker that answers customers."""

    stack: Stack
    worker: Process
    rows: Any
    """A cursor of the test's own; every statement is committed at once."""

    def ask(self, message: str = REQUEST, **knobs: Any) -> str:
        """The run of a message, without latencies."""
        return self.stack.start("support", {"message": message, "latency_scale": 0, **knobs})

    def approval(self, run_id: str) -> dict[str, Any]:
        """The approval that the run waits for, once it does."""
        eventually(lambda: self.stack.read(run_id)["status"] == "waiting", what="the run waiting")
        (approval,) = self.stack.read(run_id)["state"]["approvals"]
        found: dict[str, Any] = approval
        return found

    def decide(self, run_id: str, decision: str, **comment: str) -> None:
        """What an operator says."""
        path = f"/runs/{run_id}/approvals/{self.approval(run_id)['id']}"
        assert self.stack.http.post(path, json={"decision": decision, **comment}).status_code == 200

    def ended(self, run_id: str) -> dict[str, Any]:
        """The completed run, all of whose checks are passed."""
        run = self.stack.ended(run_id)
        assert run["status"] == "completed", run["error"]
        assert [check["passed"] for check in run["output"]["checks"]] == [True] * 3
        assert 60 <= len(run["output"]["text"].split()) <= 120
        return run

    def refunds(self, run_id: str) -> list[Row]:
        """What was refunded by a run: reference, order, cents."""
        sql = "SELECT reference, order_id, amount_cents FROM shop_refunds WHERE reference LIKE %s"
        self.rows.execute(sql, (f"{run_id}:%",))
        found: list[Row] = self.rows.fetchall()
        return found

    def replace_worker(self) -> None:
        """Another worker in the place of the killed one."""
        self.worker = self.stack.start_worker()


@pytest.fixture(scope="module")
def module_desk(module_stack: StackMaker) -> Iterator[Desk]:
    stack = module_stack()
    stack.start_web()
    with closing(psycopg2.connect(stack.env["DATABASE_URL"])) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        desk = Desk(stack, stack.start_worker(), cursor)
        desk.ended(desk.ask("Where is order 48291?"))  # the tables are there
        yield desk


@pytest.fixture
def desk(module_desk: Desk) -> Desk:
    """The desk, with a worker, on a day on which no run has refunded anything yet."""
    if module_desk.worker.popen.poll() is not None:
        module_desk.replace_worker()
    module_desk.rows.execute("DELETE FROM shop_refunds WHERE reference LIKE 'run_%'")
    module_desk.rows.execute("UPDATE shop_orders SET status = 'processing' WHERE id IN (48293, 48299)")
    return module_desk


def plan(run: dict[str, Any]) -> list[tuple[str, str]]:
    """The plan's titles, each with its status."""
    return [(step["title"], step["status"]) for step in run["state"]["plan"]]


def completed(*titles: str) -> list[tuple[str, str]]:
    """A plan that was carried out."""
    return [(title, "completed") for title in titles]


# The outcomes.


def test_a_large_refund_waits_for_an_operator_and_is_issued_once_it_is_approved(desk: Desk) -> None:
    run_id = desk.ask()
    approval = desk.approval(run_id)
    assert approval["label"] == "Refund $1,249.00 for order #48291"
    assert approval["requires"] == "operator"
    (asked,) = [event for event in desk.stack.events(run_id) if event["type"] == "approval.required"]
    open_for = datetime.fromisoformat(approval["expires_at"]) - datetime.fromisoformat(asked["ts"])
    assert abs(open_for.total_seconds() - 24 * 3600) < 5
    assert desk.refunds(run_id) == []

    desk.decide(run_id, "approved", comment="Within the policy.")
    run = desk.ended(run_id)
    assert "I have refunded $1,249.00 for this order" in run["output"]["text"]
    ((reference, *refunded),) = desk.refunds(run_id)
    assert refunded == [48291, 124900]
    (issued,) = [tool for tool in run["state"]["tool_calls"] if tool["name"] == "issue_refund"]
    assert (issued["status"], issued["label"]) == ("completed", "Refunding $1,249.00 for order #48291")
    assert issued["preview"]["reference"] == reference
    assert run["output"]["sources"][-1]["title"] == "Refund of order #48291"
    assert plan(run) == completed(*LOOKUPS, APPROVAL, ISSUE, *REPLY)


def test_a_denied_refund_is_not_issued_and_the_reply_says_why(desk: Desk) -> None:
    run_id = desk.ask()
    desk.decide(run_id, "denied", comment="Returned damaged; $100.00 at most.")
    run = desk.ended(run_id)
    assert "it was denied, so no refund was issued" in run["output"]["text"]
    assert "“Returned damaged; $100.00 at most.”" in run["output"]["text"]
    assert desk.refunds(run_id) == []
    assert plan(run) == completed(*LOOKUPS, APPROVAL, *REPLY)


def test_a_refund_that_nobody_decides_about_expires(desk: Desk) -> None:
    run_id = desk.ask()
    desk.approval(run_id)
    desk.rows.execute("UPDATE approvals SET expires_at = now() WHERE run_id = %s", (run_id,))
    run = desk.ended(run_id)
    assert "nobody decided about it in time" in run["output"]["text"]
    assert desk.refunds(run_id) == []
    assert [approval["status"] for approval in run["state"]["approvals"]] == ["expired"]


@pytest.mark.parametrize(("order_id", "cents", "said"), [(48294, 5990, "$59.90"), (48293, 34950, "$349.50")])
def test_a_small_refund_needs_no_approval(desk: Desk, order_id: int, cents: int, said: str) -> None:
    run = desk.ended(desk.ask(f"Please refund order {order_id}"))
    assert f"I have refunded {said} for this order" in run["output"]["text"]
    assert [row[1:] for row in desk.refunds(run["run_id"])] == [(order_id, cents)]
    assert run["state"]["approvals"] == []
    titles = [title for title, _ in plan(run)]
    assert ISSUE in titles
    assert APPROVAL not in titles


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("I want a refund for order 48295", "can no longer be refunded"),
        ("I want a refund for order 48298", "nothing left to refund"),
        ("I want a refund for order 48292", "once your order has arrived"),
        ("I want a refund for order 99999", "there is no order with this number"),
        ("I want a refund", "could not find an order number"),
        ("Can order 48291 still be refunded?", "a colleague has to approve it first"),
    ],
)
def test_what_cannot_be_refunded_or_was_only_asked_about_is_answered(desk: Desk, message: str, said: str) -> None:
    run = desk.ended(desk.ask(message))
    assert said in run["output"]["text"]
    assert desk.refunds(run["run_id"]) == []
    assert run["state"]["approvals"] == []
    assert not {ISSUE, APPROVAL} & {title for title, _ in plan(run)}


def test_two_runs_that_refund_the_same_order_at_once_refund_it_once(desk: Desk) -> None:
    run_ids = [desk.ask(), desk.ask()]
    for run_id in run_ids:
        desk.approval(run_id)
    desk.rows.execute("BEGIN; LOCK TABLE shop_orders IN EXCLUSIVE MODE")  # both of them stop here
    for run_id in run_ids:
        desk.decide(run_id, "approved")
    sql = "SELECT count(*) FROM pg_locks WHERE relation = 'shop_orders'::regclass AND NOT granted"
    eventually(lambda: fetched(desk, sql) == (2,), what="both issuing")
    desk.rows.execute("COMMIT")
    runs = [desk.ended(run_id) for run_id in run_ids]
    assert sorted(len(desk.refunds(run_id)) for run_id in run_ids) == [0, 1]
    for run in runs:
        said = "I have refunded" if desk.refunds(run["run_id"]) else "I have issued no refund myself"
        assert said in run["output"]["text"]
    codes = [tool["error_code"] for run in runs for tool in run["state"]["tool_calls"] if tool["status"] == "failed"]
    assert codes == ["not_refundable"]


def test_a_payment_system_that_does_not_answer_is_asked_again_and_then_nothing_is_claimed(desk: Desk) -> None:
    run = desk.ended(desk.ask("Please refund order 48294", fail_tool="payment"))
    assert "so I cannot confirm it" in run["output"]["text"]
    tools = [(tool["name"], tool["status"]) for tool in run["state"]["tool_calls"]]
    assert tools[-3:] == [("issue_refund", "failed")] * 3
    assert desk.refunds(run["run_id"]) == []
    assert (ISSUE, "failed") in plan(run)


# Its worker is killed.


@dataclass(frozen=True)
class Point:
    """Where a worker is when it is killed: at a statement (when, table, condition), or nowhere, for it waits."""

    statement: tuple[str, str, str] | None
    decided: bool
    refunded: bool = False


POINTS = {
    "before it asks for approval": Point(("BEFORE INSERT", "run_ops", "NEW.name = 'check_refund'"), decided=False),
    "while it asks for approval": Point(("AFTER INSERT", "approvals", "true"), decided=False),
    "while it waits": Point(None, decided=False),
    "before the refund is issued": Point(("BEFORE INSERT", "shop_refunds", "true"), decided=True),
    "before the refund is committed": Point(("AFTER INSERT", "shop_refunds", "true"), decided=True),
    "before the refund is recorded": Point(
        ("BEFORE INSERT", "run_ops", "NEW.name = 'issue_refund'"), decided=True, refunded=True
    ),
    "before the reply is recorded": Point(
        ("BEFORE INSERT", "run_ops", "NEW.kind = 'message'"), decided=True, refunded=True
    ),
    "before the end": Point(
        ("BEFORE UPDATE", "runs", "OLD.finished_at IS NULL AND NEW.finished_at IS NOT NULL"),
        decided=True,
        refunded=True,
    ),
}


@pytest.mark.parametrize("where", POINTS)
def test_a_worker_killed_at_any_point_leaves_one_refund_one_reply_and_nothing_said_twice(
    desk: Desk, undisturbed: list[str], where: str
) -> None:
    point = POINTS[where]
    with held(desk, point) as release:
        run_id = desk.ask()
        if point.decided:
            desk.decide(run_id, "approved")
        if point.statement is None:
            desk.approval(run_id)
        else:
            eventually(lambda: fetched(desk, WAITING) == (1,), what="the worker at that point")
        desk.worker.kill()
        desk.rows.execute(f"SELECT pg_terminate_backend(pid) {HELD}")  # else Postgres would carry the statement out
        assert len(desk.refunds(run_id)) == point.refunded
        release()
        call_lost(desk, run_id)
        desk.replace_worker()
        if not point.decided:
            desk.decide(run_id, "approved")
        run = desk.ended(run_id)
    assert [row[1:] for row in desk.refunds(run_id)] == [(48291, 124900)]
    *abandoned, reply = run["state"]["messages"]
    assert {message["status"] for message in abandoned} <= {"abandoned"}
    assert (reply["status"], reply["text"]) == ("completed", run["output"]["text"])
    assert told(desk.stack.events(run_id)) == undisturbed


HELD = f"FROM pg_locks WHERE locktype = 'advisory' AND objid = {HOLD} AND NOT granted"
WAITING = f"SELECT count(*) {HELD}"


@pytest.fixture(scope="module")
def undisturbed(module_desk: Desk) -> list[str]:
    """What a run tells whose worker nobody kills."""
    module_desk.rows.execute("DELETE FROM shop_refunds WHERE reference LIKE 'run_%'")
    run_id = module_desk.ask()
    module_desk.decide(run_id, "approved")
    module_desk.ended(run_id)
    told_once = told(module_desk.stack.events(run_id))
    module_desk.rows.execute("DELETE FROM shop_refunds WHERE reference LIKE 'run_%'")
    return told_once


def told(events: list[Event]) -> list[str]:
    """Events but for those of the run and its messages, in order of type, without what differs between any two runs."""
    found = []
    for event in events:
        payload = {k: v for k, v in event["payload"].items() if k not in ("duration_ms", "expires_at")}
        if not event["type"].startswith(("run.", "message.")):
            found.append(f"{event['type']} {payload}".replace(event["run_id"], "RUN"))
    return sorted(found)


@contextmanager
def held(desk: Desk, point: Point) -> Iterator[Any]:
    """Whoever executes the point's statement waits; yields what lets it, and everybody after it, go on."""
    if point.statement is None:
        yield lambda: None
        return
    when, table, condition = point.statement
    desk.rows.execute(
        f"""SELECT pg_advisory_lock({HOLD});
            CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
                BEGIN PERFORM pg_advisory_xact_lock({HOLD}); RETURN NEW; END $$;
            CREATE TRIGGER hold {when} ON {table} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION hold()"""
    )
    try:
        yield lambda: desk.rows.execute(f"SELECT pg_advisory_unlock({HOLD})")
    finally:
        desk.rows.execute("SELECT pg_advisory_unlock_all(); DROP FUNCTION hold CASCADE")


def call_lost(desk: Desk, run_id: str) -> None:
    """What the janitor does when the worker's lease is over, without the wait for that."""
    store, row = desk.stack.services.store, desk.stack.services.store.get(run_id)
    assert row is not None
    if row.status == "running":
        assert store.release(run_id, row.epoch, "worker_lost")
        desk.stack.services.queue.enqueue(run_id, row.epoch, row.queue)


def fetched(desk: Desk, sql: str) -> Any:
    """The row that a query finds."""
    desk.rows.execute(sql)
    return desk.rows.fetchone()
