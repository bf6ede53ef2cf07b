"""What is thrown into an agent to stop it. BaseExceptions, so that `except Exception` lets them pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime


class Interrupted(BaseException):
    """The run stops here. Clean up in `finally`; whatever is emitted from now on goes nowhere."""


class TimedOut(Interrupted):
    """The time of the run, or of one of its steps, is over. `limit` says which, for humans."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


@dataclass(frozen=True, slots=True)
class Wait:
    """Something that a run waits for: `on` is approval, input or time."""

    on: str
    id: str
    until: datetime | None = None
    """It waits no longer than until then."""


class Suspended(Interrupted):
    """The run is to wait, which costs nothing: the agent unwinds, and runs again from the top afterwards."""

    def __init__(self, waits: Sequence[Wait]) -> None:
        super().__init__()
        self.waits = waits
