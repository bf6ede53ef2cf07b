"""Texts of megabytes as values of a statement: quoted bit by bit, so that others have their turn meanwhile.

The driver quotes a value in one call into C. Here it gets what has been quoted before, piece by piece.
"""

from typing import Any, Final, Self

from psycopg2.extensions import QuotedString

from app.pace import CHARS_AT_ONCE, paced
from app.protocol.sizes import pieces
from app.turns import give_way

LONG_CHARS: Final = 1_000_000
LONG_TEXT: Final = "array_to_string(%s::text[], '')"
"""In a statement, the text of which `long_text` makes the value."""


class _Quoted:
    """A value that is part of a statement as it is."""

    __slots__ = ("_sql",)

    def __init__(self, sql: bytes) -> None:
        self._sql = sql

    def __conform__(self, protocol: object) -> Self:
        return self

    def getquoted(self) -> bytes:
        """As the driver asks for it."""
        return self._sql


def long_text(db: Any, text: str | None) -> list[str] | _Quoted | None:
    """The value of a LONG_TEXT; may let others run. NULL for None."""
    if text is None or len(text) <= CHARS_AT_ONCE:
        return None if text is None else [text]
    quoted = [_quoted(db.connection(), piece) for piece in paced(pieces(text, CHARS_AT_ONCE))]
    quoted[0] = b"ARRAY[" + quoted[0]
    quoted[-1] += b"]"
    give_way()
    return _Quoted(b",".join(quoted))  # the driver would do it while it makes the statement


def _quoted(connection: Any, text: str) -> bytes:
    adapted = QuotedString(text)
    adapted.prepare(connection)
    quoted: bytes = adapted.getquoted()
    return quoted
