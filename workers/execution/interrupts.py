"""What is thrown into an agent to stop it. BaseExceptions, so that `except Exception` lets them pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from greenlet import GreenletExit


class Interrupted(GreenletExit):
    """The run stops here. Clean up in `finally`; whatever is emitted from now on goes nowhere."""


class Cancelled(Interrupted):
    """Somebody cancelled the run."""


class TimedOut(Interrupted):
    """The time of the run, or of one of its steps, is over. `limit` says which, for humans."""

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


class Exited(Interrupted):
    """What the agent has started wanted to end the process. `detail` says what, for humans."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class Lost(Interrupted):
    """Another worker owns the run now; this attempt must leave no trace."""


class Unstorable(Interrupted):
    """Postgres refuses for good what the run has recorded. `why` names the call, for humans."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Drained(Interrupted):
    """The worker is going down; the run goes back to pending."""


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
