"""The `support` agent on a live server, and the shop behind it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg2
import pytest

from tests.conftest import own_databases
from tests.harness import ROOT, Stack, eventually, free_port
from workers.agents.support import shop

ORDERS = range(48291, 48303)
POLICY = {"$500.00"}


def ask(live: Stack, message: str, **knobs: Any) -> dict[str, Any]:
    """The finished run of a question, without latencies unless told otherwise."""
    return live.ended(live.start("support", {"message": message, "latency_scale": 0, **knobs}))


def of(events: list[dict[str, Any]], *types: str) -> list[dict[str, Any]]:
    """The payloads of these types, in order."""
    return [event["payload"] for event in events if event["type"] in types]


def seconds_between(earlier: dict[str, Any], later: dict[str, Any]) -> float:
    """By the events' timestamps."""
    return (datetime.fromisoformat(later["ts"]) - datetime.fromisoformat(earlier["ts"])).total_seconds()


def titles(run: dict[str, Any], status: str) -> list[str]:
    """The run's steps of this status."""
    return [step["title"] for step in run["state"]["steps"] if step["status"] == status]


# A question about an order.


def test_a_question_about_an_order_is_answered_from_its_rows(live: Stack) -> None:
    run = ask(live, "Where is order 48291?")
    assert run["status"] == "completed"
    text = run["output"]["text"]
    delivered, until = (datetime.now(UTC).date() + timedelta(days=days) for days in (-9, 21))
    dates = [f"{day.day} {day:%B %Y}" for day in (delivered, until)]
    for fact in ("#48291", "Meridian standing desk", "$1,249.00", "4 in stock", *dates):
        assert fact in text
    assert "a colleague has to approve it first" in text
    assert text == run["state"]["answer"]["text"]
    assert run["usage"]["input_tokens"] > 0
    assert run["usage"]["output_tokens"] > 0


def test_every_row_that_was_used_is_a_source(live: Stack) -> None:
    sources = ask(live, "Where is order 48293?")["output"]["sources"]
    assert [source["title"] for source in sources] == [
        "Order #48293",
        "Inventory of Halden office chair",
        "Refunds of order #48293",
    ]
    assert "0 in stock" in sources[1]["snippet"]


def test_the_draft_is_checked(live: Stack) -> None:
    checks = ask(live, "Where is order 48291?")["output"]["checks"]
    assert [(check["name"], check["passed"], check["score"]) for check in checks] == [
        ("mentions_the_order", True, 1),
        ("amounts_are_sourced", True, 1),
        ("no_promises_beyond_the_policy", True, 1),
    ]


def test_the_work_is_announced_labelled_for_humans_and_shown_as_it_proceeds(live: Stack) -> None:
    run = ask(live, "Where is order 48291?")
    events = live.events(run["run_id"])
    plan = [(step["title"], step["status"]) for step in run["state"]["plan"]]
    assert plan == [
        ("Look up order #48291", "completed"),
        ("Check inventory", "completed"),
        ("Check refund eligibility", "completed"),
        ("Draft the reply", "completed"),
        ("Check the draft", "completed"),
    ]
    assert [tool["label"] for tool in of(events, "tool.started")] == [
        "Looking up order #48291",
        "Checking the stock of Meridian standing desk",
        "Checking whether order #48291 can be refunded",
    ]
    for tool in of(events, "tool.started"):
        shown = [p for p in of(events, "tool.progress") if p["tool_call_id"] == tool["tool_call_id"]]
        assert len(shown) >= 3
        assert all(p["label"] for p in shown)
    assert len(of(events, "step.progress")) >= 3


@pytest.mark.parametrize("fail_tool", [None, "inventory", "refund"])
def test_every_reply_is_of_a_readable_length_and_names_only_sums_and_days_from_the_rows(
    live: Stack, fail_tool: str | None
) -> None:
    knobs = {"fail_tool": fail_tool} if fail_tool else {}
    inputs = [{"message": f"What about #{number}?", "latency_scale": 0, **knobs} for number in ORDERS]
    started = [live.start("support", input) for input in inputs]
    for number, run_id in zip(ORDERS, started, strict=True):
        output = live.ended(run_id)["output"]
        assert f"#{number}" in output["text"]
        assert 60 <= len(output["text"].split()) <= 120, output["text"]
        assert all(check["passed"] for check in output["checks"])
        sums, days = facts(live, number)
        assert set(re.findall(r"\$[0-9.,]*[0-9]", output["text"])) <= sums | POLICY
        assert set(re.findall(r"[0-9]+ [A-Z][a-z]+ 20[0-9]{2}", output["text"])) <= days


def facts(live: Stack, number: int) -> tuple[set[str], set[str]]:
    """The sums and days that a truthful reply about an order may name, read without the shop's own code."""
    sql = """SELECT o.total_cents, o.total_cents - coalesce(sum(r.amount_cents), 0), coalesce(sum(r.amount_cents), 0),
                    o.ordered_on, o.shipped_on, o.delivered_on, i.restock_on
             FROM shop_orders o JOIN shop_inventory i USING (sku) LEFT JOIN shop_refunds r ON r.order_id = o.id
             WHERE o.id = %s GROUP BY o.id, i.sku"""
    with connected(live) as cursor:
        cursor.execute(sql, (number,))
        row = cursor.fetchone()
    sums = {f"${cents / 100:,.2f}" for cents in map(int, row[:3])}
    known: list[date] = [day for day in row[3:] if day]
    if row[5]:
        known.append(row[5] + timedelta(days=30))
    moved = [day + (datetime.now(UTC).date() - date(2026, 6, 12)) for day in known]
    return sums, {f"{day.day} {day:%B %Y}" for day in moved}


# What cannot be looked up.


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("Where is order 99999?", "there is no order with this number"),
        ("Where is my parcel?", "could not find an order number"),
        (" \x00 ", "could not find an order number"),
    ],
)
def test_without_an_order_the_reply_says_so_and_nothing_else_is_checked(live: Stack, message: str, said: str) -> None:
    run = ask(live, message)
    assert run["status"] == "completed"
    assert said in run["output"]["text"]
    assert 60 <= len(run["output"]["text"].split()) <= 120
    assert run["output"]["sources"] == []
    assert all(check["passed"] for check in run["output"]["checks"])
    assert {tool["name"] for tool in run["state"]["tool_calls"]} <= {"look_up_order"}
    assert "Check inventory" not in [step["title"] for step in run["state"]["steps"]]
    assert {step["status"] for step in run["state"]["plan"]} == {"completed"}


# A tool that fails.


@pytest.mark.parametrize(
    ("tool", "name", "said", "unsaid"),
    [
        ("inventory", "check_inventory", "could not check our stock", "in stock right now"),
        ("refund", "check_refund", "could not check just now whether a refund is possible", "we can refund"),
    ],
)
def test_a_failed_tool_is_shown_before_the_reply_that_does_without_it(
    live: Stack, tool: str, name: str, said: str, unsaid: str
) -> None:
    run = ask(live, "Where is order 48291?", fail_tool=tool)
    assert run["status"] == "completed"
    assert said in run["output"]["text"]
    assert unsaid not in run["output"]["text"]
    assert "$1,249.00" in run["output"]["text"]

    events = live.events(run["run_id"])
    types = [event["type"] for event in events]
    assert types.index("tool.failed") < types.index("message.started")
    (failed,) = of(events, "tool.failed")
    (started,) = [p for p in of(events, "tool.started") if p["tool_call_id"] == failed["tool_call_id"]]
    assert (started["name"], failed["code"], failed["retryable"]) == (name, f"{tool}_unavailable", True)
    assert len(titles(run, "failed")) == 1
    assert len(run["output"]["sources"]) == 2


def test_an_order_that_cannot_be_looked_up_just_now_is_not_called_unknown(live: Stack) -> None:
    run = ask(live, "Where is order 48291?", fail_tool="order")
    assert run["status"] == "completed"
    assert "could not look it up just now" in run["output"]["text"]
    assert "there is no order" not in run["output"]["text"]
    assert [call["error_code"] for call in run["state"]["tool_calls"]] == ["order_unavailable"]
    assert titles(run, "completed") == ["Draft the reply", "Check the draft"]


# Time.


def test_progress_is_visible_at_once_and_long_before_the_reply(live: Stack) -> None:
    run = live.ended(live.start("support", {"message": "Where is order 48291?"}), seconds=30)
    events = live.events(run["run_id"])
    first = next(event for event in events if event["type"] == "tool.progress")
    reply = next(event for event in events if event["type"] == "message.completed")
    assert seconds_between(events[0], first) < 1
    assert 8 <= seconds_between(first, reply) < 14
    deltas = [event for event in events if event["type"] == "message.delta"]
    assert len(deltas) > 20
    assert seconds_between(deltas[0], deltas[-1]) > 1


def test_without_latency_a_run_takes_no_time(live: Stack) -> None:
    events = live.events(ask(live, "Where is order 48291?")["run_id"])
    assert seconds_between(events[1], events[-1]) < 1


def test_a_cancel_ends_a_tool_in_the_middle_of_its_latency(live: Stack) -> None:
    run_id = live.start("support", {"message": "Where is order 48291?", "latency_scale": 10})
    eventually(lambda: of(live.events(run_id), "tool.progress"), what="progress of the first tool")
    assert live.http.post(f"/runs/{run_id}/cancel").json()["status"] == "cancelled"
    state = live.read(run_id)["state"]
    assert [call["status"] for call in state["tool_calls"]] == ["cancelled"]
    assert [step["status"] for step in state["steps"]] == ["failed"]


def test_a_cancel_ends_a_query_in_the_middle_and_closes_its_connection(live: Stack) -> None:
    ask(live, "Where is order 48291?")  # the tables are there

    def connections(clause: str = "true") -> int:
        with connected(live) as cursor:
            sql = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND {clause}"
            cursor.execute(sql, (shop.APPLICATION_NAME,))
            found: int = cursor.fetchone()[0]
            return found

    with locked(live, "shop_orders"):
        run_id = live.start("support", {"message": "Where is order 48291?", "latency_scale": 0})
        eventually(lambda: connections("wait_event_type = 'Lock'") == 1, what="a query that waits for the lock")
        assert live.http.post(f"/runs/{run_id}/cancel").json()["status"] == "cancelled"
    eventually(lambda: connections() == 0, what="the end of the query's connection")
    assert ask(live, "Where is order 48291?")["status"] == "completed"


# Its input.


@pytest.mark.parametrize(
    "input",
    [
        {},
        {"message": ""},
        {"message": "x" * 4_001},
        {"message": 48291},
        {"message": "Hi", "latency_scale": "1"},
        {"message": "Hi", "latency_scale": True},
        {"message": "Hi", "latency_scale": -0.1},
        {"message": "Hi", "latency_scale": 10.1},
        {"message": "Hi", "latency_scale": None},
        {"message": "Hi", "fail_tool": "refunds"},
        {"message": "Hi", "fail_tool": None},
        {"message": "Hi", "model": "large"},
    ],
)
def test_an_input_that_does_not_fit_is_refused_at_once(live: Stack, input: dict[str, Any]) -> None:
    answer = live.http.post("/runs", json={"agent": "support", "input": input})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")


# The shop.


def test_several_processes_may_set_up_the_shop_at_once(environment: dict[str, str]) -> None:
    code = "from workers.agents.support import shop; assert shop.find_order(48291)['total_cents'] == 124900"
    with own_databases(environment) as urls:
        command = [sys.executable, "-c", code]
        processes = [subprocess.Popen(command, cwd=ROOT, env=urls) for _ in range(6)]
        assert [process.wait() for process in processes] == [0] * 6
        with closing(psycopg2.connect(urls["DATABASE_URL"])) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT (SELECT count(*) FROM shop_orders), (SELECT count(*) FROM shop_refunds)")
            assert cursor.fetchone() == (12, 2)


def test_a_shop_that_cannot_be_reached_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgres://nobody@127.0.0.1:{free_port()}/nothing")
    with pytest.raises(shop.ShopUnavailable):
        shop.find_order(48291)


@contextmanager
def connected(live: Stack) -> Iterator[Any]:
    """A cursor of the test's own."""
    with closing(psycopg2.connect(live.env["DATABASE_URL"])) as connection, connection.cursor() as cursor:
        yield cursor


@contextmanager
def locked(live: Stack, table: str) -> Iterator[None]:
    """Whoever reads the table meanwhile has to wait."""
    with connected(live) as cursor:
        cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield
