"""What may be shown and stored of arguments and results: secrets replaced, long results cut to a preview. Pure.

Responsible for values by their names, in objects and within texts. Not responsible for which names those are
(`secret_names`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from runtail.secret_names import is_secret
from runtail.texts import clean_text
from runtail.time_limits import out_of_time
from runtail.values import MAX_DEPTH, Json, Turn, clean, dumps, no_turn

SUMMARY_MAX_CHARS = 200
PREVIEW_MAX_BYTES = 2_048
"""Of the preview in UTF-8: a text as it is, anything else as compact JSON."""
REDACTED = "[redacted]"
CUT_BYTES = 1_000
"""What is kept of a longer one, as text; its quotes may double when that text becomes JSON in turn."""

READ_CHARS = 8_000
"""What is looked through of a longer one: each character of a text costs a microsecond or more."""

_PASSWORD_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://[^\s/?#:@\"']{0,200}):[^\s/?#\"']{0,400}@", re.IGNORECASE)
_TOKEN_IN_URL = re.compile(r"(\bhttps?://)[^\s/?#:@\"']{1,400}@", re.IGNORECASE)
_SCHEME = re.compile(r"\b(Bearer|Basic|Digest|Negotiate)[ \t]+[A-Za-z0-9._~+/=-]{6,}", re.IGNORECASE)
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{5,4000}\.[\w-]{5,16000}\.?[\w-]{0,4000}")
_PRIVATE_KEY = re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----)[^-]*")
# What makes a text the value of a name: `name=`, `name: `, `"name": `, `--name `; and how far a value goes.
_NAME = re.compile(
    r"(?P<flag>--?[A-Za-z][\w.-]{0,80})[ \t]{1,3}(?![-=:])"
    r"|(?P<name>[A-Za-z_][\w.\[\]-]{0,80})[\"']?(?:%3D|[ \t]{0,3}[=:][ \t]{0,3}(?!//))"
)
_VALUE = re.compile(r"(?P<quote>[\"']?)(?P<value>(?:(?<=\")[^\"\n]*|(?<=')[^'\n]*|[^\s&;,\"'<>()]+))")
_WHOLE_LINE = re.compile(r"((?:proxy-)?authorization|(?:set-)?cookie)(\s*:\s*)[^\r\n\"']+", re.IGNORECASE)


def redact(value: Json, turn: Turn = no_turn) -> Json:
    """A copy in which every value under a name of a secret is replaced. Texts are left as they are.

    :param turn: as for `clean`, but for each value: to look at a name takes a microsecond or more.
    """
    turn()
    if isinstance(value, dict):
        return {key: REDACTED if is_secret(key, item) else redact(item, turn) for key, item in value.items()}
    if isinstance(value, list):
        return [redact(item, turn) for item in value]
    return value


def redact_all(value: Json) -> Json:
    """As `redact`, and within texts, too. A list is also read as a command line: `--password`, and what follows."""
    if isinstance(value, dict):
        return {key: REDACTED if is_secret(key, item) else redact_all(item) for key, item in value.items()}
    if isinstance(value, list):
        before = [None, *value]
        return [
            REDACTED if _is_flag_of_secret(flag, item) else redact_all(item)
            for flag, item in zip(before, value, strict=False)
        ]
    return redact_text(value) if isinstance(value, str) else value


def redact_text(text: str) -> str:
    """A text without the secrets that it names: in URLs, query strings, headers, assignments and flags."""
    text = _PASSWORD_IN_URL.sub(rf"\1:{REDACTED}@", text)
    text = _TOKEN_IN_URL.sub(rf"\1{REDACTED}@", text)
    text = _PRIVATE_KEY.sub(rf"\1{REDACTED}", text)
    text = _WHOLE_LINE.sub(rf"\1\2{REDACTED}", text)
    text = _SCHEME.sub(rf"\1 {REDACTED}", text)
    return _without_named(_JWT.sub(REDACTED, text))


def preview(value: object) -> dict[str, Any]:
    """What may be shown of a tool's result: {preview, truncated, bytes}, the preview at most PREVIEW_MAX_BYTES of JSON.

    A result that is not JSON is shown by its type.
    """
    try:
        cleaned = clean(value)
    except Exception as error:  # InvalidJson, TooDeep, or what the items of a lazy mapping raise
        if out_of_time(error):
            raise
        cleaned = f"<{value.__class__.__name__}>"
    whole = len(dumps(cleaned).encode())
    shown = redact_all(cleaned if whole <= READ_CHARS else _beginning(cleaned, [READ_CHARS]))
    text = dumps(shown).encode()
    if whole <= READ_CHARS and len(text) <= PREVIEW_MAX_BYTES and _is_shallow(shown, MAX_DEPTH - 1):
        return {"preview": shown, "truncated": False, "bytes": len(text)}
    return {"preview": text[:CUT_BYTES].decode(errors="ignore"), "truncated": True, "bytes": whole}


def _is_shallow(value: Json, most: int) -> bool:
    """Whether a value has so many levels at most: a payload, in which it stands, is one more."""
    if not isinstance(value, dict | list):
        return True
    return most > 0 and all(
        _is_shallow(item, most - 1) for item in (value.values() if isinstance(value, dict) else value)
    )


def _beginning(value: Json, room: list[int]) -> Json:
    """So much of a value that nothing after it can be shown. `room`: characters that are left, counted down."""
    if isinstance(value, str):
        room[0] -= len(value)
        return value[: max(0, room[0] + len(value))]
    room[0] -= 1
    if isinstance(value, dict):
        return {key: _beginning(item, room) for key, item in value.items() if room[0] > 0 and _take(key, room)}
    if isinstance(value, list):
        return [_beginning(item, room) for item in value if room[0] > 0]
    return value


def _take(key: str, room: list[int]) -> bool:
    room[0] -= len(key)
    return True


def shown(pairs: Mapping[str, Any]) -> str:
    """The arguments that may be shown, as one line: `name=value, …`. Of long ones no more than READ_CHARS is read."""
    texts: list[str] = []
    for name, value in pairs.items():
        texts.append(f"{name}={redact_text(_as_text(name, value))}")
        if sum(map(len, texts)) > READ_CHARS:
            break
    return clean_text(", ".join(texts))[:SUMMARY_MAX_CHARS]


def without_secrets(names: Sequence[str], values: Sequence[Any]) -> list[Any]:
    """Positional arguments, those replaced whose parameters name secrets. `names` may be fewer."""
    named = [*names, *[""] * len(values)]
    return [REDACTED if is_secret(name, value) else value for name, value in zip(named, values, strict=False)]


def _as_text(name: str, value: Any) -> str:
    if is_secret(name, value):
        return REDACTED
    try:
        return str(_visible(value, [READ_CHARS]))[:READ_CHARS]
    except Exception as error:  # what the items of a lazy mapping raise, or a `__str__`
        if out_of_time(error):
            raise
        return f"<{type(value).__name__}>"


def _visible(value: Any, room: list[int], inside: tuple[int, ...] = ()) -> Any:
    """So much of a value, which need not be JSON, that nothing after it can be shown, as `redact_all` leaves it.

    :param room: as of `_beginning`.
    :param inside: the ids of what it is in.
    """
    room[0] -= 1
    if isinstance(value, str):
        room[0] -= len(value)
        return redact_text(value[: max(0, room[0] + len(value))])
    if not isinstance(value, Mapping | list | tuple):
        return value
    if id(value) in inside or len(inside) == MAX_DEPTH:
        return "…"
    inside = (*inside, id(value))
    if isinstance(value, Mapping):
        pairs = ((key, item) for key, item in value.items() if room[0] > 0)
        return {k: REDACTED if is_secret(str(k), item) else _visible(item, room, inside) for k, item in pairs}
    items = [
        REDACTED if _is_flag_of_secret(flag, item) else _visible(item, room, inside)
        for flag, item in zip([None, *value], value, strict=False)
        if room[0] > 0
    ]
    return tuple(items) if isinstance(value, tuple) else items


def _is_flag_of_secret(flag: object, value: object) -> bool:
    if not isinstance(flag, str) or not flag.startswith("-") or "=" in flag or not isinstance(value, str):
        return False
    return len(flag.lstrip("-")) > 1 and is_secret(flag.lstrip("-"), value)


def _without_named(text: str) -> str:
    """Each value that follows the name of a secret is replaced."""
    parts, end = [], 0
    for found in _NAME.finditer(text):
        name = (found["flag"] or found["name"]).lstrip("-")
        if found.start() < end or not is_secret(name):  # part of what was replaced, or none
            continue
        value = _VALUE.match(text, found.end())
        if value is not None and is_secret(name, value["value"]):
            parts += [text[end : value.start("value")], REDACTED]
            end = value.end("value")
    return "".join([*parts, text[end:]])
