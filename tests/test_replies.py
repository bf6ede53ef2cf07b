"""What is said of a refund, and the checks that hold it against the rows."""

from dataclasses import replace

import pytest

from workers.agents.support import replies, shop
from workers.agents.support.replies import Draft

ORDER: shop.Order = {
    "id": 48291,
    "sku": "DESK-180",
    "product": "Meridian standing desk",
    "quantity": 1,
    "total_cents": 124900,
    "status": "delivered",
    "ordered_on": "2026-05-29",
    "shipped_on": "2026-06-01",
    "delivered_on": "2026-06-03",
}
STOCK: shop.Stock = {"sku": "DESK-180", "product": "Meridian standing desk", "in_stock": 4, "restock_on": None}
REFUND: shop.Refund = {
    "order_id": 48291,
    "verdict": "returnable",
    "eligible": True,
    "amount_cents": 124900,
    "refunded_cents": 0,
    "until": "2026-07-03",
    "needs_approval": True,
}
ISSUED: shop.IssuedRefund = {
    "reference": "run_1:9",
    "order_id": 48291,
    "amount_cents": 124900,
    "refunded_on": "2026-06-12",
}
UNSHIPPED: shop.Order = {**ORDER, "status": "processing", "shipped_on": None, "delivered_on": None}
SMALL: shop.Refund = {**REFUND, "verdict": "not_shipped", "amount_cents": 5000, "until": None, "needs_approval": False}


def failed(draft: Draft) -> set[str]:
    """The checks that a draft does not pass."""
    return {check.name for check in replies.checks(draft) if not check.passed}


@pytest.mark.parametrize(
    ("draft", "said"),
    [
        (replies.refunded(ORDER, STOCK, REFUND, ISSUED), "I have refunded $1,249.00"),
        (replies.refunded(ORDER, None, REFUND, ISSUED), "after a colleague approved it"),
        (replies.refunded(UNSHIPPED, STOCK, SMALL, {**ISSUED, "amount_cents": 5000}), "The order is cancelled"),
        (replies.not_approved(ORDER, STOCK, REFUND, False, "Worn\nand scratched."), "wrote: “Worn and scratched.”"),
        (replies.not_approved(ORDER, STOCK, REFUND, False, None), "it was denied, so no refund was issued"),
        (replies.not_approved(ORDER, STOCK, REFUND, False, " "), "it was denied, so no refund was issued"),
        (replies.not_approved(ORDER, None, REFUND, True, None), "nobody decided about it in time"),
        (replies.no_longer_refundable(ORDER, STOCK, REFUND), "issued no refund myself"),
        (replies.refund_failed(ORDER, STOCK, REFUND), "I cannot confirm it"),
    ],
)
def test_every_outcome_has_a_reply_that_passes_its_checks(draft: Draft, said: str) -> None:
    assert said in draft.text
    assert 60 <= len(draft.text.split()) <= 120, draft.text
    assert failed(draft) == set()
    assert ("have refunded" in draft.text) == (draft.refunded is not None)


@pytest.mark.parametrize(
    "draft",
    [
        replace(replies.refunded(ORDER, STOCK, REFUND, ISSUED), refunded=None),
        replace(replies.refunded(ORDER, STOCK, REFUND, ISSUED), refunded="$1.00"),
        Draft(
            "We have refunded $5.00 for #1. I have refunded $7.00 too.", "#1", frozenset({"$5.00", "$7.00"}), "$5.00"
        ),
    ],
)
def test_a_reply_that_says_to_have_refunded_what_no_row_says_fails_its_check(draft: Draft) -> None:
    assert failed(draft) == {"no_promises_beyond_the_policy"}


def test_what_a_colleague_wrote_is_quoted_and_not_held_against_the_reply() -> None:
    comment = "We guarantee nothing; $99.00 would have been fine"
    draft = replies.not_approved(ORDER, STOCK, REFUND, False, comment)
    assert comment in draft.text
    assert failed(draft) == set()
    assert failed(replace(draft, quote="")) == {"amounts_are_sourced", "no_promises_beyond_the_policy"}
