"""The shapes of requests and responses, for validation and for the OpenAPI document."""

from datetime import UTC, datetime
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, pre_load, validates_schema
from marshmallow.validate import Length, OneOf, Range, Regexp

from app.api.cursors import CURSOR, CURSORS
from app.protocol.timing import SPEED_MAX, SPEED_MIN

STATUSES = ("pending", "running", "waiting", "completed", "failed", "cancelled")
APPROVAL_STATUSES = ("open", "approved", "denied", "expired")
COMMENT_MAX_CHARS = 2_000
INPUT_MAX_CHARS = 20_000
LIST_LIMIT = 50
LIST_LIMIT_MAX = 200
EVENTS_LIMIT = 500
EVENTS_LIMIT_MAX = 1_000
LEASE_MAX = 2**31 - 1
"""Seconds; what the server grants is up to its settings."""
TIMEOUT_MAX_SECONDS = 30 * 86_400
# Patterns go into the OpenAPI document: they mean the same in JavaScript, which has no \Z.
SESSION_ID = Regexp(r"^[A-Za-z0-9_.:\-]{1,128}(?!\n)$", error="Must be 1 to 128 of A-Z a-z 0-9 _ . : -")
IDEMPOTENCY_KEY = Regexp(r"^[\x21-\x7e]{1,255}(?!\n)$", error="Must be 1 to 255 visible ASCII characters.")
RUN_ID = Regexp(r"^run_[0-9A-HJKMNP-TV-Z]{26}(?!\n)$", error="Must be a `next_cursor`.")
APPROVALS_CURSOR = Regexp(r"^[0-9]{1,16}:[^:\x00]+:[^:\x00]+$", error="Must be a `next_cursor`.")
TEXT_MAX_CHARS = 100
TEXT = (Length(1, TEXT_MAX_CHARS), Regexp(r"^[^\x00]+$", error="Must not hold NUL."))
RUNS = r"^[^,]+(,[^,]+){0,19}$"
LIKE_POLYFILLS = "The same, as EventSource polyfills call it."


class Moment(fields.AwareDateTime):
    """A time with a time zone, in UTC: PostgreSQL takes fewer time zones than ISO 8601 has."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> datetime:
        moment = super()._deserialize(value, *args, **kwargs)
        try:
            return moment.astimezone(UTC)
        except OverflowError as error:
            raise ValidationError("Must be of the years 1 to 9999.") from error


class Whole(fields.Integer):
    """A number that is whole, also where it is written as 5.0: JSON Schema calls that an integer."""

    def _validated(self, value: Any) -> Any:
        whole = isinstance(value, float) and value.is_integer()
        return super()._validated(int(value) if whole else value)


class StartRunSchema(Schema):
    """Body of POST /runs."""

    agent = fields.String(required=True, validate=Length(1, 100))
    input = fields.Dict(keys=fields.String(), load_default=dict)
    session_id = fields.String(load_default=None, allow_none=True, validate=SESSION_ID)
    on_disconnect = fields.String(load_default="continue", validate=OneOf(["continue", "cancel"]))
    timeout_s = Whole(load_default=None, allow_none=True, strict=True, validate=Range(1, TIMEOUT_MAX_SECONDS))
    metadata = fields.Dict(keys=fields.String(), load_default=dict)
    client_run_id = fields.String(load_default=None, allow_none=True, validate=SESSION_ID)


class CancelNamedSchema(Schema):
    """Body of POST /runs/cancel: one of the two."""

    client_run_id = fields.String(validate=SESSION_ID)
    idempotency_key = fields.String(validate=IDEMPOTENCY_KEY)

    @validates_schema
    def name_one(self, data: dict[str, Any], **_: Any) -> None:
        """Neither is no run, and both may be two."""
        if len(data) != 1:
            raise ValidationError("Give either client_run_id or idempotency_key.")


class NotedSchema(Schema):
    """Answer to POST /runs/cancel where there is no such run yet."""

    status = fields.Constant("noted", metadata={"type": "string", "enum": ["noted"]})


class IdempotencyKeySchema(Schema):
    """Headers of a request that is safe to repeat."""

    class Meta:
        unknown = EXCLUDE

    idempotency_key = fields.String(data_key="Idempotency-Key", load_default=None, validate=IDEMPOTENCY_KEY)


class StartHeadersSchema(IdempotencyKeySchema):
    """Headers of POST /runs."""

    writer_later = fields.Boolean(
        data_key="Runtail-Writer", truthy={"later"}, falsy=set(), metadata={"type": "string", "enum": ["later"]}
    )
    lease_seconds = fields.Integer(data_key="Runtail-Lease", load_default=None, validate=Range(1, LEASE_MAX))


class ToldInputSchema(Schema):
    """An input, as a writer is told."""

    input_id = fields.String()
    text = fields.String()


class ToldDecisionSchema(Schema):
    """A decision, as a writer is told."""

    approval_id = fields.String()
    decision = fields.String(validate=OneOf(APPROVAL_STATUSES[1:]))
    by = fields.String(allow_none=True)
    comment = fields.String(allow_none=True)


class TakenSchema(Schema):
    """The answer to a writer's batch or heartbeat."""

    head = fields.Integer()
    producer_seq = fields.Integer()
    cancel_requested = fields.Boolean()
    inputs = fields.List(fields.Nested(ToldInputSchema))
    decisions = fields.List(fields.Nested(ToldDecisionSchema))


class UrlsSchema(Schema):
    """Where a run is found."""

    self = fields.String()
    events = fields.String()
    cancel = fields.String()


class StartedSchema(Schema):
    """Answer to POST /runs."""

    run_id = fields.String()
    status = fields.String(validate=OneOf(STATUSES))
    session_id = fields.String()
    urls = fields.Nested(UrlsSchema)
    writer_token = fields.String(allow_none=True, metadata={"description": "Of an external run; null once it ended."})
    watch_token = fields.String(allow_none=True, metadata={"description": "Of an external run; see the protocol."})
    epoch = fields.Integer(allow_none=True, metadata={"description": "Of an external run; null once it ended."})
    lease_seconds = fields.Integer(metadata={"description": "Of an external run."})


class RunSchema(Schema):
    """A run; `state` only where one run was asked for."""

    run_id = fields.String(attribute="id")
    status = fields.String(validate=OneOf(STATUSES))
    agent = fields.String()
    attempt = fields.Integer()
    input = fields.Raw()
    output = fields.Raw()
    error = fields.Raw()
    usage = fields.Raw()
    session_id = fields.String()
    client_run_id = fields.String(allow_none=True)
    metadata = fields.Raw()
    cancel_requested = fields.Boolean()
    state_seq = fields.Integer()
    digest = fields.String(allow_none=True)
    created_at = fields.AwareDateTime()
    started_at = fields.AwareDateTime(allow_none=True)
    finished_at = fields.AwareDateTime(allow_none=True)


class RunWithStateSchema(RunSchema):
    """One run with the fold of its events up to `state_seq`."""

    state = fields.Raw()


class RunPageSchema(Schema):
    """Answer to GET /runs."""

    runs = fields.List(fields.Nested(RunSchema))
    next_cursor = fields.String(allow_none=True)


class ListQuerySchema(Schema):
    """Query of GET /runs."""

    status = fields.String(validate=OneOf(STATUSES))
    agent = fields.String(validate=TEXT)
    session = fields.String(attribute="session_id", validate=SESSION_ID)
    client_run_id = fields.String(validate=SESSION_ID)
    since = Moment(format="iso")
    cursor = fields.String(load_default=None, validate=RUN_ID)
    limit = fields.Integer(load_default=LIST_LIMIT, validate=Range(1, LIST_LIMIT_MAX))

    @pre_load
    def spell_cancelled(self, data: Any, **_: Any) -> Any:
        """`canceled` is taken too."""
        return {**data, "status": "cancelled"} if data.get("status") == "canceled" else data


SNAPSHOT = fields.String(
    validate=OneOf(["whole", "parts"]),
    load_default="whole",
    metadata={"description": "How a snapshot comes: in one message, or in parts of at most 128,000 bytes."},
)


class EventsQuerySchema(Schema):
    """Query of GET /runs/{run_id}/events."""

    since_seq = fields.String(
        metadata={"description": "Cursor: seq of the last event you have, or `latest`.", "pattern": CURSOR}
    )
    last_event_id = fields.String(metadata={"description": "As since_seq; wins over it.", "pattern": CURSOR})
    lastEventId = fields.String(metadata={"description": LIKE_POLYFILLS, "pattern": CURSOR})
    named = fields.String(validate=OneOf(["0", "1"]), load_default="1")
    snapshot = SNAPSHOT
    watch_token = fields.String(metadata={"description": "Of an external run, in place of a key."})
    limit = fields.Integer(load_default=EVENTS_LIMIT, validate=Range(1, EVENTS_LIMIT_MAX))
    speed = fields.Float(
        load_default=None,
        validate=Range(SPEED_MIN, SPEED_MAX),
        metadata={"description": "Play a finished run back with its own timing, so many times as fast."},
    )


class SeveralEventsQuerySchema(Schema):
    """Query of GET /events."""

    runs = fields.String(
        required=True, metadata={"description": "Ids of runs, with commas between them.", "pattern": RUNS}
    )
    since = fields.String(metadata={"description": "Cursor: `run:seq,run:seq`, or `latest`.", "pattern": CURSORS})
    last_event_id = fields.String(metadata={"description": "As since; wins over it.", "pattern": CURSORS})
    lastEventId = fields.String(metadata={"description": LIKE_POLYFILLS, "pattern": CURSORS})
    named = fields.String(validate=OneOf(["0", "1"]), load_default="1")
    snapshot = SNAPSHOT


class WebSocketQuerySchema(Schema):
    """Query of GET /runs/{run_id}/ws."""

    since_seq = fields.String(
        metadata={"description": "Cursor: seq of the last event you have, or `latest`.", "pattern": CURSOR}
    )
    last_event_id = fields.String(metadata={"description": "As since_seq; wins over it.", "pattern": CURSOR})
    lastEventId = fields.String(metadata={"description": LIKE_POLYFILLS, "pattern": CURSOR})
    snapshot = SNAPSHOT


class FeedQuerySchema(Schema):
    """Query of GET /admin/feed."""

    sample = fields.Float(
        load_default=1.0,
        validate=Range(0, 1, min_inclusive=False),
        metadata={"description": "The share of events that are shown; `run.*` always are.", "exclusiveMinimum": 0},
    )


class ApprovalSchema(Schema):
    """Something that a run waits for somebody to decide, or that somebody has decided."""

    approval_id = fields.String(attribute="id")
    run_id = fields.String()
    agent = fields.String()
    label = fields.String()
    requires = fields.String(validate=OneOf(["owner", "operator"]))
    tool_call_id = fields.String(allow_none=True)
    status = fields.Function(lambda approval: approval.decision or "open", metadata={"type": "string"})
    by = fields.String(attribute="decided_by", allow_none=True)
    comment = fields.String(allow_none=True)
    created_at = fields.AwareDateTime()
    expires_at = fields.AwareDateTime(allow_none=True)
    decided_at = fields.AwareDateTime(allow_none=True)


class ApprovalPageSchema(Schema):
    """Answer to GET /approvals."""

    approvals = fields.List(fields.Nested(ApprovalSchema))
    next_cursor = fields.String(allow_none=True)


class ApprovalsQuerySchema(Schema):
    """Query of GET /approvals."""

    status = fields.String(load_default=None, validate=OneOf(APPROVAL_STATUSES))
    run_id = fields.String(data_key="run", load_default=None, validate=TEXT)
    cursor = fields.String(load_default=None, validate=(Length(1, TEXT_MAX_CHARS), APPROVALS_CURSOR))
    limit = fields.Integer(load_default=LIST_LIMIT, validate=Range(1, LIST_LIMIT_MAX))


class DecisionSchema(Schema):
    """Body of POST /runs/{run_id}/approvals/{approval_id}."""

    decision = fields.String(required=True, validate=OneOf(["approved", "denied"]))
    comment = fields.String(load_default=None, allow_none=True, validate=Length(max=COMMENT_MAX_CHARS))


class InputSchema(Schema):
    """Body of POST /runs/{run_id}/input."""

    text = fields.String(required=True, validate=Length(1, INPUT_MAX_CHARS))


class SentInputSchema(Schema):
    """Answer to POST /runs/{run_id}/input."""

    input_id = fields.String()
    run_id = fields.String()


class AgentSchema(Schema):
    """A registered agent, or an entry point that no worker has ever loaded: all but `name` and `error` are null."""

    name = fields.String()
    version = fields.String(allow_none=True)
    isolation = fields.String(allow_none=True)
    input_schema = fields.Raw(allow_none=True)
    error = fields.String(allow_none=True, metadata={"description": "Why some worker could not load it."})


class ProblemSchema(Schema):
    """An error, by RFC 9457."""

    type = fields.String()
    title = fields.String()
    status = fields.Integer()
    code = fields.String(metadata={"description": "Stable; docs/protocol.md lists them."})
    detail = fields.String()


class ResolvedProblemSchema(ProblemSchema):
    """`approval_resolved`, with the outcome."""

    approval = fields.Nested(ApprovalSchema)


class GapProblemSchema(ProblemSchema):
    """`producer_gap`, with the number of the batch that is missing; other conflicts have none."""

    expected = fields.Integer()
