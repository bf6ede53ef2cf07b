"""The shop's own guard against refunding twice."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg2
import pytest

from tests.conftest import own_databases
from tests.harness import eventually
from workers.agents.support import shop


@pytest.fixture(scope="module")
def database(environment: dict[str, str]) -> Iterator[str]:
    """A database of the shop's own."""
    with own_databases(environment, migrated=False) as urls:
        yield urls["DATABASE_URL"]


@pytest.fixture
def rows(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cursor in the shop's database, as it was seeded."""
    monkeypatch.setenv("DATABASE_URL", database)
    shop.find_order(48291)
    with closing(psycopg2.connect(database)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        yield cursor
        cursor.execute("DROP TABLE shop_refunds, shop_orders, shop_inventory")


def test_a_refund_asked_for_again_with_its_reference_is_the_same_row(rows: Any) -> None:
    first = shop.issue_refund(48291, 124900, "a:1")
    assert first == {"reference": "a:1", "order_id": 48291, "amount_cents": 124900, "refunded_on": today().isoformat()}
    assert shop.issue_refund(48291, 124900, "a:1") == first
    rows.execute("SELECT count(*) FROM shop_refunds WHERE order_id = 48291")
    assert rows.fetchone() == (1,)
    assert shop.check_refund(48291)["verdict"] == "already_refunded"


def today() -> date:
    return datetime.now(UTC).date()


def test_the_dates_of_the_shop_move_with_the_day(rows: Any) -> None:
    order, stock = shop.find_order(48291), shop.find_stock("CHAIR-11")
    assert order is not None
    assert order["delivered_on"] == (today() - timedelta(days=9)).isoformat()
    assert stock["restock_on"] == (today() + timedelta(days=12)).isoformat()
    refund = shop.check_refund(48291)
    assert (refund["until"], refund["eligible"]) == ((today() + timedelta(days=21)).isoformat(), True)
    assert shop.check_refund(48295)["verdict"] == "too_late"


def test_an_order_can_be_refunded_again_for_the_next_demonstration_but_never_under_the_same_reference(
    rows: Any,
) -> None:
    first = shop.issue_refund(48291, 124900, "a:1")
    rows.execute("UPDATE shop_refunds SET issued_at = now() - interval '11 minutes' WHERE reference = 'a:1'")
    assert shop.check_refund(48291)["verdict"] == "returnable"
    assert shop.issue_refund(48291, 124900, "a:1") == first
    shop.issue_refund(48291, 124900, "b:1")
    assert shop.check_refund(48291)["verdict"] == "already_refunded"
    assert shop.check_refund(48298)["verdict"] == "already_refunded", "what the shop began with is never forgotten"


def test_the_tables_of_the_version_before_are_used_on(rows: Any) -> None:
    rows.execute("ALTER TABLE shop_refunds DROP COLUMN issued_at")
    assert shop.check_refund(48291)["verdict"] == "returnable"
    shop.issue_refund(48291, 124900, "a:1")


@pytest.mark.parametrize(("order_id", "cents"), [(48302, 22901), (48295, 27900), (48298, 1), (48292, 13800)])
def test_more_than_what_can_be_refunded_is_not_refunded(rows: Any, order_id: int, cents: int) -> None:
    with pytest.raises(shop.NotRefundable):
        shop.issue_refund(order_id, cents, "a:1")
    rows.execute("SELECT count(*) FROM shop_refunds WHERE reference = 'a:1'")
    assert rows.fetchone() == (0,)


def test_an_order_that_was_not_shipped_is_cancelled_with_its_refund(rows: Any) -> None:
    shop.issue_refund(48293, 34950, "a:1")
    order = shop.find_order(48293)
    assert order is not None
    assert order["status"] == "cancelled"


def test_of_several_that_refund_an_order_at_once_one_does(rows: Any) -> None:
    def issue(n: int) -> shop.IssuedRefund | None:
        try:
            return shop.issue_refund(48291, 124900, f"run_{n}:9")
        except shop.NotRefundable:
            return None

    with ThreadPoolExecutor(shop.MAX_CONNECTIONS) as threads:
        rows.execute("BEGIN; LOCK TABLE shop_orders IN EXCLUSIVE MODE")  # they queue up here
        issuing = [threads.submit(issue, n) for n in range(shop.MAX_CONNECTIONS)]
        eventually(lambda: waiting(rows) == shop.MAX_CONNECTIONS, what="all of them waiting for the order")
        rows.execute("COMMIT")
        issued = [refund for refund in (future.result() for future in issuing) if refund]
    assert len(issued) == 1
    rows.execute("SELECT reference FROM shop_refunds WHERE order_id = 48291")
    assert rows.fetchall() == [(issued[0]["reference"],)]


def waiting(rows: Any) -> int:
    """How many connections wait for the orders."""
    rows.execute("SELECT count(*) FROM pg_locks WHERE relation = 'shop_orders'::regclass AND NOT granted")
    count: int = rows.fetchone()[0]
    return count
