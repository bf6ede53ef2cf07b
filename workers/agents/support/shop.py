"""A small web shop: the orders, inventory and refunds that the `support` agent looks things up in.

Responsible for its tables (`shop_…`, beside Runtail's own in DATABASE_URL, made and seeded at the first question),
for the questions that can be asked of them, for the refund policy, and for refunding an order once. Knows nothing of
runs, and shares no connection with Runtail. Works with gevent and without.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from threading import BoundedSemaphore
from typing import Any, Literal, TypedDict, cast

import psycopg2
from psycopg2.errors import UndefinedColumn, UndefinedTable
from psycopg2.extras import RealDictCursor

TODAY = date(2026, 6, 12)
"""The day on which the rows below were written down. They are shown as if that were today: every day the same question
has the same answer, moved to that day."""
KEPT_MINUTES = 10
"""How long the shop remembers a refund that it has issued: then the next demonstration can refund the order again.
The same reference never yields a second refund."""
REFUND_DAYS = 30
"""How long after its delivery an order can be refunded."""
APPROVAL_CENTS = 500_00
"""A refund above this needs somebody's approval."""
MAX_CONNECTIONS = 4
"""Per process; further questions wait. Small databases allow 20 connections in all."""
CONNECT_SECONDS = 5
IDLE_SECONDS = 10
"""How long a process that stands still may hold an order's lock in the middle of a refund."""
APPLICATION_NAME = "runtail-shop"


class ShopUnavailable(Exception):
    """The shop's database cannot be reached."""


class NotRefundable(Exception):
    """What is left to refund of the order is less than that, or nothing."""


class Order(TypedDict):
    """One row of `shop_orders` with its product's name. Dates are ISO 8601, money is in US cents."""

    id: int
    sku: str
    product: str
    quantity: int
    total_cents: int
    status: Literal["processing", "shipped", "delivered", "cancelled"]
    ordered_on: str
    shipped_on: str | None
    delivered_on: str | None


class Stock(TypedDict):
    """One row of `shop_inventory`. `restock_on` is None where no delivery is expected."""

    sku: str
    product: str
    in_stock: int
    restock_on: str | None


class Refund(TypedDict):
    """What the policy says about refunding an order, given its row and its rows in `shop_refunds`."""

    order_id: int
    verdict: Literal["returnable", "not_shipped", "in_transit", "too_late", "already_refunded", "cancelled"]
    eligible: bool
    amount_cents: int
    """What is left to refund; 0 where it is not eligible."""
    refunded_cents: int
    until: str | None
    """Last day for a refund, where the order was delivered."""
    needs_approval: bool


class IssuedRefund(TypedDict):
    """One row of `shop_refunds`."""

    reference: str
    order_id: int
    amount_cents: int
    refunded_on: str


def find_order(order_id: int) -> Order | None:
    """The order of that number, if there is one.

    :raises ShopUnavailable: here and below.
    """
    rows = _query(
        """SELECT o.id, o.sku, i.product, o.quantity, o.total_cents, o.status, o.ordered_on, o.shipped_on,
                  o.delivered_on
           FROM shop_orders o JOIN shop_inventory i USING (sku) WHERE o.id = %s""",
        order_id,
    )
    return cast(Order, _as_of_today(rows[0])) if rows else None


def find_stock(sku: str) -> Stock:
    """How many of a product are in stock."""
    rows = _query("SELECT sku, product, in_stock, restock_on FROM shop_inventory WHERE sku = %s", sku)
    return cast(Stock, _as_of_today(rows[0]))


def check_refund(order_id: int) -> Refund:
    """Whether, until when and how much of an order can be refunded."""
    return _apply_policy(**_query(_REFUNDS_OF_ORDER, order_id)[0])


def issue_refund(order_id: int, amount_cents: int, reference: str) -> IssuedRefund:
    """Refund that much of an order, and cancel it where it was not shipped. The same reference yields the same row.

    Whoever wants to refund the same order at the same time waits for its lock, and then finds less to refund.

    :raises NotRefundable: the policy allows no refund of that amount by now.
    """
    with _cursor() as cursor:
        cursor.execute(_IN_A_TRANSACTION, (IDLE_SECONDS * 1_000,))
        cursor.execute("SELECT FROM shop_orders WHERE id = %s FOR UPDATE", (order_id,))
        issued = _issued(cursor, reference)
        if issued is None:
            cursor.execute(_REFUNDS_OF_ORDER, (order_id,))
            if _apply_policy(**cursor.fetchone())["amount_cents"] < amount_cents:
                raise NotRefundable
            cursor.execute(_ISSUE, (reference, order_id, amount_cents, TODAY))
            cursor.execute(_CANCEL, (order_id,))
            issued = _issued(cursor, reference)
        cursor.execute("COMMIT")
    return cast(IssuedRefund, issued)


_REFUNDS_OF_ORDER = f"""
SELECT o.id, o.status, o.total_cents, o.delivered_on, coalesce(sum(r.amount_cents), 0)::int AS refunded
FROM shop_orders o LEFT JOIN shop_refunds r ON r.order_id = o.id
    AND (r.issued_at IS NULL OR r.issued_at > now() - interval '{KEPT_MINUTES} minutes')
WHERE o.id = %s GROUP BY o.id
"""
_IN_A_TRANSACTION = "BEGIN; SET LOCAL idle_in_transaction_session_timeout = %s"
_ISSUE = "INSERT INTO shop_refunds VALUES (%s, %s, %s, %s, now()) ON CONFLICT (reference) DO NOTHING"
_CANCEL = "UPDATE shop_orders SET status = 'cancelled' WHERE id = %s AND status = 'processing'"


def _issued(cursor: Any, reference: str) -> IssuedRefund | None:
    sql = "SELECT reference, order_id, amount_cents, refunded_on FROM shop_refunds WHERE reference = %s"
    cursor.execute(sql, (reference,))
    row = cursor.fetchone()
    return cast(IssuedRefund, _as_of_today(row)) if row else None


def _as_of_today(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its dates moved by the days since TODAY, as ISO 8601."""
    since = datetime.now(UTC).date() - TODAY
    return {name: (value + since).isoformat() if isinstance(value, date) else value for name, value in row.items()}


def _apply_policy(id: int, status: str, total_cents: int, delivered_on: date | None, refunded: int) -> Refund:
    until = delivered_on + timedelta(days=REFUND_DAYS) if delivered_on else None
    verdict: Literal["returnable", "not_shipped", "in_transit", "too_late", "already_refunded", "cancelled"]
    if refunded >= total_cents:
        verdict = "already_refunded"
    elif status == "cancelled":
        verdict = "cancelled"
    elif until is None:
        verdict = "not_shipped" if status == "processing" else "in_transit"
    else:
        verdict = "returnable" if until >= TODAY else "too_late"
    eligible = verdict in ("returnable", "not_shipped")
    amount = total_cents - refunded if eligible else 0
    refund = {
        "order_id": id,
        "verdict": verdict,
        "eligible": eligible,
        "amount_cents": amount,
        "refunded_cents": refunded,
        "until": until,
        "needs_approval": amount > APPROVAL_CENTS,
    }
    return cast(Refund, _as_of_today(refund))


_slots = BoundedSemaphore(MAX_CONNECTIONS)


def _query(sql: str, *values: Any) -> list[dict[str, Any]]:
    """The rows of one statement, on a connection of its own."""
    with _cursor() as cursor:
        try:
            cursor.execute(sql, values)
        except (UndefinedTable, UndefinedColumn):  # the second one: tables of a version before
            cursor.execute(_CREATE)
            cursor.execute(sql, values)
        return [dict(row) for row in cursor.fetchall()]


@contextmanager
def _cursor() -> Iterator[Any]:
    """A cursor on a connection of its own, where every statement is committed unless it begins a transaction.

    The caller's greenlet may be killed at any point of this. A connection in the middle of a query is of no
    use to anybody, so whatever happens it is closed, never kept; what was not committed is rolled back.
    """
    try:
        with _slots, closing(_connect()) as connection, connection.cursor() as cursor:
            yield cursor
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        raise ShopUnavailable("The shop's database cannot be reached.") from error


def _connect() -> Any:
    connection = psycopg2.connect(
        os.environ.get("RUNTAIL_DATABASE_URL") or os.environ["DATABASE_URL"],
        connect_timeout=CONNECT_SECONDS,
        application_name=APPLICATION_NAME,
        cursor_factory=RealDictCursor,
    )
    connection.autocommit = True
    return connection


# Sent as one message, so one transaction: others see every table with its rows, or none. The lock makes several
# processes that begin at once take turns; CREATE … IF NOT EXISTS alone fails when two of them meet.
_CREATE = """
SELECT pg_advisory_xact_lock(1397247824);
CREATE TABLE IF NOT EXISTS shop_inventory (
    sku text PRIMARY KEY, product text NOT NULL, in_stock int NOT NULL CHECK (in_stock >= 0), restock_on date
);
CREATE TABLE IF NOT EXISTS shop_orders (
    id int PRIMARY KEY, sku text NOT NULL REFERENCES shop_inventory, quantity int NOT NULL CHECK (quantity > 0),
    total_cents int NOT NULL CHECK (total_cents > 0),
    status text NOT NULL CHECK (status IN ('processing', 'shipped', 'delivered', 'cancelled')),
    ordered_on date NOT NULL, shipped_on date, delivered_on date
);
-- The reference is the caller's: who asks twice with the same one refunds once.
CREATE TABLE IF NOT EXISTS shop_refunds (
    reference text PRIMARY KEY, order_id int NOT NULL REFERENCES shop_orders,
    amount_cents int NOT NULL CHECK (amount_cents > 0), refunded_on date NOT NULL
);
ALTER TABLE shop_refunds ADD COLUMN IF NOT EXISTS issued_at timestamptz;  -- NULL: remembered for ever
INSERT INTO shop_inventory VALUES
    ('DESK-180', 'Meridian standing desk', 4, NULL), ('LAMP-02', 'Aurora desk lamp', 37, NULL),
    ('CHAIR-11', 'Halden office chair', 0, '2026-06-24'), ('KETTLE-1', 'Fjord kettle', 112, NULL),
    ('RUG-0300', 'Solvang wool rug', 0, NULL), ('SHELF-4', 'Birk wall shelf', 1, NULL)
ON CONFLICT DO NOTHING;
INSERT INTO shop_orders VALUES
    (48291, 'DESK-180', 1, 124900, 'delivered', '2026-05-29', '2026-06-01', '2026-06-03'),
    (48292, 'LAMP-02', 2, 13800, 'shipped', '2026-06-08', '2026-06-10', NULL),
    (48293, 'CHAIR-11', 1, 34950, 'processing', '2026-06-11', NULL, NULL),
    (48294, 'KETTLE-1', 1, 5990, 'delivered', '2026-06-04', '2026-06-05', '2026-06-08'),
    (48295, 'RUG-0300', 1, 27900, 'delivered', '2026-04-20', '2026-04-22', '2026-04-27'),
    (48296, 'SHELF-4', 3, 11700, 'cancelled', '2026-06-02', NULL, NULL),
    (48297, 'CHAIR-11', 2, 69900, 'delivered', '2026-05-18', '2026-05-20', '2026-05-26'),
    (48298, 'LAMP-02', 1, 6900, 'delivered', '2026-05-11', '2026-05-12', '2026-05-15'),
    (48299, 'DESK-180', 2, 249800, 'processing', '2026-06-12', NULL, NULL),
    (48300, 'KETTLE-1', 2, 11980, 'delivered', '2026-05-08', '2026-05-11', '2026-05-13'),
    (48301, 'SHELF-4', 1, 3900, 'shipped', '2026-06-11', '2026-06-12', NULL),
    (48302, 'RUG-0300', 1, 27900, 'delivered', '2026-05-21', '2026-05-22', '2026-05-28')
ON CONFLICT DO NOTHING;
INSERT INTO shop_refunds VALUES
    ('counter-1107', 48298, 6900, '2026-05-19'), ('counter-1123', 48302, 5000, '2026-06-02')
ON CONFLICT DO NOTHING;
"""
