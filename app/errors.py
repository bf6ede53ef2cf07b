"""The error tree: one class per stable code, each with its HTTP status.

Responsible for naming what can go wrong. Not responsible for turning an error into a response
(`app.api.problems`) or into a `run.failed` event (`workers.execution.executor`).
"""

from runtail.errors import InvalidCall as InvalidCall
from runtail.errors import InvalidEvent as InvalidEvent
from runtail.errors import InvalidJson as InvalidJson
from runtail.errors import InvalidOutput as InvalidOutput
from runtail.errors import NeedsIsolation as NeedsIsolation
from runtail.errors import NondeterministicAgent as NondeterministicAgent
from runtail.errors import RuntailError as RuntailError
from runtail.errors import TooDeep as TooDeep


class ConfigError(RuntailError):
    """A setting is missing or wrong. Ends the process at its start."""

    code = "config_error"
    title = "A setting is wrong"


# What a caller sent.


class BadRequest(RuntailError):
    """A request that is malformed as HTTP, before it is looked at."""

    code = "bad_request"
    status = 400
    title = "The request is malformed"


class MethodNotAllowed(RuntailError):
    """The resource does not have this method; `Allow` says which it has."""

    code = "method_not_allowed"
    status = 405
    title = "The method is not allowed"


class InvalidRequest(RuntailError):
    """A body, header or query parameter does not fit its schema."""

    code = "invalid_request"
    status = 422
    title = "The request does not fit its schema"


class TooManyElements(RuntailError):
    """JSON of more list items and object members than one text may have."""

    code = "too_many_elements"
    status = 413
    title = "The JSON has too many elements"


class BodyTooLarge(RuntailError):
    """The request's body is beyond MAX_BODY_BYTES."""

    code = "body_too_large"
    status = 413
    title = "The request body is too large"


class BodyTimeout(RuntailError):
    """The request's body did not arrive within the time that it has."""

    code = "body_timeout"
    status = 408
    title = "The request body did not arrive in time"


class UnsupportedMediaType(RuntailError):
    """The request's body is not of the media type that the call takes."""

    code = "unsupported_media_type"
    status = 415
    title = "The request body has another media type"


class NotAcceptable(RuntailError):
    """None of the media types in `Accept` can be produced."""

    code = "not_acceptable"
    status = 406
    title = "None of the accepted media types is available"


class UnknownAgent(RuntailError):
    """No worker has registered an agent of that name."""

    code = "unknown_agent"
    status = 422
    title = "No such agent"


class InvalidInput(RuntailError):
    """The run's input does not fit the schema that the agent registered."""

    code = "invalid_input"
    status = 422
    title = "The input does not fit the agent's schema"


class InvalidCursor(RuntailError):
    """A cursor that is not a number, is negative, or lies beyond the end of a finished run."""

    code = "invalid_cursor"
    status = 400
    title = "The cursor is not valid"


class IdempotencyConflict(RuntailError):
    """An Idempotency-Key was used again with another body."""

    code = "idempotency_conflict"
    status = 409
    title = "The idempotency key was used with another request"


class NotTerminal(RuntailError):
    """The run has not ended, and the call needs it to."""

    code = "run_not_terminal"
    status = 409
    title = "The run has not ended yet"


class RunEnded(RuntailError):
    """The run has ended, and takes neither input nor decisions any more."""

    code = "run_ended"
    status = 409
    title = "The run has ended"


class RunCancelling(RuntailError):
    """The run's cancel was requested: it takes neither input nor decisions any more."""

    code = "run_cancelling"
    status = 409
    title = "The run is being cancelled"


class TooManyInputs(RuntailError):
    """The run was sent as many inputs as it may be."""

    code = "too_many_inputs"
    status = 409
    title = "The run takes no more inputs"


class TooManyCancels(RuntailError):
    """The user has as many cancels noted, of runs that have not come, as one may have."""

    code = "too_many_cancels"
    status = 409
    title = "Too many cancels wait for their runs"


class ApprovalResolved(RuntailError):
    """The approval was decided otherwise, or has expired. `approval` is its record, with the outcome."""

    code = "approval_resolved"
    status = 409
    title = "The approval is resolved"

    def __init__(self, detail: str, approval: object) -> None:
        super().__init__(detail)
        self.approval = approval


# Who is calling.


class Unauthorized(RuntailError):
    """No key, or one that is unknown."""

    code = "unauthorized"
    status = 401
    title = "A valid API key is needed"


class NotFound(RuntailError):
    """There is no such resource, or not for this caller."""

    code = "not_found"
    status = 404
    title = "Not found"


class RunNotFound(NotFound):
    """There is no such run, or it belongs to somebody else."""

    code = "run_not_found"
    title = "No such run"


class ApprovalNotFound(NotFound):
    """The run has no such approval."""

    code = "approval_not_found"
    title = "No such approval"


class OperatorRequired(RuntailError):
    """The approval is an operator's to decide: an administrator's of the tenant. The caller's key is none's."""

    code = "operator_required"
    status = 403
    title = "An operator has to decide"


class OriginNotAllowed(RuntailError):
    """A page of another origin, which CORS_ORIGINS does not name, wants a WebSocket, or in development anything."""

    code = "origin_not_allowed"
    status = 403
    title = "The page's origin is not allowed"


class AdminRequired(RuntailError):
    """The caller's key is not an administrator's."""

    code = "admin_required"
    status = 403
    title = "An administrator's key is needed"


class ScopeRequired(RuntailError):
    """The caller's key does not have the scope `write`."""

    code = "scope_required"
    status = 403
    title = "The key lacks a scope"


class StaleEpoch(RuntailError):
    """Somebody else writes the run by now, or the epoch is not the one that the token was given for."""

    code = "stale_epoch"
    status = 403
    title = "The writer's epoch is over"


class ProducerGap(RuntailError):
    """A batch does not follow the last one that was taken."""

    code = "producer_gap"
    status = 409
    title = "A batch is missing"

    def __init__(self, expected: int) -> None:
        super().__init__(f"The next batch has the number {expected}.")
        self.expected = expected


class ReservedType(RuntailError):
    """An event whose type only the server writes."""

    code = "reserved_type"
    status = 422
    title = "Only the server writes events of this type"


class TooManyEvents(RuntailError):
    """A batch of more events than one request may carry."""

    code = "too_many_events"
    status = 413
    title = "Too many events in one batch"


class TooManyItems(RuntailError):
    """An external run keeps as much as a run may: items of one kind, or bytes in all."""

    code = "too_many_items"
    status = 409
    title = "The run keeps as much as a run may"


class TooManyApprovals(RuntailError):
    """An external run has asked for as many approvals as a run may."""

    code = "too_many_approvals"
    status = 409
    title = "The run has asked for as many approvals as it may"


class TooManyRuns(RuntailError):
    """A window over more runs than one window shows."""

    code = "too_many_runs"
    status = 422
    title = "Too many runs for one window"


class UpgradeRequired(RuntailError):
    """The resource is a WebSocket, and this is no handshake."""

    code = "upgrade_required"
    status = 426
    title = "This is a WebSocket"


class WebSocketUnavailable(RuntailError):
    """This server, or this connection, cannot carry a WebSocket."""

    code = "websocket_unavailable"
    status = 501
    title = "No WebSocket on this connection"


class TooManyStreams(RuntailError):
    """The user, the address or the process has as many windows open as it may."""

    code = "too_many_streams"
    status = 429
    title = "Too many open windows"


class StoreUnavailable(RuntailError):
    """Postgres or Redis cannot be reached at the moment. Nothing was changed; try again."""

    code = "store_unavailable"
    status = 503
    title = "A storage service cannot be reached"

    def __init__(self, detail: str = "", *, answered: bool = False) -> None:
        """:param answered: Postgres was there, and said that it cannot do it."""
        super().__init__(detail)
        self.answered = answered


class StoreFailed(StoreUnavailable):
    """Postgres failed in a way that nobody has foreseen. Nothing was changed; it may work later. The log says more."""

    code = "store_failed"
    status = 500
    title = "A storage service failed"


class Refused(RuntailError):
    """Postgres refuses for good what was to be stored, and would do so again. Nothing was changed."""

    code = "refused_value"
    status = 422
    title = "A value cannot be stored"


# What a writer of events meets.


class HookFailed(RuntailError):
    """A hook of this server raised over a payload, or returned none that fits; what happened is in its log only."""

    code = "hook_failed"
    status = 422
    title = "A hook failed"


class Fenced(RuntailError):
    """Another owner has claimed the run: this writer may change neither its log nor its row."""

    code = "fenced"
    status = 409
    title = "The run has another owner"


class EventsLost(RuntailError):
    """Neither Postgres nor Redis has the events that follow the cursor, but later ones. `detail` says which."""

    code = "events_lost"
    status = 410
    title = "Events of the log are lost"


class EpochTaken(Fenced):
    """Redis knows a later epoch, or this one as another owner's. `epoch` says which; 0: it knows none at all."""

    code = "epoch_taken"
    title = "The epoch is taken"

    def __init__(self, epoch: int) -> None:
        super().__init__(f"Epoch {epoch} is taken.")
        self.epoch = epoch


class Behind(RuntailError):
    """The log, or its archive, does not end with the event before the first to be added. `head` says where it ends."""

    code = "behind"
    status = 409
    title = "The log's head is elsewhere"

    def __init__(self, head: int) -> None:
        super().__init__(f"The log's head is at {head}.")
        self.head = head


# Why a run failed; only ever seen as the `error` of a `run.failed` event.


class AgentError(RuntailError):
    """The agent raised. Of what it raised no text is shown: that is in the worker's log only."""

    code = "agent_error"
    title = "The agent failed unexpectedly"


class AgentUnavailable(RuntailError):
    """The worker that took the run does not know its agent, or the stored input no longer fits it."""

    code = "agent_unavailable"
    title = "The worker cannot run this agent"


class AgentChanged(RuntailError):
    """The agent has another version than the one that began the run, and does not go on with runs of that one."""

    code = "agent_changed"
    title = "The agent has changed since the run began"


class ReconciliationFailed(RuntailError):
    """The agent returned a text that is not the one it streamed."""

    code = "reconciliation_failed"
    title = "The returned text differs from the streamed one"


class RunTimeout(RuntailError):
    """The run took longer than its `timeout_s`, or RUN_TIMEOUT_SECONDS."""

    code = "timeout"
    title = "The run took too long"


class WorkerLost(RuntailError):
    """The run has ended its worker RUN_MAX_ATTEMPTS times in a row."""

    code = "worker_lost"
    title = "The run's workers were lost"


class WriterLost(RuntailError):
    """The writer of an external run was silent for too long."""

    code = "writer_lost"
    title = "The run lost its writer"


class ExternalFailed(RuntailError):
    """An external run failed, as its writer said; code and detail are the writer's."""

    code = "external_failed"
    title = "The run failed"
