"""What is stored after a play, read past the API: rows, logs, journal, approvals, and the effects of tools."""

from collections import defaultdict
from typing import Any, NamedTuple

from app.protocol.events import Event
from tests.chaos.installation import Installation


class Row(NamedTuple):
    """Of `runs`, what a client can compute or be told."""

    run_id: str
    agent: str
    status: str
    epoch: int
    attempt: int
    output: Any
    error: Any
    state: Any
    digest: str | None


class Effect(NamedTuple):
    """A row that a call of `plain` has made. `serial` goes up with each."""

    serial: int
    token: str


class Asked(NamedTuple):
    """A row of `approvals`."""

    run_id: str
    approval_id: str
    decision: str | None
    decided_by: str | None
    comment: str | None


class Archive:
    """Everything, in memory. A run's call is (run_id, op)."""

    def __init__(self, installation: Installation) -> None:
        query = installation.query
        sql = "SELECT id, agent, status, epoch, attempt, output, error, state, digest FROM runs ORDER BY id"
        self.runs = {row[0]: Row(*row) for row in query(sql)}
        self.events: dict[str, list[Event]] = defaultdict(list)
        for run_id, *event in query("SELECT run_id, seq, type, e, op FROM run_events ORDER BY run_id, seq"):
            self.events[run_id].append(Event(*event))
        sql = "SELECT run_id, op, name, result FROM run_ops WHERE kind = 'tool' AND NOT failed ORDER BY run_id, op"
        self.results = {(run_id, op): (name, result) for run_id, op, name, result in query(sql)}
        self.plain: dict[tuple[str, str], list[Effect]] = defaultdict(list)
        for run_id, op, serial, token in query("SELECT run_id, op, serial, token FROM chaos_plain ORDER BY serial"):
            self.plain[run_id, op].append(Effect(serial, token))
        self.keyed: dict[tuple[str, str], list[str]] = defaultdict(list)
        for run_id, op, key in query("SELECT run_id, op, key FROM chaos_keyed"):
            self.keyed[run_id, op].append(key)
        sql = "SELECT run_id, id, decision, decided_by, comment FROM approvals ORDER BY run_id, id"
        self.approvals: dict[str, list[Asked]] = defaultdict(list)
        for row in query(sql):
            self.approvals[row[0]].append(Asked(*row))
        self.refunds: dict[int, int] = dict(query("SELECT order_id, count(*) FROM shop_refunds GROUP BY order_id"))
