"""External runs while processes are killed, connections cut, Redis and Postgres away: nothing is lost or doubled."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg2
import pytest

from app.dev.services import EmbeddedServices
from app.protocol.events import TERMINAL
from app.storage.run_store import Batch, BatchResult, Principal, migrate
from app.verbs.external import External, Writer
from app.verbs.external_ends import Ends
from app.verbs.runs import StartRequest
from app.wiring import Services
from tests.conftest import StackMaker
from tests.external_writer import ExternalWriter, Line, ndjson, words
from tests.harness import Stack, eventually, problem
from tests.stored import ended, events, payloads, row
from workers.janitor.loop import Janitor
from workers.janitor.lost_writers import LostWriters

CHECKED: Line = ("quality.checked", {"name": "tone", "passed": True})
LEASE = "2"
DEV = Principal("dev", "dev", admin=True, writer=True)


@pytest.fixture(scope="module")
def web(module_stack: StackMaker) -> Stack:
    """Two web processes, no worker."""
    stack = module_stack(WEB_CONCURRENCY="2")
    stack.start_web()
    return stack


@contextmanager
def own_servers(folder: Path, **settings: str) -> Iterator[tuple[EmbeddedServices, Stack]]:
    """Servers that may be killed, and a web process on them."""
    with ExitStack() as opened:
        servers = opened.enter_context(EmbeddedServices(folder / "servers"))
        migrate(servers.database_url)
        urls = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
        stack = opened.enter_context(Stack({**urls, **settings}, folder))
        stack.start_web()
        yield servers, stack


@contextmanager
def nobody_ends_runs(url: str) -> Iterator[None]:
    """No event can be written meanwhile: a run can be taken over to end it, and does not get any further."""
    with closing(psycopg2.connect(url)) as connection:
        connection.cursor().execute("LOCK TABLE run_events IN SHARE MODE")
        yield


def seqs(stack: Stack, run_id: str) -> list[int]:
    """Of the archived events."""
    return [event.seq for event in events(stack, run_id)]


def numbers(stack: Stack, run_id: str) -> list[int]:
    """What `tick` has written."""
    return [payload["n"] for payload in payloads(stack, run_id, "custom.tick")]


def tick(n: int) -> Line:
    """An event that can be told from the others."""
    return "custom.tick", {"n": n}


def in_background(call: Callable[[], Any]) -> threading.Thread:
    """A call whose connection may break."""

    def attempt() -> None:
        with suppress(httpx.TransportError):
            call()

    thread = threading.Thread(target=attempt)
    thread.start()
    return thread


# Connections.


def request(web: Stack, writer: ExternalWriter, body: bytes) -> bytes:
    """A batch as it goes over a connection."""
    head = [f"POST /runs/{writer.run_id}/events HTTP/1.1", "Host: localhost", "Content-Type: application/x-ndjson"]
    head += [f"{name}: {value}" for name, value in writer.headers().items()]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


@pytest.mark.parametrize("cut", ["in the head", "in the body", "before the answer", "in the answer", "after it"])
def test_a_batch_is_repeated_after_its_connection_was_cut_and_is_there_once(web: Stack, cut: str) -> None:
    writer = ExternalWriter.start(web.http)
    for n in range(1, 6):
        writer.seq = n
        sent = request(web, writer, ndjson([tick(n)] * 3))
        kept = {"in the head": 40, "in the body": len(sent) - 20}.get(cut, len(sent))
        with socket.create_connection(("127.0.0.1", web.port), timeout=30) as sock:
            sock.sendall(sent[:kept])
            if cut in ("in the answer", "after it"):
                sock.recv(10 if cut == "in the answer" else 65_536)
        assert writer.send(ndjson([tick(n)] * 3)).status_code in (200, 204)
        assert writer.send(ndjson([tick(n)] * 3)).status_code == 204
    assert numbers(web, writer.run_id) == [n for n in range(1, 6) for _ in range(3)]
    writer.complete()
    ended(web, writer.run_id)


def test_the_same_batch_over_many_connections_at_once_is_taken_once(web: Stack) -> None:
    writer = ExternalWriter.start(web.http)

    def send(seq: int) -> int:
        return writer.send(ndjson([tick(seq)] * 5), seq=seq).status_code

    with ThreadPoolExecutor(12) as pool:
        for seq in range(1, 21):
            found = sorted(pool.map(send, [seq] * 12))
            assert found == [200] + [204] * 11
    assert numbers(web, writer.run_id) == [n for n in range(1, 21) for _ in range(5)]
    writer.seq = 20
    writer.complete()
    ended(web, writer.run_id)


def test_one_runs_batches_come_to_two_processes_out_of_order_and_are_in_order(web: Stack) -> None:
    writer = ExternalWriter.start(web.http)

    def send(seq: int) -> None:
        while (status := writer.send(ndjson([tick(seq)]), seq=seq).status_code) == 409:
            time.sleep(0.001)
        assert status == 200

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(send, range(1, 101)))
    assert numbers(web, writer.run_id) == list(range(1, 101))
    writer.seq = 100
    writer.complete()
    ended(web, writer.run_id)  # and Redis has the same


def test_a_retried_job_fences_off_the_one_that_still_writes(web: Stack) -> None:
    first = ExternalWriter.start(web.http, client_run_id="retried")
    statuses: list[int] = []

    def write() -> None:
        while not statuses or statuses[-1] == 200:
            statuses.append(first.append(tick(1)).status_code)

    thread = threading.Thread(target=write)
    thread.start()
    eventually(lambda: len(statuses) > 20, what="the first one's batches")
    second = ExternalWriter.start(web.http, client_run_id="retried")
    for _ in range(20):
        assert second.append(tick(2)).status_code == 200
    thread.join()
    assert statuses[-1] == 403
    written = numbers(web, first.run_id)
    assert written == sorted(written), "nothing of the first one's after the second one had begun"
    assert written.count(1) == statuses.count(200)
    second.complete()
    ended(web, first.run_id)


def test_writers_that_claim_at_once_get_epochs_of_their_own(web: Stack) -> None:
    with ThreadPoolExecutor(8) as pool:
        starts = [pool.submit(ExternalWriter.start, web.http, client_run_id="herd") for _ in range(8)]
        writers = [start.result() for start in starts]
    assert sorted(writer.epoch for writer in writers) == list(range(1, 9))
    assert len({writer.run_id for writer in writers}) == 1
    accepted = [writer for writer in writers if writer.append(CHECKED).status_code == 200]
    assert [writer.epoch for writer in accepted] == [8]
    assert seqs(web, writers[0].run_id) == list(range(1, 11))


# The web process dies.


def kill_web(stack: Stack) -> None:
    """kill -9 of the web process, all of it at once."""
    master = psutil.Process(stack.web_pid)
    family = [master, *master.children()]
    for process in family:
        process.kill()
    psutil.wait_procs(family, 10)


def test_the_web_process_dies_between_commit_and_append(tmp_path: Path) -> None:
    with own_servers(tmp_path) as (servers, stack):
        writer = ExternalWriter.start(stack.http)
        writer.append(tick(1))
        os.kill(servers.pid("redis"), signal.SIGSTOP)
        sending = in_background(lambda: writer.append(tick(2)))
        eventually(lambda: numbers(stack, writer.run_id) == [1, 2], what="the commit")
        kill_web(stack)
        servers.kill("redis")  # or it would find the append in its socket
        sending.join()
        servers.start("redis")
        stack.start_web()
        assert stack.services.log.head(writer.run_id) == 3, "it was committed, and not appended"
        assert writer.send(ndjson([tick(2)])).status_code == 204
        assert writer.append(tick(3)).json()["head"] == 5
        assert [event.seq for event in stack.services.log.read(writer.run_id, 0, 100)] == [1, 2, 3, 4, 5]
        writer.complete()
        ended(stack, writer.run_id)


def die_while_ending(stack: Stack, writer: ExternalWriter) -> None:
    """The web process is killed after it has taken the run over and before it has ended it."""
    with nobody_ends_runs(stack.env["DATABASE_URL"]):
        finishing = in_background(lambda: writer.complete(output="Hi."))
        eventually(lambda: row(stack, writer.run_id).epoch == 2, what="the takeover")
        kill_web(stack)
        finishing.join()
        cut_off(stack.services)
    assert not row(stack, writer.run_id).terminal


def test_the_web_process_dies_between_takeover_and_end_and_the_same_finish_ends_it(stack: StackMaker) -> None:
    web = stack()
    web.start_web()
    writer = ExternalWriter.start(web.http)
    writer.append(*words("Hi."))
    die_while_ending(web, writer)
    web.start_web()
    problem(writer.append(CHECKED), 409, "run_ended")
    problem(writer.finish({"status": "cancelled"}), 409, "run_ended")
    answer = writer.complete(output="Hi.")
    assert (answer.status_code, answer.json()["status"]) == (200, "completed"), answer.text
    assert ended(web, writer.run_id).output == "Hi."


def test_the_web_process_dies_between_takeover_and_end_and_a_janitor_ends_it(stack: StackMaker) -> None:
    web = stack(EXTERNAL_LEASE_SECONDS="60")
    web.start_web()
    writer = ExternalWriter.start(web.http)
    writer.append(*words("Hi."))
    die_while_ending(web, writer)
    web.start_worker()
    assert ended(web, writer.run_id).output == "Hi."
    assert sum(event.type in TERMINAL for event in events(web, writer.run_id)) == 1


def test_the_web_process_dies_between_takeover_and_end_and_a_retried_job_finds_it_ended(stack: StackMaker) -> None:
    web = stack()
    web.start_web()
    writer = ExternalWriter.start(web.http, client_run_id="job")
    writer.append(*words("Hi."))
    die_while_ending(web, writer)
    web.start_web()
    answer = web.http.post("/runs", json={"agent": "external", "client_run_id": "job"}).json()
    assert (answer["status"], answer["writer_token"]) == ("completed", None)
    web.start_worker()  # its janitor publishes the end, if the process that died had come to commit it
    ended(web, writer.run_id)


# Redis and Postgres.


def test_appends_and_the_end_are_committed_while_redis_is_away(tmp_path: Path) -> None:
    with own_servers(tmp_path) as (servers, stack):
        writer, silent = ExternalWriter.start(stack.http), ExternalWriter.start(stack.http)
        servers.kill("redis")
        assert writer.append(*words("Hi.")).json()["head"] == 5
        assert silent.append(CHECKED).json()["head"] == 3
        assert [event["seq"] for event in stack.events(writer.run_id)] == [1, 2, 3, 4, 5]
        assert writer.complete(output="Hi.").json()["status"] == "completed"
        begun = ExternalWriter.start(stack.http)
        servers.start("redis")
        eventually(lambda: healed(stack, silent), what="the log in Redis")
        eventually(lambda: healed(stack, begun), what="the log in Redis of a run that began without")
        stack.start_worker()
        ended(stack, writer.run_id)


def healed(stack: Stack, writer: ExternalWriter) -> bool:
    """A heartbeat has brought Redis what it missed."""
    assert writer.beat().status_code == 200
    return stack.services.log.read(writer.run_id, 0, 100) == events(stack, writer.run_id)


def test_appends_go_on_while_redis_stands_still(tmp_path: Path) -> None:
    with own_servers(tmp_path) as (servers, stack):
        writer = ExternalWriter.start(stack.http)
        os.kill(servers.pid("redis"), signal.SIGSTOP)
        assert [writer.append(tick(n)).status_code for n in range(5)] == [200] * 5
        os.kill(servers.pid("redis"), signal.SIGCONT)
        eventually(lambda: healed(stack, writer), what="the log in Redis")


def test_a_batch_is_refused_while_postgres_is_away_and_then_taken(tmp_path: Path) -> None:
    with own_servers(tmp_path) as (servers, stack):
        writer = ExternalWriter.start(stack.http)
        writer.append(tick(1))
        servers.kill("postgres")
        answer = writer.append(tick(2))
        problem(answer, 503, "store_unavailable")
        assert answer.headers["Retry-After"]
        problem(writer.beat(), 503, "store_unavailable")
        problem(writer.complete(), 503, "store_unavailable")
        servers.start("postgres")
        eventually(lambda: writer.send(ndjson([tick(2)])).status_code == 200, what="the same batch again")
        assert numbers(stack, writer.run_id) == [1, 2]
        writer.complete()
        ended(stack, writer.run_id)


# Writers that are lost.


@pytest.fixture(scope="module")
def impatient(module_stack: StackMaker) -> Stack:
    """A web process and two workers, for whom a writer that is silent for a moment is lost."""
    stack = module_stack(EXTERNAL_LEASE_SECONDS=LEASE)
    stack.start_web()
    stack.start_worker()
    stack.start_worker()
    return stack


def test_a_writer_that_falls_silent_loses_the_run(impatient: Stack) -> None:
    writer = ExternalWriter.start(impatient.http)
    writer.append(*words("half")[:2])
    run = ended(impatient, writer.run_id, "failed")
    assert run.error == {"code": "writer_lost", "message": f"The writer was silent for {LEASE} s."}
    assert run.attempt == 1
    problem(writer.append(CHECKED), 409, "run_ended")
    problem(writer.complete(), 409, "run_ended")


def test_a_writer_that_falls_silent_after_a_cancel_leaves_a_cancelled_run(impatient: Stack) -> None:
    writer = ExternalWriter.start(impatient.http)
    impatient.http.post(f"/runs/{writer.run_id}/cancel")
    assert ended(impatient, writer.run_id, "cancelled").cancel_reason == "requested"


def test_heartbeats_keep_the_run(impatient: Stack) -> None:
    writer, other = ExternalWriter.start(impatient.http), ExternalWriter.start(impatient.http)

    def other_is_lost() -> bool:
        assert writer.beat().status_code == 200
        return row(impatient, other.run_id).terminal

    eventually(other_is_lost, 20, "the end of the one that is silent")
    assert writer.append(CHECKED).status_code == 200
    assert writer.complete().status_code == 200


def test_a_cancel_that_is_not_heeded_ends_the_run(impatient: Stack) -> None:
    writer = ExternalWriter.start(impatient.http)
    impatient.http.post(f"/runs/{writer.run_id}/cancel")
    eventually(lambda: writer.append(tick(1)).status_code == 409, 20, "the end of its patience")
    ended(impatient, writer.run_id, "cancelled")


def test_the_writers_of_many_runs_are_lost_at_once(impatient: Stack) -> None:
    writers = [ExternalWriter.start(impatient.http) for _ in range(30)]
    for writer in writers:
        run = ended(impatient, writer.run_id, "failed")
        assert run.error is not None
        assert run.error["code"] == "writer_lost"
        assert run.state_seq == 3


def test_a_janitor_that_dies_after_it_took_a_run_over_leaves_it_to_the_next(stack: StackMaker) -> None:
    web = stack(EXTERNAL_LEASE_SECONDS="1")
    web.start_web()
    writer = ExternalWriter.start(web.http)
    with nobody_ends_runs(web.env["DATABASE_URL"]):
        worker = web.start_worker()
        eventually(lambda: row(web, writer.run_id).epoch >= 2, 20, "the takeover")
        worker.kill()
        cut_off(web.services)
    assert not row(web, writer.run_id).terminal
    web.start_worker()
    run = ended(web, writer.run_id, "failed")
    assert run.error is not None
    assert run.error["code"] == "writer_lost"


# What workers do for their own runs.


def started(services: Services, **more: Any) -> tuple[External, str]:
    """A run that is written from outside, begun past HTTP."""
    external = External(services)
    request = StartRequest("external", {}, None, "continue", None, {}, None, None)
    return external, external.start(DEV, request).run.id


def test_nothing_that_is_done_for_runs_of_workers_touches_it(apart: Services) -> None:
    _, run_id = started(apart)
    before = apart.store.get(run_id)
    assert before is not None
    janitor = Janitor(apart)
    janitor.release_lost()
    janitor.wake_due()
    janitor.enqueue_forgotten()
    assert apart.store.owner_beats() == []
    assert [run.id for run in apart.store.take_forgotten(-1, 100)] == []
    assert apart.store.claim(run_id, "w", start=True) is None
    assert apart.store.claim(run_id, "w", start=False) is None
    apart.ownership.end_unowned(before)
    assert run_id not in apart.queue.waiting()
    assert apart.store.get(run_id) == before


def test_who_shows_a_sign_of_life_at_the_last_moment_keeps_the_run(apart: Services) -> None:
    external, run_id = started(apart)
    (seen,) = [beat for beat in apart.external.beats() if beat.run_id == run_id]
    external.beat(Writer(run_id, 1), 0)
    assert not Ends(apart).end_lost(seen, ignore_heartbeat=False)
    assert Ends(apart).end_lost(replace(seen, cancel_requested=True), ignore_heartbeat=True)


def test_of_two_that_bring_the_same_batch_one_waits_for_the_other(apart: Services) -> None:
    _, run_id = started(apart)
    batch = Batch(run_id, 1, 1, [tick(1)], (), 0)

    def take() -> bool:
        (answer,) = apart.batches.take([batch])
        assert isinstance(answer, BatchResult), answer
        return answer.repeated

    with ThreadPoolExecutor(2) as pool:
        with nobody_ends_runs(apart.config.database_url):
            taken = [pool.submit(take) for _ in range(2)]
            eventually(lambda: waiting_for_locks(apart) == 2, what="both of them waiting")
        assert sorted(one.result() for one in taken) == [False, True]
    assert [event.seq for event in apart.store.events(run_id, 0, 10)] == [1, 2, 3]


WAITING_FOR_LOCKS = "FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


def waiting_for_locks(services: Services) -> int:
    """Transactions of this database that wait for another one."""
    with services.database.session() as db:
        return int(db.execute_sql(f"SELECT count(*) {WAITING_FOR_LOCKS}").fetchone()[0])


def cut_off(services: Services) -> None:
    """End them: Postgres carries out what a process that was killed had asked for, unless its connection goes, too."""
    with services.database.session() as db:
        db.execute_sql(f"SELECT pg_terminate_backend(pid) {WAITING_FOR_LOCKS}")


@pytest.mark.timeout(300)  # a thousand commits, on a disk that others use
def test_a_pass_over_1_000_runs_is_cheap(apart: Services) -> None:
    for _ in range(1_000):
        started(apart)
    lost = LostWriters(apart)
    lost.end()
    begun = time.perf_counter()
    for _ in range(10):
        lost.end()
    assert (time.perf_counter() - begun) / 10 < 0.1
