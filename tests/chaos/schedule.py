"""What is killed when, and what is started: functions of the seed alone. Pure.

The plays of one seed kill the same things in the same order, and start the same runs in the same order. How far each
run has come when the blow falls is up to the machine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, count
from random import Random
from typing import Any

BACKENDS = "backends"
KINDS = ("web", "worker", "redis", "postgres", "isolated", BACKENDS)
EXTERNAL = "external"
PARTS = ("all", "master", "process")
FIRST_ORDER = 900_000
"""Number of the first order of the support runs: each has its own."""
LEDGER_CALLS = 12
SSE, NDJSON = "text/event-stream", "application/x-ndjson"
MOST_PAUSE_SECONDS = 2.0
MOST_GAP_SECONDS = 0.6
"""Between the two blows of a pair."""
DENIED, RIVALLED, REPEATED = 0.2, 0.25, 0.25
"""Shares of the approvals: that are denied; that two callers decide differently at once; that are decided twice."""
MOST_THOUGHT_SECONDS = 5.0
"""How long an approval is left open."""


@dataclass(frozen=True, slots=True)
class Victim:
    """What to kill -9. Of Redis and PostgreSQL there is one, of a PostgreSQL its postmaster is killed.

    `backends` are those of PostgreSQL; they are stopped for a while instead.
    """

    kind: str
    part: str = "all"
    """Of a web: `all`, its `master`, or one `process` of it."""
    which: int = 0
    """Of the two workers, or of a web's two processes, the older one first."""

    def __str__(self) -> str:
        if self.kind == "worker" or (self.kind == "web" and self.part == "process"):
            return f"{self.kind} {self.which}"
        return f"web {self.part}" if self.kind == "web" else self.kind


@dataclass(frozen=True, slots=True)
class Round:
    """One blow or two, `gap` seconds apart, after a pause."""

    number: int
    victims: tuple[Victim, ...]
    pause: float
    gap: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a run's approval."""

    verdict: str
    """approved or denied; `none` where nobody will ask."""
    rivalled: bool = False
    repeated: bool = False
    after: float = 0.0
    """Seconds that the approval is left open."""

    @property
    def opposite(self) -> str:
        """What the rival says."""
        return "denied" if self.verdict == "approved" else "approved"


@dataclass(frozen=True, slots=True)
class Order:
    """One run to start, and how its window is opened."""

    number: int
    agent: str
    input: dict[str, Any]
    accept: str
    decision: Decision

    @property
    def key(self) -> str:
        """Its idempotency key."""
        return f"chaos-{self.number}"


def rounds(seed: int, number: int) -> list[Round]:
    """Each kind in turn, and between two of these a random pair; every pair has its turn before one comes again."""
    randomly = Random(f"rounds of {seed}")
    pairs = _decks(randomly)
    made = []
    for n in range(number):
        kinds = (KINDS[n // 2 % len(KINDS)],) if n % 2 == 0 else next(pairs)
        victims = tuple(Victim(kind, randomly.choice(PARTS), randomly.randrange(2)) for kind in kinds)
        made.append(
            Round(n + 1, victims, randomly.uniform(0, MOST_PAUSE_SECONDS), randomly.uniform(0, MOST_GAP_SECONDS))
        )
    return made


def _decks(randomly: Random) -> Iterator[tuple[str, ...]]:
    pairs = list(combinations(KINDS, 2))
    while True:
        for pair in randomly.sample(pairs, len(pairs)):
            yield tuple(randomly.sample(pair, 2))


def orders(seed: int) -> Iterator[Order]:
    """Runs without end, of all kinds in turn."""
    makers = (_emit, _support, _ledger, _external, _emit, _support, _ledger, _emit, _support, _ledger_apart)
    for number in count():
        randomly = Random(f"order {number} of {seed}")
        agent, input = makers[number % len(makers)](number, randomly)
        # One in four by NDJSON; drawn, so that every agent has windows of both kinds.
        accept = NDJSON if randomly.random() < 0.25 else SSE
        yield Order(number, agent, input, accept, _decision(randomly))


def references() -> list[Order]:
    """Quick runs whose events the others are compared with; the first asks the shop of an order that it has not."""
    stranger = {"message": "Where is order 1000?", "latency_scale": 0}
    refund = {"latency_scale": 0.1}
    return [
        Order(-1, "support", stranger, SSE, Decision("none")),
        Order(-2, "support", {"message": _refund_of(-2), **refund}, SSE, Decision("approved")),
        Order(-3, "support", {"message": _refund_of(-3), **refund}, SSE, Decision("denied")),
        Order(-4, "ledger", {"calls": LEDGER_CALLS, "pause_ms": 20}, SSE, Decision("none")),
    ]


def _refund_of(number: int) -> str:
    return f"I want a refund for order {FIRST_ORDER + number}"


def order_number(order: Order) -> int:
    """Of the shop's order that a support run is about."""
    return FIRST_ORDER + order.number


def _emit(number: int, randomly: Random) -> tuple[str, dict[str, Any]]:
    type = "custom.tick" if number % 2 else "message.delta"
    return "emit", {"count": randomly.randint(15, 40), "interval_ms": 400, "type": type, "text": f"word {number} "}


def _support(number: int, randomly: Random) -> tuple[str, dict[str, Any]]:
    return "support", {"message": _refund_of(number), "latency_scale": round(randomly.uniform(0.3, 1), 2)}


def _ledger(number: int, randomly: Random) -> tuple[str, dict[str, Any]]:
    return "ledger", {"calls": LEDGER_CALLS, "pause_ms": randomly.randint(100, 300)}


def _ledger_apart(number: int, randomly: Random) -> tuple[str, dict[str, Any]]:
    """Short: one process executes them one after the other."""
    return "ledger_apart", {"calls": 3, "pause_ms": randomly.randint(20, 60)}


def _external(number: int, randomly: Random) -> tuple[str, dict[str, Any]]:
    return EXTERNAL, {"count": randomly.randint(20, 60)}


def _decision(randomly: Random) -> Decision:
    return Decision(
        verdict="denied" if randomly.random() < DENIED else "approved",
        rivalled=randomly.random() < RIVALLED,
        repeated=randomly.random() < REPEATED,
        after=randomly.uniform(0, MOST_THOUGHT_SECONDS),
    )
