"""What a customer's message asks for: about which order, and whether for a refund. Pure: text in, answers out.

A refund is issued only where it is plainly asked for. Who asks *about* refunds (whether, until when, how) gets an
answer, not money.
"""

import re

_NUMBERED = re.compile(r"(?:#|\border(?:\s+(?:number|no\.?|id))?[\s:#]*)([0-9]{3,9})\b", re.IGNORECASE)
_BARE = re.compile(r"(?<![0-9.,$€£-])\b([0-9]{5})\b(?![.,-]?[0-9])")

_CLAUSE = (
    r"(?:^|[.!?,;:\n–—-]|\b(?:and|so|but|then|therefore|please|hello|hi|glad|grateful|happy|appreciate\s+it)\b)\s*"
)
_SOFTLY = r"(?:(?:please|kindly|really|just|also|now|hereby|therefore)\s+)*"
# What may stand between the asking and the refund: not a turn to another question, and not the end of the sentence.
_TURN = r"about|if|how|information|instead|know|not|rather|status|understand|until|when|where|whether|why|without"
_BETWEEN = rf"(?:(?!\b(?:{_TURN})\b)[^.!?\n]){{0,60}}?"
# What makes "refund" a word about refunds: "refund policy", "refund possible", "the refund has not arrived".
_TALK = r"date|deadline|did|eligib\w*|has\w*|is|isn|not|policy|possible|question|rules?|status|until|was\w*|when|window"
_REFUND = rf"\b(?:refund(?:ed)?(?!\s+(?:{_TALK})\b)|reimburse(?:d|ment)?|money\s+back)\b"

_WANTING = rf"\b(?:i|we)(?:\s*['’]d|\s+would|\s*['’]m|\s+am|\s*['’]re|\s+are)?\s+{_SOFTLY}"
_WANT = r"(?:want|need|like|demand|demanding|request|requesting|claim|claiming|ask|asking|rather\s+have)\b"
_MAY_I = r"(?:can|could|may|might)\s+(?:i|we)\s+"
_CAN_YOU = r"(?:(?:can|could|would|will)\s+you|if\s+you\s+(?:can|could|would))\s+"
_DO = r"(?:arrange|give|initiate|issue|make|pay|process|requesting|send|start)\b"
_REFUND_REQUESTS = re.compile(
    "|".join(
        (
            f"{_WANTING}{_WANT}{_BETWEEN}{_REFUND}",  # I would like a refund; we want to be refunded
            rf"{_CLAUSE}{_MAY_I}{_SOFTLY}(?:get|have|claim|request|ask)\b{_BETWEEN}{_REFUND}",  # may I have a refund
            rf"{_CLAUSE}(?:{_CAN_YOU})?{_SOFTLY}(?:a\s+|full\s+)*{_REFUND}",  # could you refund; a refund, please
            rf"{_CLAUSE}(?:{_CAN_YOU})?{_SOFTLY}{_DO}{_BETWEEN}{_REFUND}",  # give me my money back
        )
    ),
    re.IGNORECASE,
)


def order_number(message: str) -> int | None:
    """The order that a customer writes about: what follows "#" or "order", else a number of five digits."""
    found = _NUMBERED.search(message) or _BARE.search(message)
    return int(found[1]) if found else None


def asks_for_refund(message: str) -> bool:
    """Whether a customer asks to be refunded, rather than about an order or about refunds."""
    return _REFUND_REQUESTS.search(message) is not None
