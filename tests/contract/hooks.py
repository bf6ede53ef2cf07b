"""What schemathesis is told of Runtail beyond the document; it loads this file by the name in SCHEMATHESIS_HOOKS.

Some of its own checks are switched off in `schemathesis.toml` for those below, which know more and except less.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import schemathesis
from hypothesis import strategies
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance

EVENTS, SEVERAL, SOCKET = "GET /runs/{run_id}/events", "GET /events", "GET /runs/{run_id}/ws"
APPEND = "POST /runs/{run_id}/events"
FINISH, CANCEL, DELETE = "POST /runs/{run_id}/finish", "POST /runs/{run_id}/cancel", "DELETE /runs/{run_id}"
DECIDE = "POST /runs/{run_id}/approvals/{approval_id}"
WRITING: Final = (APPEND, "POST /runs/{run_id}/heartbeat", FINISH)
"""These carry a writer's token, without which there is no such run."""
REFUSED: Final = {
    ("POST /runs", "invalid_input"): "Each agent has a schema of its own, which `GET /agents` shows.",
    (EVENTS, "invalid_cursor"): "How far a cursor may go depends on where its run has ended.",
    (EVENTS, "invalid_request"): "`speed` does not go with a JSON page, which `Accept` asks for.",
    (SEVERAL, "invalid_cursor"): "Which runs a cursor may name depends on `runs`.",
    (SOCKET, "upgrade_required"): "schemathesis does not speak WebSocket.",
}
"""Valid by its schema and refused all the same: by operation and code of the error, with the reason."""
CURSORS: Final = ("Last-Event-ID", "last_event_id", "lastEventId", "since_seq", "since")
NAMES: Final = ("Idempotency-Key", "client_run_id", "Runtail-Writer")
UNKNOWN: Final = "x-schemathesis-unknown-property"
REACHED: Final = (
    "GET /runs",
    "POST /runs",
    "GET /runs/{run_id}",
    DELETE,
    CANCEL,
    "POST /runs/{run_id}/erase",
    "POST /runs/{run_id}/input",
    DECIDE,
    "GET /approvals",
    EVENTS,
    SEVERAL,
    *WRITING,
)
"""Which the stateful phase has to reach with a 2xx answer."""


QUESTION: Final = {"approval_id": "approval_1", "label": "May I go on?", "requires": "owner"}
LINES: Final = [
    json.dumps(line) + "\n"
    for line in (
        {"type": "approval.required", "payload": QUESTION},
        {"type": "step.started", "payload": {"step_id": "s1", "title": "Look it up", "index": 0}},
        {"type": "message.started", "payload": {"message_id": "m1", "role": "assistant"}},
        {"type": "message.delta", "payload": {"message_id": "m1", "text": "It is "}},
        {"type": "custom.seen", "payload": {}},
    )
]
"""Of a batch: each begins with the question."""
schemathesis.openapi.format(
    "ndjson",
    strategies.lists(strategies.sampled_from(LINES), max_size=4).map(lambda lines: LINES[0] + "".join(lines)),
)


@schemathesis.serializer("application/x-ndjson")
def ndjson(_: Any, value: Any) -> bytes:
    """The document has a batch as one text."""
    return str(value).encode(errors="replace")


@dataclass
class Known:
    """What a client would know of an external run that it writes."""

    token: str
    batches: int = 0
    asks: bool = False
    cancelled: bool = False


_known: dict[str, Known] = {}
"""By run; those only that have not ended."""


@schemathesis.hook
def before_call(_: Any, case: Any, __: Any) -> None:
    """Give the call what no link can: the writer's token, the number of its batch, names that are not taken."""
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive or meta.phase.name.value != "stateful":
        return
    if case.operation.label == "POST /runs":
        _start_anew(case)
    elif case.operation.label in WRITING:
        _as_writer(case)
    elif case.operation.label == DECIDE and (run_id := _latest(case, _is_asking)):
        case.path_parameters = {"run_id": run_id, "approval_id": QUESTION["approval_id"]}


@schemathesis.hook
def after_call(_: Any, case: Any, response: Any) -> None:
    """Remember that."""
    if case.method.upper() != case.operation.method.upper():
        return  # OPTIONS, say: whether other methods than the operation's are refused is tried too
    label, run_id = case.operation.label, (case.path_parameters or {}).get("run_id")
    if label == "POST /runs" and response.status_code == 202:
        started = response.json()
        if token := started.get("writer_token"):
            _known[started["run_id"]] = Known(token)
    elif label == APPEND and response.status_code == 200:
        _known[run_id].batches += 1
        _known[run_id].asks = True
    elif label in (FINISH, CANCEL, DELETE) and response.status_code == 200:
        _known.pop(run_id, None)
    elif label in (CANCEL, DELETE) and response.status_code == 202 and run_id in _known:
        _known[run_id].cancelled = True  # its writer may go on, but nothing is decided any more


def _as_writer(case: Any) -> None:
    run_id = _latest(case, _is_live if case.operation.label == APPEND else _is_any)
    headers = {"Authorization": "Bearer unknown"}
    if run_id is not None:
        case.path_parameters = {"run_id": run_id}
        headers = {"Authorization": f"Bearer {_known[run_id].token}", "Producer-Epoch": "1"}
        if "Producer-Seq" in (case.headers or {}):
            headers["Producer-Seq"] = str(_known[run_id].batches + 1)
    case.headers = {**(case.headers or {}), **headers}


def _is_any(_: Known) -> bool:
    return True


def _is_live(known: Known) -> bool:
    return not known.cancelled


def _is_asking(known: Known) -> bool:
    return known.asks and not known.cancelled


def _latest(case: Any, fits: Callable[[Known], bool]) -> str | None:
    """The run that the link leads to if it will do, otherwise the latest that does; None: none does."""
    fit = [run_id for run_id, known in _known.items() if fits(known)]
    linked = case.path_parameters["run_id"]
    return linked if linked in fit else fit[-1] if fit else None


def _start_anew(case: Any) -> None:
    """A run that leads on: names repeat, and one that is taken is a conflict; most calls are of external runs."""
    case.headers = {name: value for name, value in (case.headers or {}).items() if name not in NAMES}
    case.body = {name: value for name, value in case.body.items() if name not in NAMES}
    if "session_id" not in case.body:
        case.body = {**case.body, "agent": "external", "timeout_s": None}


@schemathesis.check
def valid_data_is_accepted(ctx: Any, response: Any, case: Any) -> None:
    """`positive_data_acceptance`, but for REFUSED."""
    if (case.operation.label, _code(response)) not in REFUSED:
        positive_data_acceptance(ctx, response, case)


@schemathesis.check
def invalid_data_is_refused(ctx: Any, response: Any, case: Any) -> None:
    """`negative_data_rejection`, but for what is refused before it is looked at, and for what does not count.

    Of several cursors only one does; headers that nobody knows are ignored, as HTTP has it.
    """
    sent = {**(case.headers or {}), **(case.query or {})}
    ignored = sum(name in sent for name in CURSORS) > 1 or UNKNOWN in (case.headers or {})
    if not ignored and _code(response) != "upgrade_required":
        negative_data_rejection(ctx, response, case)


@schemathesis.check
def a_key_is_asked_for(ctx: Any, response: Any, case: Any) -> None:
    """`ignored_auth`, but for a call with a watch token, which is a credential too: for a wrong one there is no run.

    The phases before the stateful one try every operation; there it would take two requests more for each call.
    """
    is_stateful = ctx.phase is not None and ctx.phase.value == "stateful"
    if not is_stateful and "watch_token" not in (case.query or {}):
        ignored_auth(ctx, response, case)


@schemathesis.check
class RunsAreThereUntilTheyAreErased:
    """In place of `use_after_free` and `ensure_resource_availability`: what removes a run is not DELETE but erase."""

    def __init__(self) -> None:
        self._started: set[str] = set()
        self._erased: set[str] = set()

    def after_response(self, _: Any, response: Any, case: Any) -> None:
        """Every operation on a run, in every phase."""
        label, run_id = case.operation.label, (case.path_parameters or {}).get("run_id")
        if label == "POST /runs" and response.status_code == 202:
            self._started.add(response.json()["run_id"])
        elif label.endswith("/erase") and response.status_code == 204:
            self._erased.add(run_id)
        elif run_id in self._erased:
            assert response.status_code >= 400, f"{run_id} was erased, and {label} finds it still."
        elif run_id in self._started and label not in WRITING and "watch_token" not in (case.query or {}):
            assert _code(response) != "run_not_found", f"{run_id} was started, and {label} does not find it."


@schemathesis.check
class TheRunRoutesWereReached:
    """The links of the document lead to every call on a run."""

    def __init__(self) -> None:
        self._asked = False
        self._reached: set[str] = set()

    def after_response(self, ctx: Any, response: Any, case: Any) -> None:
        """Note what was answered with 2xx."""
        if ctx.phase is not None and ctx.phase.value == "stateful":
            self._asked = True
            self._reached |= {case.operation.label} if 200 <= response.status_code < 300 else set()

    def after_run(self, _: Any) -> None:
        """Once all is over."""
        missing = sorted(set(REACHED) - self._reached) if self._asked else []
        assert not missing, f"The stateful phase has seen no 2xx of {', '.join(missing)}."


def _code(response: Any) -> str | None:
    """The stable code of an error; None: it is no problem document."""
    try:
        return str(json.loads(response.content)["code"])
    except (ValueError, KeyError, TypeError):
        return None
