"""How external runs end: by their writer's wish, or because they have lost it. Shared by the API and the janitors.

A run is taken over first, together with how it is to end; whoever finds it like that brings it to that end. It needs no
Redis: all that there is of such a run is in the archive.
"""

import logging
from dataclasses import dataclass
from typing import Any

from app.errors import (
    Fenced,
    HookFailed,
    InvalidEvent,
    InvalidJson,
    InvalidOutput,
    Refused,
    StoreUnavailable,
    TooDeep,
    WriterLost,
)
from app.hooks import text_of
from app.identifiers import no_run
from app.pace import paced
from app.protocol.ending import Ending, given_output, is_said, said_output
from app.protocol.reducer import ENDED
from app.protocol.state import output_of
from app.storage.log_writer import LogWriter
from app.storage.run_store import RunRecord, WriterBeat
from app.wiring import Services

Wanted = dict[str, Any]
"""`status`, and `output` or `error`: see `app.verbs.external_payloads.wanted_of`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ends:
    """Each may raise StoreUnavailable for Postgres, and may then be called again."""

    services: Services

    def end_lost(self, beat: WriterBeat, *, ignore_heartbeat: bool) -> bool:
        """End a run whose writer is lost, or does not heed its cancel. False: somebody else was faster."""
        config = self.services.config
        lost = WriterLost(
            f"The writer was silent for {beat.lease_seconds or config.external_lease_seconds} s."
            if beat.claimed
            else f"No writer came within {config.external_claim_seconds} s."
        )
        error = {"code": lost.code, "message": lost.detail}
        wanted = {"status": "cancelled"} if beat.cancel_requested else {"status": "failed", "error": error}
        taken = self.services.external.take_lost(beat, wanted, ignore_heartbeat=ignore_heartbeat)
        if taken is not None:
            self.end(*taken)
        return taken is not None

    def end_unclaimed(self, run: RunRecord) -> bool:
        """End a run whose cancel was requested before it had a writer. False: it has one, or is being ended."""
        return self.end_lost(WriterBeat.unclaimed(run), ignore_heartbeat=False)

    def end(self, run: RunRecord, wanted: Wanted) -> RunRecord:
        """Write the end of a run that was taken over. Returns the run as it ended.

        :raises StoreUnavailable: somebody else is at it, too.
        """
        self.services.recovery.level([run.id])
        try:
            self._commit_end(run, wanted)
        except Refused as error:  # asked again, it would be refused again: the run has to end all the same
            log.error("The end of %s cannot be stored as it is. %s", run.id, error.detail)
            failed = InvalidOutput(f"The output cannot be stored. {error.detail}")
            self._commit_end(run, {"status": "failed", "error": {"code": failed.code, "message": failed.detail}})
        ended = self.services.store.get(run.id)
        if ended is None:
            raise no_run(run.id)
        if not ended.terminal:
            raise StoreUnavailable(f"{run.id} is about to end.")
        return self.publish(ended)

    def publish(self, ended: RunRecord) -> RunRecord:
        """Bring the end of the run into Redis, where that is still to be done."""
        try:
            if not ended.published:
                self.services.ownership.publish(ended.id, ended.epoch)
        except StoreUnavailable as error:
            log.warning("The end of %s is committed; a janitor will publish it. %s", ended.id, error.detail)
        return ended

    def _commit_end(self, run: RunRecord, wanted: Wanted) -> None:
        ownership = self.services.ownership
        writer = ownership.open_archived(run)
        try:
            if writer.state["status"] not in ENDED:  # else Postgres has lost that it had ended
                ownership.end(writer, self._ending(writer, run, wanted))
            ownership.commit_end(writer)
        except Fenced:
            log.info("%s is ended by somebody else.", run.id)

    def _ending(self, writer: LogWriter, run: RunRecord, wanted: Wanted) -> Ending:
        if wanted["status"] == "cancelled":
            return Ending.cancelled(run.cancel_reason or "requested")
        if wanted["status"] == "failed":
            return Ending("failed", error=wanted["error"])
        try:
            return self._conclude(writer, output_of(writer.state, wanted))
        except HookFailed as error:
            return Ending.failed(error)
        except (InvalidJson, TooDeep, InvalidEvent) as error:
            return Ending.failed(InvalidOutput(f"The output is not valid: {error.detail}"))

    def _conclude(self, writer: LogWriter, output: Any) -> Ending:
        """How the run ends with this output. A text that it has not said is said now, in place of what it has said."""
        state, hooks = writer.state, self.services.hooks
        if isinstance(output, str):
            output = self._as_streamed(state, output)
        if isinstance(output, str) and not is_said(state, output, paced):
            about = {"message_id": f"msg_{writer.epoch}"}
            replaces = {"replaces": True} if _answered(state) else {}
            started = hooks("message.started", {**about, "role": "assistant", **replaces})
            deltas = hooks.deltas(about["message_id"], output)
            output = text_of(deltas)
            writer.add("message.started", started)
            for delta in deltas:
                if delta["text"]:
                    writer.add("message.delta", delta)
            writer.add("message.completed", hooks.fact("message.completed", {**about, "chars": len(output)}))
        payload = {**said_output(state, given_output(state, output), paced), "usage": state["usage"], "digest": ""}
        return Ending.of(state, hooks("run.completed", payload))

    def _as_streamed(self, state: Any, text: str) -> str:
        """The text that a writer returns, which knows only what it has sent: as the log has it, where that is the same.

        What hooks make of a whole text need not be what they made of its pieces; then it is left as it is.
        """
        answer: str = state["answer"]["text"]
        return answer if text != answer and text_of(self.services.hooks.deltas("", text)) == answer else text


def _answered(state: Any) -> bool:
    return any(message["role"] == "assistant" and message["status"] != "abandoned" for message in state["messages"])
