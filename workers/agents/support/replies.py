"""What the `support` agent says: sentences made of the shop's rows, and the checks that hold them against the rows.

Pure: rows in, text out. Where a row could not be read, the reply says so instead of guessing.
"""

import re
from dataclasses import dataclass, replace
from datetime import date

from workers.agents.support.shop import APPROVAL_CENTS, REFUND_DAYS, IssuedRefund, Order, Refund, Stock

PROMISES = ("guarantee", "promise", "definitely", "have refunded", "will refund", "compensat", "free of charge")
"""What a tier-one reply must not say: nothing of it is in the policy. That it refunded something, only with a row."""

_MONEY = re.compile(r"\$[0-9][0-9,]*\.[0-9]{2}")


@dataclass(frozen=True, slots=True)
class Draft:
    """A reply, and what it may be checked against."""

    text: str
    subject: str
    """What it has to mention."""
    amounts: frozenset[str] = frozenset()
    """Every sum of money that it may name."""
    refunded: str | None = None
    """The one sum that it may say to have refunded: that of a row in `shop_refunds`."""
    quote: str = ""
    """What somebody else wrote, with its quotation marks: quoted, not said."""


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check; score is 0 to 1."""

    name: str
    passed: bool
    score: float
    note: str


# Rows in short.


def order_in_short(order: Order) -> str:
    return f"{_items(order)}, {_usd(order['total_cents'])}, {order['status']}, ordered on {_day(order['ordered_on'])}"


def stock_in_short(stock: Stock) -> str:
    return f"{stock['in_stock']} in stock, {_restock(stock)}"


def refund_in_short(refund: Refund) -> str:
    return f"{_usd(refund['refunded_cents'])} refunded so far, {_usd(refund['amount_cents'])} can be refunded"


def issued_in_short(issued: IssuedRefund) -> str:
    return f"{_usd(issued['amount_cents'])} refunded on {_day(issued['refunded_on'])}"


def refund_in_words(refund: Refund) -> str:
    """What would be refunded, for whoever has to approve it."""
    return f"{_usd(refund['amount_cents'])} for order #{refund['order_id']}"


# Replies.


def without_number() -> Draft:
    """The message names no order."""
    text = """\
Thank you for your message. I would like to look into this for you, but I could not find an order number in what \
you wrote. It has five digits and looks like this: #48291. Could you send it to me? With the order number I can \
tell you when your order was shipped and delivered, whether the product is in stock, and whether your order can \
still be refunded, and until when."""
    return Draft(text, "order number")


def unknown_order(order_id: int) -> Draft:
    """There is no such order."""
    text = f"""\
Thank you for your message. I looked for order #{order_id}, but there is no order with this number in our shop. \
Perhaps two digits have changed places, or you placed the order with another shop; our numbers have five digits. \
Could you compare it with your order confirmation and write to me again? Without the order there is nothing that I \
could say about a delivery or a refund, so I have checked neither our stock nor our refunds."""
    return Draft(text, f"#{order_id}")


def lookup_failed(order_id: int) -> Draft:
    """The order could not be read."""
    text = f"""\
Thank you for your message about order #{order_id}. I am sorry, but I could not look it up just now, because our \
order system did not answer. Without it I cannot tell you where the order is, and I would rather not guess, so I \
have checked neither our stock nor a refund. I have changed nothing about your order. Please write to me again in a \
few minutes, with the same number, and I will look again."""
    return Draft(text, f"#{order_id}")


def about(order: Order, stock: Stock | None, refund: Refund | None) -> Draft:
    """The order was found; what is None could not be checked."""
    return _with(order, refund, _stock(order, stock), _refund(refund))


# Replies to who asked for a refund that was possible. `stock` is None where it could not be checked.


def refunded(order: Order, stock: Stock | None, refund: Refund, issued: IssuedRefund) -> Draft:
    """The refund was issued, which is what its row says."""
    amount = _usd(issued["amount_cents"])
    approved = " after a colleague approved it" if refund["needs_approval"] else ""
    text = f"As you asked, I have refunded {amount} for this order on {_day(issued['refunded_on'])}{approved}."
    if refund["verdict"] == "not_shipped":
        text += " The order is cancelled, so it does not leave our warehouse."
    return replace(_with(order, refund, text, _another(stock)), refunded=amount)


def not_approved(order: Order, stock: Stock | None, refund: Refund, expired: bool, comment: str | None) -> Draft:
    """Somebody had to approve the refund, and denied it or did not decide in time."""
    outcome = "nobody decided about it in time" if expired else "it was denied"
    text = (
        f"You asked for a refund of {_usd(refund['amount_cents'])}. Because that is more than {_usd(APPROVAL_CENTS)}, "
        f"a colleague had to approve it first, and {outcome}, so no refund was issued."
    )
    quote = f"“{' '.join(comment.split())}”" if comment and comment.strip() else ""
    parts = [text, f"Our colleague wrote: {quote}"] if quote else [text]
    if expired:
        parts.append("If you still want the refund, please write to me again, and I will ask anew.")
    return replace(_with(order, refund, *parts, _another(stock)), quote=quote)


def no_longer_refundable(order: Order, stock: Stock | None, refund: Refund) -> Draft:
    """When the refund was to be issued, that amount was no longer left."""
    text = (
        f"You asked for a refund, and when I looked, {_usd(refund['amount_cents'])} could be refunded. In the meantime "
        "that has changed, most likely because another request for the same refund came first, so I have issued no "
        "refund myself."
    )
    return _with(order, refund, text, _another(stock))


def refund_failed(order: Order, stock: Stock | None, refund: Refund) -> Draft:
    """Whether the refund was issued is not known: the answer may be all that was lost."""
    text = (
        f"You asked for a refund, and {_usd(refund['amount_cents'])} can be refunded, but our payment system did not "
        "answer, so I cannot confirm it. Please write to me again in a few minutes: I will look whether the refund was "
        "issued, and it is never issued twice."
    )
    return _with(order, refund, text, _another(stock))


def _with(order: Order, refund: Refund | None, *parts: str) -> Draft:
    """A reply about an order with these parts in its middle."""
    amounts = {order["total_cents"], APPROVAL_CENTS}
    if refund is not None:
        amounts |= {refund["amount_cents"], refund["refunded_cents"]}
    begin = f"Thank you for your message about order #{order['id']}."
    end = "If you have another question about this order, simply reply to this message."
    text = " ".join(part for part in (begin, _whereabouts(order), *parts, end) if part)
    return Draft(text, f"#{order['id']}", frozenset(_usd(cents) for cents in amounts))


def _another(stock: Stock | None) -> str:
    if stock is None or not stock["in_stock"]:
        return ""
    return f"Should you need another {stock['product']}, we have {stock['in_stock']} in stock right now."


def _whereabouts(order: Order) -> str:
    begin = f"You ordered {_items(order)} for {_usd(order['total_cents'])} on {_day(order['ordered_on'])}"
    shipped, delivered = order["shipped_on"], order["delivered_on"]
    if order["status"] == "cancelled":
        return f"{begin}, and that order was cancelled before it was shipped."
    if delivered:
        return f"{begin}, and it was delivered on {_day(delivered)}."
    if shipped:
        return f"{begin}. It left our warehouse on {_day(shipped)} and is on its way to you."
    return f"{begin}. It is being prepared and has not left our warehouse yet."


def _stock(order: Order, stock: Stock | None) -> str:
    if stock is None:
        return (
            f"I could not check our stock of the {order['product']} just now, because the warehouse system did not "
            "answer; please ask me again in a few minutes if you need to know."
        )
    return _another(stock) or f"The {stock['product']} is sold out at the moment, and {_restock(stock)}."


def _restock(stock: Stock) -> str:
    if stock["restock_on"]:
        return f"the next delivery is expected on {_day(stock['restock_on'])}"
    return "no further delivery is planned yet"


def _refund(refund: Refund | None) -> str:
    if refund is None:
        return (
            "I could not check just now whether a refund is possible, because the refund system did not answer; "
            "please ask me again in a few minutes."
        )
    amount, until = _usd(refund["amount_cents"]), _day(refund["until"]) if refund["until"] else ""
    match refund["verdict"]:
        case "returnable":
            text = f"Your order is within our {REFUND_DAYS} days for refunds: until {until} we can refund {amount}."
        case "not_shipped":
            text = f"As your order has not been shipped, it can still be cancelled and {amount} be refunded."
        case "in_transit":
            text = f"A refund is possible once your order has arrived, within {REFUND_DAYS} days of its delivery."
        case "too_late":
            text = f"Our {REFUND_DAYS} days for refunds ended on {until}, so your order can no longer be refunded."
        case "already_refunded":
            text = f"{_usd(refund['refunded_cents'])} was refunded for it, so there is nothing left to refund."
        case "cancelled":
            text = "Cancelled orders are not charged, so there is nothing to refund."
    return text + _earlier(refund) + _approval(refund)


def _earlier(refund: Refund) -> str:
    if refund["refunded_cents"] and refund["verdict"] != "already_refunded":
        return f" {_usd(refund['refunded_cents'])} of the price was refunded earlier."
    return ""


def _approval(refund: Refund) -> str:
    if refund["needs_approval"]:
        return f" Because that is more than {_usd(APPROVAL_CENTS)}, a colleague has to approve it first."
    return ""


# Checks.


def checks(draft: Draft) -> list[Check]:
    """Whether the reply is about the right thing, names only sums from the rows, and promises nothing."""
    said = draft.text.replace(draft.quote, "") if draft.quote else draft.text
    named = _MONEY.findall(said)
    unknown = [amount for amount in named if amount not in draft.amounts]
    unproven = said.replace(f"have refunded {draft.refunded} ", "") if draft.refunded else said
    promises = [promise for promise in PROMISES if promise in unproven.lower()]
    mentioned = draft.subject in draft.text
    return [
        Check("mentions_the_order", mentioned, float(mentioned), f"Looked for {draft.subject!r}."),
        Check(
            "amounts_are_sourced",
            not unknown,
            1 - len(unknown) / max(1, len(named)),
            f"Unknown: {', '.join(unknown)}." if unknown else f"{len(named)} amounts, all from the rows.",
        ),
        Check(
            "no_promises_beyond_the_policy",
            not promises,
            float(not promises),
            f"Found: {', '.join(promises)}." if promises else "None found.",
        ),
    ]


def _items(order: Order) -> str:
    return f"{order['quantity']} × {order['product']}"


def _usd(cents: int) -> str:
    return f"${cents // 100:,}.{cents % 100:02}"


def _day(iso: str) -> str:
    day = date.fromisoformat(iso)
    return f"{day.day} {day:%B %Y}"
