"""Which names name a secret: of fields, parameters, headers, variables and flags, however they are spelled. Pure.

A name is split into words: `userTokensById`, `user-tokens-by-id` and `USER_TOKENS_BY_ID` are the same four. Some words
name a secret wherever they stand, others only at the end; a name that ends as that of a fact *about* a secret does
(`password_changed_at`, `signature_date`, `token_count`) names none.
"""

import re
from functools import lru_cache

NAME_MAX_CHARS = 200
"""Of a name that is looked at; what is longer is judged by its end."""

_HINT = re.compile(
    r"pass|pw|secret|token|jwt|otp|credential|auth|cookie|key|card|bearer|sig|hmac|cvv|cvc|ssn|iban|pin|dsn",
    re.IGNORECASE,
)
"""Most names have none of these, and a payload may have very many."""
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
"""Between words. No word begins after the digits of an id: `run_01M8NM2PW9` has none that is `PW9`."""
_ANYWHERE = re.compile(
    r"(?:^|_)(?:[a-z0-9]*(?:pass(?:word|wd|phrase|code)s?|secrets?|tokens?|credentials?|cookies?)|[a-z]*pwds?|pw|jwts?"
    r"|t?otps?"
    r"|authorization|bearer|api_?keys?|card_?numbers?|(?:access|private|encryption|signing|master|account|service|ssh"
    r"|session|shared|deploy|subscription|stripe|license)_?keys?)\d*(?=_|$)"
)
_AT_THE_END = re.compile(
    r"(?:^|_)(?:pass|o?auth|signatures?|sig|hmac|cvv|cvc|ssn|iban|pin_code|dsn)"
    r"(?:_(?:v?\d+|hash|value|header|code|data|raw|text|string|by_[a-z]+(?:_[a-z]+)?))*$"
)
"""And what may follow them: `auth_header`, `signatures_by_id`."""
_FACT = re.compile(
    r"_(?:at|on|date|time|day|count|number|limit|max|min|used|usage|left|total|per_[a-z]+|length|size|bytes|type|kind"
    r"|name|method|algorithm|policy|url|uri|required|enabled|expired|expires|expiry|expiration|ttl|age|status|state"
    r"|valid|version|rate|cost|price|budget)$"
)
"""What is told about a secret, or counted of it."""
_HARMLESS = re.compile(
    r"(?:public|function|method|call|type)_signatures?|[a-z_]*public_keys?|(?:has|is|needs|no)_.*"
    r"|(?:(?:input|output|max|total|prompt|completion|cached|reasoning|before|after)_)+tokens"
)
_COUNTED = re.compile(r"(?:^|_)[a-z]*tokens(?=_|$)")
"""Tokens are also what models count: a number under such a name is a count."""
_CARD_NUMBER = re.compile(r"(?:^|_)card_?numbers?$")


def is_secret(name: str, value: object = "") -> bool:
    """Whether the value under a name is a secret.

    :param value: what stands there: numbers, and what is made of numbers only, are counts under `…tokens`.
    """
    if not _HINT.search(name):
        return False
    secret, counted = _judge(name[-NAME_MAX_CHARS:])
    return secret and not (counted and _is_count(value))


@lru_cache(maxsize=4_096)
def _judge(name: str) -> tuple[bool, bool]:
    """Whether it names a secret, unless what stands there is a count, and whether it may be one."""
    words = _WORDS.sub("_", name).strip("_").lower()
    if not (_ANYWHERE.search(words) or _AT_THE_END.search(words)) or _HARMLESS.fullmatch(words):
        return False, False
    if _FACT.search(words) and not _CARD_NUMBER.search(words):
        return False, False
    return True, bool(_COUNTED.search(words))


def _is_count(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_count(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_is_count(item) for item in value)
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and value.isdigit())
