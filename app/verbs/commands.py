"""The verbs that tell a run something: decide on its approvals, send it an input. Knows neither Flask nor wire formats.

A command is committed before it is answered, and only then told to a worker. Cancel is one too (`app.verbs.runs`).
"""

import logging
from dataclasses import dataclass

from app.errors import (
    ApprovalNotFound,
    ApprovalResolved,
    IdempotencyConflict,
    OperatorRequired,
    RunCancelling,
    RunEnded,
    StoreUnavailable,
    TooManyInputs,
)
from app.identifiers import askable, no_run
from app.protocol.ending import NOT_DECIDED
from app.storage.run_store import ApprovalRecord, Decision, InputRecord, Principal, ToldRun
from app.wiring import Services

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Commands:
    """Each may raise StoreUnavailable for Postgres; what Redis misses is repaired and changes no answer."""

    services: Services

    def approvals(
        self, principal: Principal, status: str | None, run_id: str | None, cursor: str | None, limit: int
    ) -> tuple[list[ApprovalRecord], str | None]:
        """A page of the approvals that the principal may see, newest first, and the cursor of the next one."""
        return self.services.waits.page(principal, status, run_id, cursor, limit)

    def decide(
        self, principal: Principal, run_id: str, approval_id: str, decision: str, comment: str | None
    ) -> ApprovalRecord:
        """Decide an approval. The same decision again is answered with the first one.

        :param decision: approved or denied.
        :raises RunNotFound: there is no such run, or neither the run nor the approval is the principal's business.
        :raises ApprovalNotFound: the principal's run has no such approval.
        :raises OperatorRequired: it is the principal's run, but an operator's decision.
        :raises ApprovalResolved: it was decided otherwise, or has expired.
        :raises RunEnded, RunCancelling: nothing waits for a decision any more.
        """
        run_id, approval_id = askable(run_id), askable(approval_id)
        self._authorise(principal, run_id, approval_id)
        decided = self.services.waits.decide(principal, run_id, approval_id, decision, comment)
        if decided is None:
            raise no_run(run_id)
        self._tell(decided.run)
        if decided.approval.decision != decision:
            raise _refusal(decided)
        return decided.approval

    def send_input(self, principal: Principal, run_id: str, text: str, idempotency_key: str | None) -> InputRecord:
        """Send a run an input. The same key with the same text is answered with the first one.

        :raises RunNotFound: there is no such run, or it is somebody else's.
        :raises RunEnded, RunCancelling, TooManyInputs: the run takes no more.
        :raises IdempotencyConflict: the key was used with another text.
        """
        sent = self.services.waits.add_input(principal, askable(run_id), text, idempotency_key)
        if sent is None:
            raise no_run(run_id)
        if sent.input is None:
            raise _closed(sent.run) or TooManyInputs(f"{run_id} was sent as many inputs as a run takes.")
        if sent.input.text != text:
            raise IdempotencyConflict(f"The key belongs to inp_{sent.input.n} of {run_id}, which has another text.")
        self._tell(sent.run)
        return sent.input

    def _authorise(self, principal: Principal, run_id: str, approval_id: str) -> None:
        approval = self.services.waits.find(principal, run_id, approval_id)
        if approval is None:
            if self.services.store.position(principal, run_id) is None:
                raise no_run(run_id)
            raise ApprovalNotFound(f"{run_id} has no approval {approval_id[:100]!r}.")
        owner, by_operator = approval.user_id == principal.user_id, approval.requires == "operator"
        if by_operator and owner and not principal.admin:
            raise OperatorRequired("An administrator of your tenant has to decide this.")
        if not owner and not (by_operator and principal.admin):
            raise no_run(run_id)

    def _tell(self, run: ToldRun) -> None:
        """Both are repaired where they fail: the janitor enqueues, an owner looks by itself now and then."""
        try:
            if run.woken:
                self.services.queue.enqueue(run.id, run.epoch, run.queue)
            elif run.owner is not None:
                self.services.log.ring(run.owner)
        except StoreUnavailable as error:
            log.warning("%s has not been told yet what it was sent. %s", run.id, error.detail)


def _refusal(decision: Decision) -> RunEnded | RunCancelling | ApprovalResolved:
    """Why the approval, which is not what was asked for, stays as it is."""
    run, approval = decision.run, decision.approval
    closed = _closed(run)
    if closed is not None and (approval.decision is None or approval.comment == NOT_DECIDED["comment"]):
        return closed
    outcome = f"{approval.id} of {run.id} is {approval.decision}"
    by = f" by {approval.decided_by}" if approval.decided_by else ""
    return ApprovalResolved(f"{outcome}{by}.{_said(approval.comment)}", approval)


def _said(comment: str | None) -> str:
    return f" {comment[:200]}" if comment else ""


def _closed(run: ToldRun) -> RunEnded | RunCancelling | None:
    """Why a run takes no commands any more, if that is so."""
    if run.finished_at is not None:
        return RunEnded(f"{run.id} is {run.status}.")
    return RunCancelling(f"{run.id} is being cancelled.") if run.cancel_requested else None
