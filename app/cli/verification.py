"""Recomputes what a finished run claims about itself from nothing but its log. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from app.protocol.digest import digest
from app.protocol.events import TERMINAL
from app.protocol.reducer import ENDED, Envelope, Fold, initial
from app.protocol.state import output_of


@dataclass(frozen=True, slots=True)
class Claim:
    """What is stored of a run beside its log."""

    status: str
    digest: str | None
    state: Any
    """The stored fold of the whole log."""


class Mismatch(Exception):
    """The log and what is stored beside it do not agree; the message says where."""


def verify(run_id: str, log: Iterable[Envelope], claim: Claim) -> tuple[int, str]:
    """Check that the log is whole and says what is claimed. Returns the number of its events and the digest.

    :raises Mismatch: it is not, or does not; or the run has not ended, so that there is nothing to claim yet.
    """
    fold, computed = Fold(initial(run_id)), ""
    state = fold.state
    for envelope in log:
        try:
            if envelope["type"] in TERMINAL:
                computed = digest(state, output_of(state, envelope["payload"]))
                _equal("digest", "the terminal event's", envelope["payload"]["digest"], computed)
            fold.apply(envelope)
        except ValueError as error:
            raise Mismatch(f"The log is broken: {error}.") from error
    if state["status"] not in ENDED:
        missing = "has no terminal event" if claim.status in ENDED else f"has not ended yet: it is {claim.status}"
        raise Mismatch(f"The run {missing} (event {state['last_seq']} is its last).")
    _equal("status", "the stored", claim.status, state["status"])
    _equal("digest", "the stored", claim.digest, computed)
    if claim.state != state:
        raise Mismatch("The stored state is not what the log folds to.")
    return state["last_seq"], computed


def _equal(what: str, whose: str, claimed: object, computed: str) -> None:
    if claimed != computed:
        raise Mismatch(f"The {what} of the log is {computed}, {whose} one is {claimed}.")
