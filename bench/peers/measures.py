"""What is measured of every server, in the same way: Runtail is one of them.

Responsible for the five measurements, each on a server that was started for it. Not responsible for how a server is
asked for anything (`bench.peers.peer`).
"""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from bench.peers.account import Account
from bench.peers.idle import Windows, bytes_held
from bench.peers.peer import WAITING, Peer, Run, Work
from bench.peers.reader import Reader
from bench.peers.stores import kept
from bench.peers.wire import Refused
from bench.processes import BenchError
from bench.quantiles import quantiles
from bench.report import Figures

WARM_UP_POSTS = 5
WARM_UP_WINDOWS = 20
WAITING_RUNS = 4
RUN_SECONDS = 120.0
KILLED_AT = 1 / 3


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything; the options of the scenario."""

    posts: int
    events: int
    interval_ms: float
    cuts: int
    away_ms: float
    rounds: int
    killed_events: int
    killed_interval_ms: float
    outage: float
    patience: float
    windows: int
    stored_runs: int
    deltas: int
    delta_interval_ms: float
    settle: float
    """Seconds for what a server does a little later: setting up windows, archiving, counting."""


def first_event(peer: Peer, sizes: Sizes) -> Figures:
    """Milliseconds from before the POST to the first event of any kind, and to the agent's first."""
    with peer:
        for _ in range(WARM_UP_POSTS):
            _post(peer)
        times = [_post(peer) for _ in range(sizes.posts)]
    events, deltas = zip(*times, strict=True)
    found = {**quantiles("first_event", events), **quantiles("first_delta", deltas)}
    return {name: value for name, value in found.items() if "_p99_" not in name and "_max_" not in name}


def _post(peer: Peer) -> tuple[float, float]:
    begun = time.monotonic()
    run, stream = peer.start(Work(1))
    first = delta = 0.0
    with stream:
        for frame in stream.frames():
            peer.learn(run, frame)
            first = first or frame.at
            if peer.deltas(frame):
                delta = delta or frame.at
            if peer.is_end(frame):
                break
    if not delta:
        raise BenchError(f"A run of {peer.name} has ended, or fallen silent, without a delta.")
    return (first - begun) * 1_000, (delta - begun) * 1_000


def reconnects(peer: Peer, sizes: Sizes) -> Figures:
    """A client is cut off at even places of a fast run, is away for a moment, and comes back."""
    with peer:
        readers = [_cut(peer, sizes) for _ in range(sizes.rounds)]
    lost, doubled = [[getattr(reader.account, what) for reader in readers] for what in ("lost", "doubled")]
    return {
        "reconnect_lost_least": min(lost),
        "reconnect_lost_most": max(lost),
        "reconnect_doubled_most": max(doubled),
        "reconnect_saw_the_end": sum(reader.ended for reader in readers),
        "reconnect_rounds": sizes.rounds,
        "reconnect_last_refusal": max(reader.refused for reader in readers),
    }


def _cut(peer: Peer, sizes: Sizes) -> Reader:
    reader, stream = Reader.started(peer, Work(sizes.events, sizes.interval_ms), RUN_SECONDS)
    places = [sizes.events * (cut + 1) // (sizes.cuts + 1) for cut in range(sizes.cuts)]
    with stream:
        reader.read(stream, partial(_beyond, places[0]))
    for place in [*places[1:], sizes.events]:
        time.sleep(sizes.away_ms / 1_000)
        reader.come_back(partial(_beyond, place))
    return reader


def _beyond(place: int, account: Account) -> bool:
    return account.furthest >= place


def killed(peer: Peer, sizes: Sizes) -> Figures:
    """kill -9 of all processes of the server in the middle of a run; started again a little later."""
    work = Work(sizes.killed_events, sizes.killed_interval_ms)
    with peer:
        reader, stream = Reader.started(peer, work, RUN_SECONDS)
        with stream:
            reader.read(stream, partial(_beyond, int(work.count * KILLED_AT)))
            peer.kill()
            died, before = time.monotonic(), reader.account.furthest
        time.sleep(sizes.outage)
        peer.launch()
        reader.deadline = time.monotonic() + sizes.patience
        reader.come_back()
    further = [at for at in reader.arrivals if at > died]
    return {
        "kill_run_ended": "yes" if reader.ended and reader.account.furthest == work.count - 1 else "no",
        "kill_seen_before": before + 1,
        "kill_lost": reader.account.lost,
        "kill_doubled": reader.account.doubled,
        "kill_to_next_delta_s": further[0] - died if further else None,
        "kill_last_refusal": reader.refused,
    }


def idle_windows(peer: Peer, sizes: Sizes) -> Figures:
    """Resident bytes of all processes of the server, and bytes of its Redis, for each window on a run that waits."""
    with peer:
        runs = [_waiting(peer) for _ in range(WAITING_RUNS)]
        with Windows(peer, runs, WARM_UP_WINDOWS) as first, Windows(peer, runs, sizes.windows) as windows:
            first.open(sizes.settle)
            before = bytes_held(peer)
            windows.open(sizes.settle)
            after = bytes_held(peer)
            open_now = windows.still_open()
    per_window = {name: (after[name] - before[name]) / sizes.windows for name in before}
    return {f"window_{name}_bytes": value for name, value in per_window.items()} | {"windows_open": open_now}


def _waiting(peer: Peer) -> Run:
    reader, stream = Reader.started(peer, WAITING, RUN_SECONDS)
    with stream:
        reader.read(stream, partial(_beyond, 0))
    return reader.run


def storage(peer: Peer, sizes: Sizes) -> Figures:
    """Bytes that a finished run leaves in each store, and how many of its deltas a later client can still read."""
    work = Work(sizes.deltas, sizes.delta_interval_ms)
    with peer:
        _finished(peer, work)
        time.sleep(sizes.settle)
        before = kept(peer)
        with ThreadPoolExecutor(WAITING_RUNS) as pool:
            readers = list(pool.map(lambda _: _finished(peer, work), range(sizes.stored_runs)))
        time.sleep(sizes.settle)
        after = kept(peer)
        late = _late(peer, readers[0].run, work)
    bytes_each = {f"stored_{name}_bytes": (after[name] - before[name]) / sizes.stored_runs for name in after}
    return {**bytes_each, "stored_runs_ended": sum(r.ended for r in readers), "read_later": len(late.account.times)}


def _late(peer: Peer, run: Run, work: Work) -> Reader:
    """A client that comes when the run has ended, and wants all of it."""
    late = Reader(peer, Run(run.id, run.session), Account(work.count), time.monotonic() + RUN_SECONDS)
    with peer.open(peer.follow(late.run)) as stream, suppress(Refused):  # nothing of it is there any more
        late.read(stream)
    return late


def _finished(peer: Peer, work: Work) -> Reader:
    reader, stream = Reader.started(peer, work, RUN_SECONDS)
    with stream:
        reader.read(stream)
    return reader
