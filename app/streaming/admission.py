"""Who may open a window: the limits per user, per address and per process, and the record of what is open.

Counts are kept in memory; leases in Redis (`app.storage.leases`) tell them to the other processes. Only `admit` waits
for Redis; everything else is written by `run`, a moment later. Redis away means that the other processes' windows are
not counted, not that nobody gets one.

Not responsible for who may see a run (`app.verbs.runs`), or for how a refusal is sent.
"""

import logging
import threading
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from itertools import chain, islice
from sys import intern
from urllib.parse import quote

from app import metrics
from app.errors import StoreUnavailable, TooManyStreams
from app.storage.leases import Claim, Leases
from app.storage.run_store import Principal
from app.streaming.departures import Departures

RETRY_SECONDS = 5
"""When a client that was refused may try again."""
FLUSH_SECONDS = 0.5
SLICES = 20
"""A flush renews one slice of the subjects: each is renewed every SLICES * FLUSH_SECONDS, a third of its lease."""
PIECE = 32
"""Subjects in one round trip: a large flush must not keep events waiting."""
NETWORKS_KNOWN = 1_000
"""Addresses whose network is remembered."""
ADDRESS_CHARS = 50
"""None has more; behind the wrong number of proxies it may be any text of the client's."""
CLOSE_SECONDS = 1.0
"""Time that a process takes at its end to hand back its leases; what is left runs out."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ticket:
    """What one window holds until it is released. An empty subject is not limited, and not counted."""

    run_ids: tuple[str, ...]
    """The runs that it shows, each of which counts as watched."""
    user: str
    address: str
    key_id: str | None = None
    """Of the key that it was opened with, and ends with."""


class Admission:
    """The windows of one process. Call `run` in a greenlet of its own; the rest may be called from any."""

    def __init__(self, leases: Leases, *, max_per_user: int, max_per_address: int, max_windows: int = 0) -> None:
        """:param max_windows: of this process. 0 = no limit, for each of the three."""
        self._leases = leases
        self._max_per_user = max_per_user
        self._max_per_address = max_per_address
        self._max_windows = max_windows
        self._windows = 0
        self._held: list[dict[str, int]] = [{} for _ in range(SLICES)]
        """Open windows by subject, in slices of about the same size."""
        self._changed: dict[str, int] = {}
        """Subjects whose count in Redis is another; the runs among them with the windows opened since."""
        self._left: dict[str, int] = {}
        """Clients that left a run before its end, since its last flush."""
        self._counting = threading.Lock()
        """For servers with threads. Nothing waits while it is held."""
        self._departures = Departures(leases)
        self._turn = 0
        self._connects = 0
        self._away = False
        self._closed = False

    def admit(self, principal: Principal, address: str, *run_ids: str) -> Ticket:
        """Count a window in, before its first byte; waits for Redis once. The caller releases the ticket.

        A window counts once against the limits, however many runs it shows.

        :param address: of the client; empty where it is not known, which no limit applies to.
        :raises TooManyStreams: one of the limits is reached; the detail says which.
        """
        ticket = self._ticket(principal, address, run_ids)
        limits = self._limits(ticket)
        with self._counting:
            self._count_in(limits)
        try:
            self._claim(limits)
        except BaseException as error:
            with self._counting:
                self._count_out(limits)
            if isinstance(error, TooManyStreams):
                metrics.REJECTED_WINDOWS.labels(error.code).inc()
            raise
        with self._counting:
            for run_id in ticket.run_ids:
                self._add(run_id, 1)
                self._changed[run_id] = self._changed.get(run_id, 0) + 1
                self._left.pop(run_id, None)  # somebody came back
            metrics.OPEN_WINDOWS.inc()
        return ticket

    def release(self, ticket: Ticket, *, before_the_end: bool, ended: Container[str] = ()) -> None:
        """Count a window out. Only memory: it never waits.

        :param before_the_end: the window has not delivered its run's terminal event.
        :param ended: of several runs those whose terminal event it has delivered.
        """
        with self._counting:
            self._count_out(self._limits(ticket))
            for run_id in ticket.run_ids:
                self._add(run_id, -1)
                self._changed.setdefault(run_id, 0)
                if before_the_end and run_id not in ended:
                    self._left[run_id] = self._left.get(run_id, 0) + 1
            metrics.OPEN_WINDOWS.inc(-1)

    def run(self) -> None:
        """Keep what the other processes see of this one up to date, until `close`."""
        while not self._closed:
            time.sleep(FLUSH_SECONDS)
            try:
                metrics.flush()
                self.flush()
            except StoreUnavailable as error:
                self._lost(error)
            except Exception:
                log.exception("The leases of the open windows could not be written.")

    def close(self) -> None:
        """Hand everything back, as far as Redis takes it within CLOSE_SECONDS. Nothing is admitted after that."""
        self._closed, deadline = True, time.monotonic() + CLOSE_SECONDS
        with self._counting:
            for held in self._held:
                for subject in held:
                    self._changed.setdefault(subject, 0)
                held.clear()
        metrics.flush()
        try:
            for piece in _pieces(list(self._changed)):
                if time.monotonic() < deadline:
                    self._write(piece)
        except StoreUnavailable as error:
            log.warning("The leases of this process run out by themselves. %s", error.detail)
        self._leases.close()

    # Limits.

    def _ticket(self, principal: Principal, address: str, run_ids: Iterable[str]) -> Ticket:
        user = f"user:{quote(principal.tenant_id, '')}:{quote(principal.user_id, '')}" if self._max_per_user else ""
        network = f"address:{_network(address)}" if self._max_per_address and address else ""
        return Ticket(tuple(map(intern, run_ids)), intern(user), intern(network), principal.key_id)

    def _limits(self, ticket: Ticket) -> list[tuple[str, int]]:
        limits = ((ticket.user, self._max_per_user), (ticket.address, self._max_per_address))
        return [(subject, limit) for subject, limit in limits if subject]

    def _count_in(self, limits: Sequence[tuple[str, int]]) -> None:
        self._windows += 1
        for subject, _ in limits:
            self._add(subject, 1)

    def _count_out(self, limits: Sequence[tuple[str, int]]) -> None:
        self._windows -= 1
        for subject, _ in limits:
            self._add(subject, -1)
            self._changed.setdefault(subject, 0)

    def _claim(self, limits: Sequence[tuple[str, int]]) -> None:
        """Counted first, then asked, in the order of counting: of two at the same time one is refused, never none.

        :raises TooManyStreams: a limit is exceeded.
        """
        if self._max_windows and self._windows > self._max_windows:
            raise TooManyStreams(f"This server process has {self._max_windows} windows open, as many as it takes.")
        claims = [Claim(subject, self._count(subject), limit) for subject, limit in limits]
        for claim in claims:
            if claim.held > claim.limit:
                raise _refusal(claim)
        if claims:
            self._claim_everywhere(claims)

    def _claim_everywhere(self, claims: Sequence[Claim]) -> None:
        try:
            leases = self._leases.write(claims)
        except StoreUnavailable as error:
            self._lost(error)
            for claim in claims:
                self._changed.setdefault(claim.subject, 0)
            return
        for claim, lease in zip(claims, leases, strict=True):
            if not lease.granted:
                raise _refusal(claim)

    # Counts.

    def _count(self, subject: str) -> int:
        return self._slice(subject).get(subject, 0)

    def _add(self, subject: str, number: int) -> None:
        held = self._slice(subject)
        count = held.get(subject, 0) + number
        if count > 0:
            held[subject] = count
        else:
            held.pop(subject, None)

    def _slice(self, subject: str) -> dict[str, int]:
        return self._held[hash(subject) % SLICES]

    # Leases.

    def flush(self) -> None:
        """Write what has changed and renew what is due; look after clients that left.

        :raises StoreUnavailable: Redis cannot be reached; what was not written is written the next time.
        """
        self._leases.ping()
        connects = self._leases.connects
        # A new connection may be to a Redis that has lost its last second: then everything is due.
        due = self._held if connects != self._connects else [self._held[self._turn]]
        with self._counting:
            subjects = dict.fromkeys([*self._changed, *chain.from_iterable(due)])
        for piece in _pieces(subjects):
            self._write(piece)
        self._departures.look_into()
        self._connects, self._turn = connects, (self._turn + 1) % SLICES
        self._found()

    def _write(self, subjects: Sequence[str]) -> None:
        with self._counting:
            opened = {subject: self._changed.pop(subject, 0) for subject in subjects}
            left = {subject: self._left.pop(subject) for subject in subjects if subject in self._left}
            claims = [Claim(subject, self._count(subject), 0, opened[subject]) for subject in opened]
        try:
            leases = self._leases.write(claims)
        except BaseException:
            with self._counting:
                _add_up(self._changed, opened)
                _add_up(self._left, left)
            raise
        for claim, lease in zip(claims, leases, strict=True):
            for _ in range(left.get(claim.subject, 0)):
                self._departures.add(claim.subject, lease.opens)

    def _lost(self, error: StoreUnavailable) -> None:
        if not self._away:
            log.warning("Windows of other processes are not counted until Redis is back. %s", error.detail)
        self._away = True

    def _found(self) -> None:
        if self._away:
            log.info("Redis is back; every process' windows are counted again.")
        self._away = False


def _network(address: str) -> str:
    """What one client has: an IPv4 address, or the /64 that an IPv6 address is from."""
    return _network_of(address) if len(address) <= ADDRESS_CHARS else quote(address, "")


@lru_cache(NETWORKS_KNOWN)
def _network_of(address: str) -> str:
    try:
        ip = ip_address(address)
    except ValueError:
        return quote(address, "")
    if not isinstance(ip, IPv6Address):
        return str(ip)
    return str(ip.ipv4_mapped or IPv6Address(int(ip) >> 64 << 64))


def _refusal(claim: Claim) -> TooManyStreams:
    kind = claim.subject.partition(":")[0]
    return TooManyStreams(f"The {kind} has {claim.limit} windows open, as many as it may.")


def _pieces(subjects: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(subjects)
    while piece := list(islice(rest, PIECE)):
        yield piece


def _add_up(counts: dict[str, int], more: dict[str, int]) -> None:
    for subject, number in more.items():
        counts[subject] = counts.get(subject, 0) + number
