"""What is explored: in the suite, at length, and without each rule in turn."""

from tests.model.world import Scenario

TOOL, ASK = ("tool",), ("approve",)
YES = ("approved",)


def _scenario(script: tuple[str, ...], decisions: tuple[str, ...] = YES, **more: int) -> Scenario:
    """`inputs`, `expires`, `slow_post` and `known` are the scenario's own, the rest are budgets."""
    own = {name: more.pop(name) for name in ("inputs", "expires", "slow_post", "known") if name in more}
    return Scenario(script, more, decisions=decisions, **own)  # type: ignore[arg-type]


SHORT = {
    "a tool, a crash, a wrong suspicion": _scenario(TOOL, crashes=1, suspicions=1),
    "a tool, Redis rolled back": _scenario(TOOL, rollbacks=1),
    "a tool, Postgres loses its last transactions": _scenario(TOOL, failovers=1),
    "a question, Postgres loses its last transactions": _scenario(ASK, failovers=1),
    "a tool, cancelled by name": _scenario(TOOL, cancels=1, slow_post=1),
    "a question, decided twice, and a crash": _scenario(ASK, ("approved", "denied"), crashes=1),
    "a question that expires, a deploy": _scenario(ASK, deploys=1, expires=1),
    "a question, an answer lost": _scenario(ASK, ("approved", "denied"), lost_answers=1, expires=1),
    "a question, cancelled": _scenario(ASK, cancels=1),
    "a question, an input": _scenario(ASK, inputs=1),
    "a question, the time over": _scenario(ASK, timeouts=1, crashes=1),
    "a question, Redis rolled back": _scenario(ASK, rollbacks=1),
    "an input, a crash": _scenario(("input",), inputs=1, crashes=1),
    "a sleep, a crash, a deploy": _scenario(("sleep",), crashes=1, deploys=1),
    "a tool, a heartbeat late": _scenario(TOOL, late_hearts=1, claims_under_way=1),
    "a tool that ends its worker and is found, a crash": _scenario(TOOL, kills=3, crashes=1, known=1),
    "a tool that ends its worker unseen": _scenario(TOOL, kills=4),
    "two tools that end their workers, a crash": _scenario(("tool", "tool"), kills=2, crashes=1),
}

LONG = {
    "a tool, two crashes, a wrong suspicion": _scenario(TOOL, crashes=2, suspicions=1),
    "a tool, two wrong suspicions, a job twice": _scenario(TOOL, suspicions=2, duplicates=1),
    "a tool, a wrong suspicion, a cancel": _scenario(TOOL, suspicions=1, cancels=1),
    "two tools, Redis rolled back twice": _scenario(("tool", "tool"), rollbacks=2),
    "two tools, Redis rolled back, a cancel": _scenario(("tool", "tool"), rollbacks=1, cancels=1),
    "a question, a crash, a wrong suspicion": _scenario(ASK, ("approved", "denied"), crashes=1, suspicions=1),
    "a question, a crash, a cancel": _scenario(ASK, crashes=1, cancels=1, expires=1),
    "a question, two cancels, a slow POST": _scenario(ASK, cancels=2, slow_post=1),
    "a question, an input, a crash": _scenario(ASK, inputs=1, crashes=1),
    "a question, an input, a cancel, an answer lost": _scenario(ASK, inputs=1, cancels=1, lost_answers=1),
    "a question, a wrong suspicion, the time over": _scenario(ASK, suspicions=1, timeouts=1, expires=1),
    "a question, Redis rolled back, a cancel": _scenario(ASK, rollbacks=1, cancels=1),
    "a tool, a question, a crash, a deploy, an answer lost": _scenario(
        ("tool", "approve"), crashes=1, deploys=1, lost_answers=1
    ),
    "a question, a tool, a crash, a job twice": _scenario(("approve", "tool"), crashes=1, duplicates=1),
    "a tool, a question, a tool, Redis rolled back": _scenario(("tool", "approve", "tool"), rollbacks=1),
    "two inputs, a wrong suspicion": _scenario(("input", "input"), inputs=2, suspicions=1),
    "an input, Redis rolled back, a cancel": _scenario(("input",), inputs=1, rollbacks=1, cancels=1),
    "a tool, Postgres loses transactions, a crash": _scenario(TOOL, failovers=1, crashes=1),
    "a tool, Postgres loses transactions, a wrong suspicion": _scenario(TOOL, failovers=1, suspicions=1),
    "a question, Postgres loses transactions, an input": _scenario(ASK, failovers=1, inputs=1),
    "an input, Postgres loses transactions": _scenario(("input",), inputs=1, failovers=1),
    "a sleep, Postgres loses transactions": _scenario(("sleep",), failovers=1),
    "a question, Postgres loses transactions, a cancel": _scenario(ASK, failovers=1, cancels=1),
    "a sleep, an input, a crash, a cancel": _scenario(("sleep",), inputs=1, crashes=1, cancels=1),
    "a tool, two heartbeats late": _scenario(TOOL, late_hearts=2),
    "a question, a heartbeat late": _scenario(ASK, late_hearts=1),
    "a tool that ends its worker unseen, a heartbeat late": _scenario(TOOL, kills=3, late_hearts=1),
    "two tools that end their workers, a deploy": _scenario(("tool", "tool"), kills=3, deploys=1, known=1),
}

NEEDED_FOR = {
    "redis_fence": _scenario(TOOL, suspicions=1),
    "fenced_rows": _scenario(TOOL, suspicions=1),
    "fenced_suspend": _scenario(ASK, suspicions=1),
    "level_archive": _scenario(TOOL, crashes=1),
    "refill": _scenario(TOOL, crashes=1),
    "predecessor": _scenario(TOOL, lost_answers=1),
    "confirm": _scenario(TOOL, suspicions=1, rollbacks=1),
    "commit_first": _scenario(TOOL, crashes=1),
    "op_with_event": _scenario(TOOL, crashes=1),
    "journal": _scenario(TOOL, crashes=1),
    "reread": _scenario(ASK),
    "reread_cancel": _scenario(ASK, cancels=1),
    "cancel_after_claim": _scenario(TOOL, cancels=1),
    "decide_locks": _scenario(ASK),
    "decide_once": _scenario(ASK, ("approved", "denied")),
    "wake_with_decision": _scenario(ASK, crashes=1),
    "wake_with_input": _scenario(("input",), inputs=1, crashes=1),
    "cancel_claims_waiting": _scenario(ASK, cancels=1).without("cancel_wakes"),
    "cancel_wakes": _scenario(ASK, cancels=1, crashes=1),
    "end_rereads": _scenario(ASK, timeouts=1),
    "early_lock": _scenario(TOOL, cancels=1),
    "early_heeded": _scenario(TOOL, cancels=1),
    "enqueue_forgotten": _scenario(TOOL, crashes=1),
    "publish_ends": _scenario(TOOL, crashes=1),
    "doubt_again": _scenario(TOOL, rollbacks=1),
    "only_losses_count": _scenario(ASK),
    "epoch_owner": _scenario(TOOL, failovers=1),
    "owner_rows": _scenario(TOOL, failovers=1, crashes=1),
    "look_in_redis": _scenario(TOOL, failovers=1, suspicions=1),
    "archive_follows": _scenario(TOOL, failovers=1),
    "rows_restored": _scenario(ASK, failovers=1),
    "end_restored": _scenario(TOOL, failovers=1),
    "started_once": _scenario(TOOL, failovers=1),
    "wake_lost": _scenario(ASK, failovers=1),
    "only_known_charged": _scenario(TOOL, crashes=1),
    "known_charged": _scenario(TOOL, kills=3, known=1),
    "alone_after_two": _scenario(TOOL, kills=3),
    "recorded_resets": _scenario(("tool", "tool"), crashes=2),
    "loss_changes_row": _scenario(TOOL, late_hearts=1, claims_under_way=1),
    "silent_claims_nothing": _scenario(TOOL, late_hearts=1),
    "silent_condemns_nobody": _scenario(TOOL, late_hearts=1),
}
"""Of each rule a scenario in which something goes wrong without it."""
