"""A user hook: no event leaves with the customer's name in it."""

import json
from typing import Any


def mask(type: str, payload: dict[str, Any]) -> dict[str, Any]:
    masked: dict[str, Any] = json.loads(json.dumps(payload).replace("Ms Doe", "Ms X"))
    return masked
