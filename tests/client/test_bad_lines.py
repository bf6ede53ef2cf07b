"""A client on a line that breaks: nothing is lost, nothing is doubled, and nothing is buffered without end."""

import random
import socket
import threading
import time
from collections import defaultdict

import pytest

from runtail import Refused, Unreachable, WriterLost
from runtail.client import Runtail
from tests.client.lines import ANSWER_LOST, ARRIVES, BUSY, PAGE, REQUEST_LOST, TOO_LARGE, line_to
from tests.harness import Stack, eventually, free_port
from tests.stored import ended, payloads, row
from tests.test_cli import bad_line


def test_a_watch_over_a_line_that_breaks_twelve_times_gets_every_event_once(live: Stack) -> None:
    run_id = live.start("emit", {"count": 3_000, "type": "custom.tick"})
    breaks = [0, 50, 700, -1, 4_000, 90_001, -1, -1, 123_457, 30_000, 3, 100_000]
    with bad_line(live.port, breaks) as port, Runtail(f"http://127.0.0.1:{port}") as client:
        watched = list(client.watch(run_id))
    assert watched == live.events(run_id)
    assert [event["seq"] for event in watched] == list(range(1, 3_004))


def test_a_watch_from_the_end_of_a_run_ends(live: Stack, client: Runtail) -> None:
    run_id = live.start("emit", {"count": 1})
    seen = list(client.watch(run_id))
    assert list(client.watch(run_id, since=seen[-1]["seq"])) == []
    assert list(client.watch(run_id, since=seen[-2]["seq"])) == seen[-1:]
    assert list(client.events(run_id, since=1)) == seen[1:]


def test_a_watch_of_a_run_that_is_not_there_says_so(client: Runtail) -> None:
    with pytest.raises(Refused) as refused:
        next(client.watch("run_none"))
    assert refused.value.status == 404


def test_nobody_there_is_unreachable() -> None:
    with Runtail(f"http://127.0.0.1:{free_port()}") as client, pytest.raises(Unreachable):
        client.start("emit")


def test_a_server_that_does_not_answer_holds_a_view_up_no_longer_than_it_was_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        asked_at = time.monotonic()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with Runtail(url, timeout=1.0) as client, pytest.raises(Unreachable):
            client.open()
    assert 0.9 < time.monotonic() - asked_at < 2


def test_a_start_whose_answer_is_lost_starts_one_run(live: Stack) -> None:
    with line_to(live.port) as line, Runtail(line.url) as client:
        fates = iter([ANSWER_LOST, BUSY])
        line.fate = lambda path, producer_seq: next(fates, ARRIVES)
        run_id = client.start("emit", {"count": 1}, session="ses_start_once")
    runs = live.http.get("/runs", params={"session": "ses_start_once"}).json()["runs"]
    assert [run["run_id"] for run in runs] == [run_id]


def test_a_writer_whose_every_answer_is_lost_once_loses_and_doubles_nothing(live: Stack) -> None:
    begun: set[tuple[str, str]] = set()
    with line_to(live.port) as line, Runtail(line.url) as client:

        def fate(path: str, producer_seq: str) -> str:
            if not producer_seq or (path, producer_seq) in begun:
                return ARRIVES
            begun.add((path, producer_seq))
            return ANSWER_LOST

        line.fate = fate
        with client.run() as run:
            for n in range(2_000):
                run.emit("custom.tick", {"n": n})
                if n % 100 == 0:
                    run.sleep(0.002)
            run.output = run.stream(f"{n} " for n in range(500))
    assert ended(live, run.id).output == "".join(f"{n} " for n in range(500))
    assert [payload["n"] for payload in payloads(live, run.id, "custom.tick")] == list(range(2_000))
    batches = defaultdict(list)
    for path, seq, body, fate_of_it in line.seen:
        if "/events" in path:
            batches[seq].append((body, fate_of_it))
    assert len(batches) > 3
    for sent in batches.values():
        assert [fate_of_it for _, fate_of_it in sent] == [ANSWER_LOST, ARRIVES]
        assert sent[0][0] == sent[1][0], "the very same batch"


@pytest.mark.parametrize("seed", range(3))
def test_a_writer_over_a_line_that_is_cut_at_random_loses_and_doubles_nothing(live: Stack, seed: int) -> None:
    chance = random.Random(seed)
    fates = [*[ARRIVES] * 4, ANSWER_LOST, REQUEST_LOST, BUSY, PAGE]
    with line_to(live.port) as line, Runtail(line.url) as client:
        line.fate = lambda path, producer_seq: chance.choice(fates)
        with client.run(idempotency_key=f"random-{seed}") as run:
            for n in range(30):
                run.emit("custom.tick", {"n": n})
                run.sleep(0.01)
    ended(live, run.id)
    assert [payload["n"] for payload in payloads(live, run.id, "custom.tick")] == list(range(30))


def test_a_writer_without_a_network_goes_on_until_its_buffer_is_full_and_then_waits(live: Stack) -> None:
    with line_to(live.port) as line, Runtail(line.url, buffer_bytes=100_000) as client, client.run() as run:
        run.emit("custom.tick", {"n": 0})
        eventually(lambda: payloads(live, run.id, "custom.tick"))
        line.dead = True
        written = [0]

        def write() -> None:
            for n in range(1, 5_000):
                run.emit("custom.tick", {"n": n, "text": "x" * 50})
                written[0] = n

        writer = threading.Thread(target=write)
        writer.start()
        eventually(lambda: len(line.seen) > 3)
        stuck = eventually(lambda: written[0] if written[0] > 500 else 0)
        writer.join(0.5)
        assert writer.is_alive()
        assert written[0] == stuck or written[0] < 2_000, "what does not fit waits"
        line.dead = False
        writer.join(30)
        assert written[0] == 4_999
    ended(live, run.id)
    assert [payload["n"] for payload in payloads(live, run.id, "custom.tick")] == list(range(5_000))


def test_a_batch_that_is_too_large_for_a_proxy_is_cut_up(live: Stack) -> None:
    with line_to(live.port) as line, Runtail(line.url) as client, client.run() as run:
        line.fate = lambda path, producer_seq: TOO_LARGE if len(line.coming) > 4_000 else ARRIVES
        for n in range(300):
            run.emit("custom.tick", {"n": n, "text": "x" * 50})
    ended(live, run.id)
    assert [payload["n"] for payload in payloads(live, run.id, "custom.tick")] == list(range(300))
    assert {fate for *_, fate in line.seen} == {ARRIVES, TOO_LARGE}


def test_an_event_that_is_too_large_for_a_proxy_fails_the_run_at_once(live: Stack) -> None:
    with line_to(live.port) as line, Runtail(line.url) as client:
        line.fate = lambda path, producer_seq: TOO_LARGE if len(line.coming) > 4_000 else ARRIVES
        with pytest.raises(Refused) as refused, client.run() as run:
            run.emit("custom.large", {"text": "x" * 5_000})
    assert refused.value.status == 413
    assert ended(live, run.id, "failed").error["code"] == "agent_error"


def test_a_watch_of_what_is_no_server_is_given_up(live: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtail.client.watch.GIVE_UP_SECONDS", 1.0)
    with line_to(live.port) as line, Runtail(line.url) as client:
        line.fate = lambda path, producer_seq: PAGE
        with pytest.raises(Unreachable):
            next(client.watch("run_any"))


def test_an_end_whose_answer_is_lost_is_the_end(live: Stack) -> None:
    with line_to(live.port) as line, Runtail(line.url) as client:
        fates = iter([ANSWER_LOST, BUSY])
        line.fate = lambda path, producer_seq: next(fates, ARRIVES) if path.endswith("/finish") else ARRIVES
        with client.run() as run:
            run.stream(["grey"])
    assert ended(live, run.id).output["text"] == "grey"


def test_a_writer_away_for_longer_than_its_lease_is_told_that_it_has_lost_the_run(live: Stack, stack) -> None:
    own = stack(EXTERNAL_LEASE_SECONDS="2")
    own.start_web()
    own.start_worker()

    def be_away(run: object) -> None:
        line.dead = True
        eventually(lambda: row(own, run.id).terminal, 30)
        line.dead = False
        run.sleep(30)

    with line_to(own.port) as line, Runtail(line.url) as client, pytest.raises(WriterLost), client.run() as run:
        be_away(run)
    assert row(own, run.id).error["code"] == "writer_lost"
