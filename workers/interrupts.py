"""What is thrown into an agent to stop it. BaseExceptions, so that `except Exception` lets them pass."""

from greenlet import GreenletExit


class Interrupted(GreenletExit):
    """The run stops here. Clean up in `finally`; whatever is emitted from now on goes nowhere."""


class Cancelled(Interrupted):
    """Somebody cancelled the run."""


class TimedOut(Interrupted):
    """The run's time is over."""


class Lost(Interrupted):
    """Another worker owns the run now; this attempt must leave no trace."""


class Drained(Interrupted):
    """The worker is going down; the run goes back to pending."""
