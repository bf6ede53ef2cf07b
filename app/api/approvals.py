"""`/approvals`, and the decision on one of them."""

from typing import Any

from flask import Response

from app.api.context import Blueprint, principal, require_principal, runtail
from app.api.problems import PROBLEM_TYPE, problem
from app.api.schemas import (
    ApprovalPageSchema,
    ApprovalSchema,
    ApprovalsQuerySchema,
    DecisionSchema,
    ResolvedProblemSchema,
)
from app.errors import ApprovalResolved
from app.storage.run_store import ApprovalRecord

blueprint = Blueprint("approvals", __name__, description="What runs wait for somebody to decide")
blueprint.before_request(require_principal)


@blueprint.route("/approvals")
@blueprint.arguments(ApprovalsQuerySchema(), location="query")
@blueprint.response(200, ApprovalPageSchema)
def approvals(query: dict[str, Any]) -> dict[str, Any]:
    """The approvals of the caller's own runs, newest first; for an administrator those of the whole tenant."""
    found, next_cursor = runtail().commands.approvals(principal(), **query)
    return {"approvals": found, "next_cursor": next_cursor}


@blueprint.route("/runs/<run_id>/approvals/<approval_id>", methods=["POST"])
@blueprint.arguments(DecisionSchema())
@blueprint.response(200, ApprovalSchema)
@blueprint.alt_response(
    409, schema=ResolvedProblemSchema, content_type=PROBLEM_TYPE, description="It was decided otherwise, or expired."
)
def decide(body: dict[str, Any], run_id: str, approval_id: str) -> ApprovalRecord:
    """Approve or deny. It is committed when this answers; the run goes on at once.

    The same decision again changes nothing and is answered with the first one.
    """
    return runtail().commands.decide(principal(), run_id, approval_id, **body)


@blueprint.errorhandler(ApprovalResolved)
def resolved(error: ApprovalResolved) -> Response:
    """409, with the outcome."""
    return problem(error, approval=ApprovalSchema().dump(error.approval))
