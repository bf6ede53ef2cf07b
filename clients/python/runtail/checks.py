"""What is given to the verbs of a run, checked where it is given: the table is at the end. Pure.

`what` names the call and its argument, as in `run.sleep: seconds`. Each raises InvalidCall with a sentence that begins
like that.
"""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from numbers import Real
from os import PathLike, fspath
from typing import Any, TypeAlias

from runtail.errors import InvalidCall
from runtail.texts import clean_text
from runtail.values import MAX_INT

Rule: TypeAlias = Callable[[object, str], Any]
"""Takes a value and what it is; returns it as it is used, or raises InvalidCall."""

CUSTOM_TYPE = re.compile(r"custom\.[a-z0-9_.-]{1,100}")
"""Of an event of somebody's own."""
TEXT_MAX_CHARS = 900_000
"""Of a title, a label, a note: about what fits into an event. What a message says may be of any length."""
SECONDS_MAX = 100 * 365 * 86_400
"""A hundred years: no wait is longer."""
TIMES_MAX = 1_000_000
AMOUNT_MAX = 10**12


def raw_text(value: object, what: str) -> str:
    """A text as it is; one of a subclass, such as an Enum's member, is the text that it is made of.

    What behaves as a text, such as a translation that is looked up when it is wanted, is the text that it gives.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if hasattr(type(value), "casefold") and hasattr(type(value), "encode"):
        return str(value)
    raise InvalidCall(f"{what} is a text, not {_kind(value)}.")


def text(value: object, what: str) -> str:
    """A text of at most TEXT_MAX_CHARS, without NUL and lone surrogates."""
    found = raw_text(value, what)
    if len(found) > TEXT_MAX_CHARS:
        raise InvalidCall(f"{what} has {len(found):,} characters; it may have {TEXT_MAX_CHARS:,}.")
    return clean_text(found)


def optional(rule: Rule) -> Rule:
    """The rule for what may be None, too."""

    def check(value: object, what: str) -> Any:
        return None if value is None else rule(value, what)

    return check


may_text = optional(text)


def one_of(*choices: str) -> Rule:
    """One of these texts."""

    def check(value: object, what: str) -> str:
        found = text(value, what)
        if found not in choices:
            raise InvalidCall(f"{what} is {', '.join(choices[:-1])} or {choices[-1]}, not {found[:40]!r}.")
        return found

    return check


def texts(value: object, what: str) -> list[str]:
    """Several texts; one text is not taken for its letters."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidCall(f"{what} are several texts, not {_kind(value)}.")
    return [text(item, what) for item in value]


def number(value: object, what: str) -> float:
    """A finite number."""
    if type(value) is bool or not isinstance(value, Real | Decimal):
        raise InvalidCall(f"{what} is a number, not {_kind(value)}.")
    try:
        found = float(value)
    except (OverflowError, ValueError):
        found = math.inf
    if not math.isfinite(found):
        raise InvalidCall(f"{what} is not a finite number.")
    return found


def seconds(value: object, what: str) -> float:
    """A time, as a number or a timedelta, at most SECONDS_MAX; what lies in the past is now."""
    found = value.total_seconds() if isinstance(value, timedelta) else number(value, what)
    if found > SECONDS_MAX:
        raise InvalidCall(f"{what} is more than {SECONDS_MAX:,}, a hundred years.")
    return max(0.0, found)


def fraction(value: object, what: str) -> float:
    """A number, or the nearer of 0 and 1."""
    return min(1.0, max(0.0, number(value, what)))


def amount(value: object, what: str) -> int | float:
    """A finite number, as it is; at most AMOUNT_MAX to either side."""
    found = number(value, what)
    if abs(found) > AMOUNT_MAX:
        raise InvalidCall(f"{what} is beyond ±{AMOUNT_MAX:,}.")
    return int(value) if isinstance(value, int) else found


def cost(value: object, what: str) -> int | float:
    """As `amount`, from 0 on."""
    found = amount(value, what)
    if found < 0:
        raise InvalidCall(f"{what} is a number from 0.")
    return found


def count(value: object, what: str) -> int:
    """A whole number from 0 to 2^53-1."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_INT:
        raise InvalidCall(f"{what} is a whole number from 0 to 2^53-1.")
    return int(value)


def flag(value: object, what: str) -> bool:
    """True or False, also as 1 or 0, and as numpy has them."""
    if isinstance(value, int) or type(value).__name__ == "bool_":
        return bool(value)
    raise InvalidCall(f"{what} is True or False, not {_kind(value)}.")


def times(value: object, what: str) -> int:
    """How often: a whole number from 0 on."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= TIMES_MAX:
        raise InvalidCall(f"{what} is a whole number from 0 to {TIMES_MAX:,}.")
    return int(value)


def function(value: object, what: str) -> Callable[..., Any]:
    """Something that can be called."""
    if not callable(value):
        raise InvalidCall(f"{what} is a function, not {_kind(value)}.")
    return value


def iterable(value: object, what: str) -> Iterable[Any]:
    """Something that a loop can go through."""
    if not isinstance(value, Iterable):
        raise InvalidCall(f"{what} is something that yields texts, not {_kind(value)}.")
    return value


def program(argv: object, what: str) -> Sequence[Any]:
    """A program and its arguments: texts or paths."""
    if isinstance(argv, str | bytes | PathLike) or not isinstance(argv, Sequence) or not argv:
        raise InvalidCall(f"{what} is a list that begins with a program, not {_kind(argv)}.")
    for argument in argv:
        for_system(argument, what)
    return argv


def for_system(value: object, what: str) -> str:
    """A text or a path that the system takes: it ends texts at NUL."""
    found = fspath(value) if isinstance(value, PathLike) else value
    if not isinstance(found, str):
        raise InvalidCall(f"{what}: a text is wanted, not {_kind(value)}.")
    if "\0" in found:
        raise InvalidCall(f"{what}: a text holds NUL, which no program can be given.")
    try:
        os.fsencode(found)
    except UnicodeEncodeError:
        raise InvalidCall(f"{what}: a text holds half of a surrogate pair, which no program can be given.") from None
    return found


def mapping(value: object, what: str) -> Mapping[str, Any]:
    """A mapping whose keys are texts."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidCall(f"{what} is a mapping with texts for its keys.")
    return value


def environment(value: object, what: str) -> Mapping[str, Any]:
    """The environment of a program."""
    found = mapping(value, what)
    for pair in found.items():
        for part in pair:
            for_system(part, what)
    return found


VERBS: Mapping[str, Mapping[str, Rule]] = {
    "plan": {"titles": texts},
    "step": {"title": text, "id": may_text, "timeout_s": optional(seconds)},
    "progress": {"fraction": fraction, "label": may_text},
    "tool": {
        "name": text,
        "function": function,
        "label": may_text,
        "summary": optional(mapping),
        "retries": times,
        "backoff": seconds,
    },
    "exec": {
        "argv": program,
        "input": optional(raw_text),
        "timeout_s": optional(seconds),
        "cwd": optional(for_system),
        "env": optional(environment),
        "label": may_text,
    },
    "message": {"role": one_of("assistant", "system", "tool", "user")},
    "stream": {"texts": iterable},
    "source": {"title": text, "url": may_text, "snippet": may_text},
    "check": {"name": text, "passed": flag, "score": optional(amount), "note": may_text},
    "usage": {
        "input_tokens": optional(count),
        "output_tokens": optional(count),
        "cost": optional(cost),
        "budget_used_pct": optional(amount),
    },
    "emit": {"type": text, "payload": mapping},
    "approve": {
        "label": text,
        "tool_call_id": may_text,
        "expires_in": optional(seconds),
        "requires": one_of("owner", "operator"),
        "id": may_text,
    },
    "inputs": {"wait": flag},
    "sleep": {"seconds": seconds},
}
"""What each argument of each verb may be."""


def _untitled(value: object) -> str:
    return UNTITLED


def _usable_titles(value: object) -> list[str]:
    """As many titles as were given: whoever gets the ids of the steps may count on it."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return []
    return [item if isinstance(item, str) and len(item) <= TEXT_MAX_CHARS else UNTITLED for item in value]


UNTITLED = "…"
USABLE: Mapping[tuple[str, str], Callable[[object], Any]] = {
    ("plan", "titles"): _usable_titles,
    ("step", "title"): _untitled,
    ("step", "id"): lambda value: None,
    ("tool", "name"): _untitled,
    ("tool", "label"): lambda value: None,
    ("tool", "summary"): lambda value: None,
    ("tool", "retries"): lambda value: 0,
    ("tool", "backoff"): lambda value: 1.0,
    ("exec", "label"): lambda value: None,
    ("message", "role"): lambda value: "assistant",
    ("approve", "label"): _untitled,
    ("approve", "tool_call_id"): lambda value: None,
    ("approve", "id"): lambda value: None,
    ("inputs", "wait"): bool,
}
"""What stands in for an argument that was refused without being raised, which is so in a job: it does its work whatever
it says of it. Of the arguments that are not here the work itself depends."""


def arguments(
    verb: str, of: str = "", refuse: Callable[[InvalidCall], None] | None = None, /, **values: object
) -> dict[str, Any]:
    """The arguments of a verb as they are used, by name.

    :param of: which call of the verb, for the sentence.
    :param refuse: is told of one that cannot be used, and raises that, or has something stand in for it.
    :raises InvalidCall: one of them cannot be used; the sentence names verb and argument.
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        try:
            found[name] = VERBS[verb][name](value, f"run.{verb}{of}: {name}")
        except InvalidCall as error:
            if refuse is None or (verb, name) not in USABLE:
                raise
            refuse(error)
            found[name] = USABLE[verb, name](value)
    return found


def _kind(value: object) -> str:
    return f"a {type(value).__name__}" if value is not None else "None"
