"""What is explored of external runs: in the suite, at length, and without each rule in turn."""

from typing import Any

from tests.model.external_world import ExternalScenario

TWO = ("writer", "writer")
LATER = ("later", "writer")


def _scenario(writers: tuple[str, ...] = ("writer",), **more: Any) -> ExternalScenario:
    """`sends`, `asks`, `inputs`, `wavers` and `janitors` are the scenario's own, the rest are budgets."""
    own = {name: more.pop(name) for name in ("sends", "asks", "inputs", "wavers", "janitors") if name in more}
    return ExternalScenario(writers, more, **own)


SHORT = {
    "a writer, two crashes, an answer not waited for": _scenario(sends=2, crashes=2, impatience=1),
    "a writer that wavers, an ending taken over": _scenario(wavers=True, impatience=2, retakes=1),
    "a writer and its retry, a crash": _scenario(TWO, crashes=1),
    "a writer and its retry, an answer not waited for": _scenario(TWO, impatience=1),
    "a writer and its retry, wrongly called lost": _scenario(TWO, suspicions=1, heartbeats=1),
    "a writer, wrongly called lost by two janitors": _scenario(suspicions=2, janitors=2, heartbeats=1, retakes=1),
    "a writer, a cancel, a crash": _scenario(cancels=1, crashes=1, heartbeats=1),
    "a writer that comes later, a crash": _scenario(LATER, crashes=1, suspicions=1),
    "a writer that comes later, a cancel": _scenario(LATER, cancels=1),
    "a question, a retry, a crash": _scenario(TWO, asks=True, crashes=1),
    "a question, an input, wrongly called lost": _scenario(asks=True, inputs=1, suspicions=1, heartbeats=1, crashes=1),
    "inputs, a retry": _scenario(TWO, inputs=2, heartbeats=1),
    "Redis back with less, a crash": _scenario(sends=2, rollbacks=1, crashes=1, heartbeats=1),
    "Redis back with less, a retry": _scenario(TWO, rollbacks=1, outages=1),
    "Redis away, a crash": _scenario(sends=2, outages=2, crashes=1, heartbeats=1),
}

LONG = {
    "a writer that wavers, a crash": _scenario(wavers=True, crashes=1, impatience=2, retakes=1),
    "a writer and its retry, a crash, an answer not waited for": _scenario(TWO, crashes=1, impatience=1),
    "a writer, a cancel, a crash, an answer not waited for": _scenario(
        sends=2, cancels=1, crashes=1, heartbeats=1, impatience=1
    ),
    "a writer, two crashes, two answers not waited for": _scenario(sends=3, crashes=2, impatience=2),
    "a writer that wavers, wrongly called lost": _scenario(wavers=True, impatience=2, retakes=1, suspicions=1),
    "a writer, wrongly called lost by two janitors, a crash": _scenario(
        suspicions=2, janitors=2, heartbeats=1, crashes=1, retakes=1
    ),
    "a writer and its retry, two crashes": _scenario(TWO, sends=2, crashes=2),
    "a writer and two retries": _scenario((*TWO, "writer")),
    "a writer and its retry, wrongly called lost, a crash": _scenario(TWO, crashes=1, suspicions=1, retakes=1),
    "a writer and its retry, a cancel, wrongly called lost": _scenario(TWO, cancels=1, suspicions=1, heartbeats=1),
    "two writers that come later, a cancel": _scenario((*LATER, "writer"), cancels=1, suspicions=1),
    "a question, a retry, an input, a crash": _scenario(TWO, asks=True, inputs=1, crashes=1, heartbeats=1),
    "a question, a retry, a cancel, wrongly called lost": _scenario(TWO, asks=True, cancels=1, suspicions=1),
    "Redis back with less twice, a crash": _scenario(sends=2, rollbacks=2, crashes=1, heartbeats=1, impatience=1),
    "Redis back with less, a retry, a crash": _scenario(TWO, rollbacks=1, crashes=1),
    "Redis away, a retry, a crash": _scenario(TWO, outages=2, crashes=1, heartbeats=1),
}

NEEDED_FOR = {
    "answer_committed": _scenario(crashes=1),
    "commit_first": _scenario(crashes=1),
    "epoch_check": _scenario(TWO),
    "row_lock": _scenario(impatience=1),
    "batch_numbers": _scenario(crashes=1),
    "number_with_batch": _scenario(crashes=1),
    "told_with_batch": _scenario(inputs=1, crashes=1),
    "carry_told": _scenario(TWO, inputs=1),
    "ask_again": _scenario(TWO, asks=True, heartbeats=1),
    "claim_fences": _scenario(TWO),
    "claim_heeds_ending": _scenario(TWO),
    "take_over_first": _scenario(inputs=1, heartbeats=1, impatience=1),
    "stored_ending": _scenario(crashes=1),
    "finish_numbered": _scenario(impatience=1),
    "same_finish": _scenario(crashes=1),
    "finish_of_last_writer": _scenario(crashes=1),
    "end_decides": _scenario(asks=True),
    "beats_compared": _scenario(suspicions=1),
    "epoch_compared": _scenario(TWO, suspicions=1),
    "takes_again": _scenario(crashes=2),
    "publish_ends": _scenario(crashes=2),
    "doubt_again": _scenario(rollbacks=1),
    "predecessor": _scenario(outages=1, sends=2),
    "heal_on_behind": _scenario(outages=1),
    "beat_heals": _scenario(outages=1, heartbeats=1),
    "claim_heals": _scenario(TWO, outages=1),
    "refill": _scenario(outages=1),
}
"""Of each rule a scenario in which something goes wrong without it."""
