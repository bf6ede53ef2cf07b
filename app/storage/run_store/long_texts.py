"""Texts of megabytes as values of a statement: quoted bit by bit, so that others have their turn meanwhile.

The driver quotes a value in one call into C. Here it gets a list of pieces, each of which it has quoted before.
"""

from typing import Any, Final, Self

from psycopg2.extensions import QuotedString

from app.pace import paced
from app.protocol.sizes import pieces

LONG_CHARS: Final = 1_000_000
PIECE_CHARS: Final = 262_144
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


def long_text(db: Any, text: str | None) -> list[Any] | None:
    """The value of a LONG_TEXT; may let others run. NULL for None."""
    if text is None or len(text) <= PIECE_CHARS:
        return None if text is None else [text]
    return [_quoted(db.connection(), piece) for piece in paced(pieces(text, PIECE_CHARS))]


def _quoted(connection: Any, text: str) -> _Quoted:
    adapted = QuotedString(text)
    adapted.prepare(connection)
    return _Quoted(adapted.getquoted())
