"""The report on a customer. Slow: it asks three old systems, one after the other, and writes paragraph by paragraph."""

import os
import time

from runtail import current_run

PAUSE_SECONDS = float(os.environ.get("REPORT_PAUSE_SECONDS", "1.5"))
ORDERS = {"ann": [("desk", 480), ("lamp", 60), ("chair", 210)], "bob": [("desk", 480)]}


def make_report(customer):
    """What the customer has ordered, what it comes to, and what to say about it."""
    run = current_run()  # outside a run its verbs do what they wrap, and tell nobody
    with run.step("Read the orders"):
        orders = read_orders(customer)
    with run.step("Add them up"):
        total = add_up(orders)
    with run.step("Write the report"):
        text = run.stream(paragraphs(customer, orders, total))
    return {"customer": customer, "total": total, "text": text}


def read_orders(customer):
    time.sleep(PAUSE_SECONDS)
    return ORDERS.get(customer, [])


def add_up(orders):
    time.sleep(PAUSE_SECONDS)
    return sum(price for _, price in orders)


def paragraphs(customer, orders, total):
    yield f"{customer.title()} has ordered {len(orders)} times.\n"
    for thing, price in orders:
        time.sleep(PAUSE_SECONDS)
        yield f"A {thing}, for {price} euros.\n"
    yield f"That makes {total} euros.\n"
