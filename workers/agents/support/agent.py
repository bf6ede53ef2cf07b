"""`support`: a tier-one support agent, the worked example. Deterministic: rules and real rows instead of a model.

It looks up the order, checks its stock and its refund, writes a reply word by word and checks what it wrote. Each
lookup is one step around one tool call and leaves a source behind. A tool that fails costs its part of the reply,
not the run. Asked for a refund that the policy allows, it issues it, a large one once an operator has approved it.
Not responsible for understanding the message (`questions`), for the rows (`shop`) nor for the wording (`replies`).
"""

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import TypeVar

from marshmallow import RAISE, Schema, fields
from marshmallow.validate import Length, OneOf, Range

from runtail import Approval, Run, ToolError, agent
from workers.agents.support import questions, replies, shop
from workers.agents.support.replies import Draft

A = TypeVar("A")
T = TypeVar("T")

INVENTORY, REFUND, WRITE, CHECK = "Check inventory", "Check refund eligibility", "Draft the reply", "Check the draft"
APPROVAL, ISSUE = "Get approval for the refund", "Issue the refund"
NOT_REFUNDABLE = "not_refundable"
APPROVAL_TIME = timedelta(hours=24)
"""How long an operator may take to decide about a refund."""
ISSUE_RETRIES, ISSUE_BACKOFF_SECONDS = 2, 1.0
WORD_SECONDS = 0.025
WORDS_PER_PROGRESS = 20
PROMPT_TOKENS, CHARS_PER_TOKEN = 640, 4


@dataclass(frozen=True, slots=True)
class System:
    """One of the shop's systems: how long an answer takes at `latency_scale` 1, and what happens meanwhile."""

    name: str
    seconds: float
    stages: tuple[str, ...]


ORDERS = System("order", 2.1, ("Searching", "Reading the items", "Reading the shipments"))
WAREHOUSE = System("inventory", 3.4, ("Reaching the warehouse", "Counting", "Counting returns", "Adding up"))
REFUNDS = System("refund", 2.7, ("Reading the policy", "Comparing dates", "Looking for earlier refunds"))
PAYMENTS = System("payment", 1.8, ("Reaching the payment system", "Issuing the refund", "Waiting for the receipt"))


class SupportInput(Schema):
    """What the customer wrote, and two knobs for demonstrations."""

    class Meta:
        unknown = RAISE

    message = fields.String(required=True, validate=Length(1, 4_000))
    latency_scale = fields.Float(load_default=1, validate=Range(0, 10))
    fail_tool = fields.String(validate=OneOf([system.name for system in (ORDERS, WAREHOUSE, REFUNDS, PAYMENTS)]))


@agent("support", input=SupportInput)
def support(run: Run) -> None:
    """Answer a customer. Nothing is returned: the output is built from the message, its sources and its checks."""
    draft = _investigate(run)
    _write(run, draft)
    _check(run, draft)


def _investigate(run: Run) -> Draft:
    order_id = questions.order_number(run.input["message"])
    if order_id is None:
        run.plan([WRITE, CHECK])
        return replies.without_number()
    look_up = f"Look up order #{order_id}"
    run.plan([look_up, INVENTORY, REFUND, WRITE, CHECK])
    try:
        order = _look_up_order(run, order_id)
    except ToolError:
        run.plan([look_up, WRITE, CHECK])
        return replies.lookup_failed(order_id)
    if order is None:
        run.plan([look_up, WRITE, CHECK])
        return replies.unknown_order(order_id)
    stock = refund = None
    with suppress(ToolError):
        stock = _check_inventory(run, order)
    with suppress(ToolError):
        refund = _check_refund(run, order)
    if refund is not None and refund["eligible"] and questions.asks_for_refund(run.input["message"]):
        return _refund_order(run, order, stock, refund)
    return replies.about(order, stock, refund)


def _refund_order(run: Run, order: shop.Order, stock: shop.Stock | None, refund: shop.Refund) -> Draft:
    before = [f"Look up order #{order['id']}", INVENTORY, REFUND, *([APPROVAL] if refund["needs_approval"] else [])]
    run.plan([*before, ISSUE, WRITE, CHECK])
    if refund["needs_approval"]:
        approval = _get_approval(run, refund)
        if not approval.approved:
            run.plan([*before, WRITE, CHECK])
            expired = approval.decision == "expired"
            return replies.not_approved(order, stock, refund, expired, approval.comment)
    try:
        issued = _issue_refund(run, refund)
    except ToolError as error:
        said = replies.no_longer_refundable if error.code == NOT_REFUNDABLE else replies.refund_failed
        return said(order, stock, refund)
    return replies.refunded(order, stock, refund, issued)


# Each lookup: a step, a tool, a source.


def _look_up_order(run: Run, order_id: int) -> shop.Order | None:
    with run.step(f"Look up order #{order_id}"):
        label = f"Looking up order #{order_id}"
        order = run.tool("look_up_order", _order, run, order_id, label=label, summary={"order_id": order_id})
        if order is not None:
            run.source(f"Order #{order_id}", snippet=replies.order_in_short(order))
    return order


def _check_inventory(run: Run, order: shop.Order) -> shop.Stock:
    with run.step(INVENTORY):
        label, sku = f"Checking the stock of {order['product']}", order["sku"]
        stock = run.tool("check_inventory", _stock, run, sku, label=label, summary={"sku": sku})
        run.source(f"Inventory of {stock['product']}", snippet=replies.stock_in_short(stock))
    return stock


def _check_refund(run: Run, order: shop.Order) -> shop.Refund:
    with run.step(REFUND):
        order_id = order["id"]
        label = f"Checking whether order #{order_id} can be refunded"
        refund = run.tool("check_refund", _refund, run, order_id, label=label, summary={"order_id": order_id})
        run.source(f"Refunds of order #{order_id}", snippet=replies.refund_in_short(refund))
    return refund


# The refund.


def _get_approval(run: Run, refund: shop.Refund) -> Approval:
    with run.step(APPROVAL):
        label = f"Refund {replies.refund_in_words(refund)}"
        return run.approve(label, requires="operator", expires_in=APPROVAL_TIME)


def _issue_refund(run: Run, refund: shop.Refund) -> shop.IssuedRefund:
    with run.step(ISSUE):
        order_id, amount_cents = refund["order_id"], refund["amount_cents"]
        issued = run.tool(
            "issue_refund",
            _issue,
            run,
            order_id,
            amount_cents,
            label=f"Refunding {replies.refund_in_words(refund)}",
            summary={"order_id": order_id, "amount_cents": amount_cents},
            retries=ISSUE_RETRIES,
            backoff=ISSUE_BACKOFF_SECONDS * run.input["latency_scale"],
        )
        run.source(f"Refund of order #{order_id}", snippet=replies.issued_in_short(issued))
    return issued


# The tools.


def _order(run: Run, order_id: int) -> shop.Order | None:
    return _ask(run, ORDERS, shop.find_order, order_id)


def _stock(run: Run, sku: str) -> shop.Stock:
    return _ask(run, WAREHOUSE, shop.find_stock, sku)


def _refund(run: Run, order_id: int) -> shop.Refund:
    return _ask(run, REFUNDS, shop.check_refund, order_id)


def _issue(run: Run, order_id: int, amount_cents: int) -> shop.IssuedRefund:
    """The run's key for this call is the refund's reference: however often the call is made, there is one refund."""
    issue = partial(shop.issue_refund, order_id, amount_cents)
    try:
        return _ask(run, PAYMENTS, issue, run.idempotency_key)
    except shop.NotRefundable as error:
        raise ToolError(NOT_REFUNDABLE, f"Order #{order_id} has not that much left to refund.") from error


def _ask(run: Run, system: System, question: Callable[[A], T], about: A) -> T:
    """Take the system's time in view of the user, then ask it."""
    for n, stage in enumerate(system.stages):
        run.progress(n / len(system.stages), stage)
        _wait(run, system.seconds / len(system.stages))
        if run.input.get("fail_tool") == system.name and n == len(system.stages) // 2:
            raise _unavailable(system)
    try:
        return question(about)
    except shop.ShopUnavailable as error:
        raise _unavailable(system) from error


def _unavailable(system: System) -> ToolError:
    return ToolError(f"{system.name}_unavailable", f"The {system.name} system did not answer.", retryable=True)


# The reply.


def _write(run: Run, draft: Draft) -> None:
    with run.step(WRITE):
        run.stream(_word_by_word(run, draft.text))
        read = PROMPT_TOKENS + len(run.input["message"]) // CHARS_PER_TOKEN
        run.usage(input_tokens=read, output_tokens=len(draft.text) // CHARS_PER_TOKEN)


def _word_by_word(run: Run, text: str) -> Iterator[str]:
    words = re.findall(r"\S+\s*", text)
    for n, word in enumerate(words):
        if n % WORDS_PER_PROGRESS == 0:
            run.progress(n / len(words), f"{n} of {len(words)} words")
        _wait(run, WORD_SECONDS)
        yield word


def _check(run: Run, draft: Draft) -> None:
    with run.step(CHECK):
        for check in replies.checks(draft):
            run.check(check.name, check.passed, check.score, check.note)


def _wait(run: Run, seconds: float) -> None:
    if run.input["latency_scale"]:
        run.sleep(seconds * run.input["latency_scale"])
