"""What a customer's message asks for."""

import pytest

from workers.agents.support import questions


@pytest.mark.parametrize(
    "message",
    [
        "I want a refund for order 48291",
        "i want a refund for order 48291.",
        "I WANT A REFUND FOR ORDER 48291!!!",
        "I would like a refund for order #48291, please.",
        "I’d like a refund for order 48291",
        "I'd really like to be refunded for order 48291",
        "Can I get a refund for order 48291?",
        "Hello, could I please have a refund for order 48291?",
        "Hi, can I have my money back for #48291?",
        "May I have a refund for 48291?",
        "please refund 48291",
        "Refund order 48291",
        "refund for order 48291 please",
        "A full refund for order 48291, please.",
        "I want my money back for order 48291",
        "Could you refund my order 48291?",
        "I would be glad if you could refund order 48291.",
        "Order 48291: please refund it.",
        "Give me my money back, order 48291!",
        "I am requesting a refund for order 48291",
        "Requesting a refund for #48291",
        "We request reimbursement of order 48291",
        "I need order 48291 refunded.",
        "Please issue a refund for order 48291",
        "I want you to refund order 48291",
        "The desk of order 48291 is not what I ordered and I want a refund",
        "Order 48291 arrived broken, so please refund me",
        "I want a refund for order 48291 because it is not what I ordered",
        "I would like a refund for order 48291 if possible.",
        "I want a refund for order 48291. Is that possible?",
        "Where is order 48292? If it is lost I want a refund.",
    ],
)
def test_who_asks_for_a_refund_is_understood(message: str) -> None:
    assert questions.asks_for_refund(message)


@pytest.mark.parametrize(
    "message",
    [
        "Where is order 48291?",
        "What about #48291?",
        "I want order 48291 delivered",
        "Can order 48291 be refunded?",
        "Can I still get a refund for order 48291?",
        "Is order 48291 refundable?",
        "Am I entitled to a refund for order 48291?",
        "Is a refund possible for order 48291?",
        "Refund possible for order 48291?",
        "Refund status of order 48298?",
        "Until when can I get a refund for order 48291?",
        "How do I get a refund for order 48291?",
        "How can I get a refund for order 48291?",
        "When will I get my refund for order 48298?",
        "Where is my refund for order 48298?",
        "Has order 48298 been refunded?",
        "Did you refund order 48298?",
        "What is your refund policy for order 48291?",
        "I do not want a refund for order 48291",
        "I don't want a refund for order 48291, only another desk.",
        "Please do not refund order 48291.",
        "I want another desk instead of a refund for order 48291.",
        "I want to know whether order 48291 can be refunded",
        "I would like to know if I can get a refund for order 48291",
        "I have a question about a refund of order 48291",
        "I need the status of my refund of order 48298",
        "Could you tell me whether I can get a refund for order 48291?",
        "I got a refund for order 48298, thank you.",
        "My refund for order 48298 has not arrived",
    ],
)
def test_who_asks_about_an_order_or_about_refunds_is_not_refunded(message: str) -> None:
    assert not questions.asks_for_refund(message)


@pytest.mark.parametrize(
    ("message", "number"),
    [
        ("Where is order 48291?", 48291),
        ("order #48291 please", 48291),
        ("ORDER NUMBER: 48291", 48291),
        ("It's #48291.", 48291),
        ("48291", 48291),
        ("I paid $12345 for order no. 48291", 48291),
        ("I ordered 2 lamps on 2026-06-08", None),
        ("I want to order 2 lamps", None),
        ("It cost 12345.67", None),
        ("order 123456789012345", None),
        ("", None),
    ],
)
def test_the_order_number_is_found_where_there_is_one(message: str, number: int | None) -> None:
    assert questions.order_number(message) == number
