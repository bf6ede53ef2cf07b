"""Why a worker stops an agent, beside what the SDK itself knows of."""

from gevent.hub import Hub

from runtail.interrupts import Interrupted

# A greenlet of an agent's that ends with one has ended as it should: gevent need not print it.
Hub.NOT_ERROR = (*Hub.NOT_ERROR, Interrupted)


class Cancelled(Interrupted):
    """Somebody cancelled the run."""


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
