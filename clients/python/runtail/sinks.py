"""Where the events of a run go: what a `Run` needs of it, and the one outside a run. The other is `sender`."""

import time
from collections.abc import Mapping
from typing import Any, Protocol

from runtail.errors import RuntailError


class Sink(Protocol):
    """Where a run's events go: see `Sender`, `Forgiving` for jobs, and `Nowhere` for what is written outside a run."""

    run_id: str
    epoch: int

    @property
    def cancelled(self) -> bool: ...
    def tell(self, error: RuntailError) -> None: ...
    def check(self) -> None: ...
    def add(self, type: str, payload: Mapping[str, Any], *, closes: bool = False) -> None: ...
    def write(self, message_id: str, text: str) -> None: ...
    def sleep(self, seconds: float) -> None: ...
    def decision(self, approval_id: str, seconds: float | None) -> dict[str, Any] | None: ...
    def inputs(self, wait: bool) -> list[str]: ...
    def finish(self, ending: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]: ...


class Nowhere:
    """Takes events and forgets them. Nobody can answer there."""

    run_id = ""
    epoch = 0
    cancelled = False

    def tell(self, error: RuntailError) -> None:
        """
        :raises RuntailError: always: what cannot be sent is refused here as in a run.
        """
        raise error

    def check(self) -> None:
        """Nothing stops what is no run."""

    def add(self, type: str, payload: Mapping[str, Any], *, closes: bool = False) -> None:
        """Forget an event."""

    def write(self, message_id: str, text: str) -> None:
        """Forget a text."""

    def sleep(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def decision(self, approval_id: str, seconds: float | None) -> dict[str, Any] | None:
        """
        :raises RuntimeError: always.
        """
        raise RuntimeError("Outside a run there is nobody to approve.")

    def inputs(self, wait: bool) -> list[str]:
        """None.

        :raises RuntimeError: with `wait`.
        """
        if wait:
            raise RuntimeError("Outside a run there is nobody to send inputs.")
        return []

    def finish(self, ending: Mapping[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Echo the ending."""
        return dict(ending)
