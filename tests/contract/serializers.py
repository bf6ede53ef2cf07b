"""How schemathesis writes bodies that are no JSON; it loads this file by the name in SCHEMATHESIS_HOOKS."""

from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(_: Any, value: Any) -> bytes:
    """The document has a batch as one text."""
    return str(value).encode(errors="replace")
