"""`/runs/{run_id}/input`: messages in the middle of a run."""

from typing import Any

from app.api.context import Blueprint, principal, require_principal, runtail
from app.api.schemas import IdempotencyKeySchema, InputSchema, SentInputSchema

blueprint = Blueprint("inputs", __name__, description="Messages in the middle of a run")
blueprint.before_request(require_principal)


@blueprint.route("/runs/<run_id>/input", methods=["POST"])
@blueprint.arguments(InputSchema())
@blueprint.arguments(IdempotencyKeySchema(), location="headers")
@blueprint.response(202, SentInputSchema)
def send_input(body: dict[str, Any], headers: dict[str, Any], run_id: str) -> dict[str, str]:
    """Send a run that has not ended a message. It is committed when this answers; the run sees it when it looks."""
    sent = runtail().commands.send_input(principal(), run_id, **body, **headers)
    return {"input_id": f"inp_{sent.n}", "run_id": sent.run_id}
