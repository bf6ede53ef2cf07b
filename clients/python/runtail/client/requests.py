"""A writer's calls over HTTP: append a batch, send a heartbeat, finish. One request, and what came of it.

Not responsible for asking again, nor for what an answer means to the writer (`sender`).
"""

from dataclasses import dataclass
from typing import Any

import httpx

from runtail.client.connection import CONNECT_SECONDS, Connection, reason, refusal
from runtail.errors import Refused

ANSWER_SECONDS = 15.0
"""How long the answer to a call may take before the call is made again."""
APPEND, BEAT, FINISH = "events", "heartbeat", "finish"
TOLD = {
    APPEND: {"cancel_requested", "inputs", "decisions"},
    BEAT: {"cancel_requested", "inputs", "decisions"},
    FINISH: {"status", "error"},
}
"""Members of the answer to each call, which are looked at here. An answer without them is not the server's."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What the server gave to a run's writer."""

    run_id: str
    token: str
    epoch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Call:
    """One of the calls."""

    name: str
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A call came to nothing, or it is not known what it came to: it may be made again as it was.

    :ivar wait: seconds that the server asks to wait; 0: it does not say.
    """

    why: str
    wait: float = 0.0


class Calls:
    """The calls of one run's writer. From one thread at a time."""

    def __init__(self, connection: Connection, lease: Lease) -> None:
        self._connection = connection
        self._path = f"/runs/{lease.run_id}"
        self._headers = {"Authorization": f"Bearer {lease.token}", "Producer-Epoch": str(lease.epoch)}

    def make(self, call: Call, producer_seq: int, inputs_after: int) -> dict[str, Any] | Refused | Unknown:
        """Make a call. What the server tells is empty for a batch that it took before.

        :param producer_seq: of a batch, or of the end.
        :param inputs_after: so many inputs are known here.
        """
        headers = self._headers
        if call.name != BEAT:
            kind = "application/json" if call.name == FINISH else "application/x-ndjson"
            headers = {**headers, "Producer-Seq": str(producer_seq), "Content-Type": kind}
        try:
            answer = self._connection.http.post(
                f"{self._path}/{call.name}",
                params={} if call.name == FINISH else {"inputs_after": str(inputs_after)},
                headers=headers,
                content=call.body,
                timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            )
        except httpx.RequestError as error:
            return Unknown(reason(error))
        return _outcome(call, answer)


def _outcome(call: Call, answer: httpx.Response) -> dict[str, Any] | Refused | Unknown:
    if not answer.is_success:
        refused = refusal(answer)
        return Unknown(str(refused), refused.retry_after) if _says_nothing(refused) else refused
    if answer.status_code == httpx.codes.NO_CONTENT and call.name == APPEND:
        return {}
    try:
        told = answer.json()
    except ValueError:
        told = None
    if isinstance(told, dict) and told.keys() >= TOLD[call.name]:
        return told
    return Unknown("What answered is no Runtail server.")


def _says_nothing(refused: Refused) -> bool:
    """It may well succeed a little later, or it was not the server that answered but a proxy before it."""
    if refused.status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return False  # a proxy will say so again
    return refused.passing or refused.code.startswith("http_")
