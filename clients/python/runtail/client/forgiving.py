"""The sink of a job: the job does its work whatever becomes of its run."""

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from runtail.client.sender import Sender
from runtail.errors import Cancelled, Refused, RuntailError
from runtail.sinks import Nowhere

T = TypeVar("T")

LOOK_SECONDS = 0.5
"""How often a sleep looks for a cancel once nothing can be written any more."""
INCOMPLETE = "Not all that the job has written could be taken."

_CODE = re.compile(r"[a-z0-9_]{1,64}")
log = logging.getLogger("runtail")


class Forgiving:
    """Passes a run's events on to its sender. What fails there is logged, and dropped; only a cancel is raised."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self.run_id = sender.run_id
        self.epoch = sender.epoch
        self._told: set[str] = set()

    @property
    def cancelled(self) -> bool:
        """A cancel was requested."""
        return self._sender.cancelled

    def tell(self, error: RuntailError) -> None:
        """Log an error of one call; the call is left out."""
        log.error("%s: the job goes on without what it has just written. %s", self.run_id, error)

    def check(self) -> None:
        """
        :raises Cancelled: a cancel was requested.
        """
        self._try(self._sender.check, None)

    def add(self, type: str, payload: Mapping[str, Any], *, closes: bool = False) -> None:
        """Add an event."""
        self._try(lambda: self._sender.add(type, payload, closes=closes), None)

    def write(self, message_id: str, text: str) -> None:
        """Add text to a message."""
        self._try(lambda: self._sender.write(message_id, text), None)

    def sleep(self, seconds: float) -> None:
        """Sleep for so long, whatever else happens; a cancel wakes up."""
        until = time.monotonic() + seconds
        self._try(lambda: self._sender.sleep(seconds), None)
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK_SECONDS))
            self.check()

    def decision(self, approval_id: str, seconds: float | None) -> dict[str, Any] | None:
        """The decision; None: there is none, or nobody can be asked."""
        return self._try(lambda: self._sender.decision(approval_id, seconds), None)

    def inputs(self, wait: bool) -> list[str]:
        """New inputs; none where nobody can be asked."""
        nothing: list[str] = []
        return self._try(lambda: self._sender.inputs(wait), nothing)

    def finish(self, ending: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """End the run, if that can be done in time. Returns it as it ended, or as it was meant to."""
        seconds = self._sender.patience.finish if seconds is None else seconds
        until = time.monotonic() + seconds
        try:
            return self._finish(ending, seconds)
        except RuntailError as error:
            self._say(error)
            if ending["status"] != "completed" or not (self._sender.incomplete or isinstance(error, Refused)):
                return dict(ending)
            code = error.code if _CODE.fullmatch(error.code) else "incomplete"
        failed = {"status": "failed", "error": {"code": code, "message": INCOMPLETE}}
        try:
            self._finish(failed, max(0.0, until - time.monotonic()))
        except RuntailError as error:
            self._say(error)
        return dict(ending)

    def _finish(self, ending: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        ended = self._sender.finish(ending, seconds)
        if ended["status"] == ending["status"]:
            return ended
        log.error(
            "%s: the job has succeeded, and its run has ended as %s: %s", self.run_id, ended["status"], ended["error"]
        )
        return dict(ending)

    def _try(self, call: Callable[[], T], otherwise: T) -> T:
        try:
            return call()
        except RuntailError as error:
            self._say(error)
            if self._sender.cancelled:
                raise Cancelled(self.run_id) from None
            return otherwise

    def _say(self, error: RuntailError) -> None:
        """Log what is wrong with the run, once."""
        if str(error) not in self._told:
            self._told.add(str(error))
            log.error("%s: the job goes on without its run. %s", self.run_id, error)


class Alone(Nowhere):
    """Of a job that has no run, because the server is away or the run has failed: it does its work all the same."""

    def tell(self, error: RuntailError) -> None:
        """Log an error of one call."""
        log.error("A job without a run goes on without what it has just written. %s", error)

    def decision(self, approval_id: str, seconds: float | None) -> dict[str, Any] | None:
        """None: nobody can be asked."""
        return None

    def inputs(self, wait: bool) -> list[str]:
        """None: nobody can send any."""
        return []
