"""The work of a job never depends on Runtail: servers that are killed, hang, refuse, drip, or take nothing any more."""

import datetime
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis import Redis
from rq import Queue
from rq.job import Job
from rq.timeouts import JobTimeoutException

from app.storage.run_store import Principal
from runtail import Cancelled, Run, current_run
from runtail.client import Opened, Runtail
from runtail.client.claiming import START_SECONDS as DEFAULT_START_SECONDS
from runtail.client.patience import FINISH_SECONDS
from runtail.client.refs import KEY_MAX_CHARS, fitting_key
from tests.client.lines import ARRIVES, BUSY, PAGE, REQUEST_LOST, TOO_LARGE, line_to
from tests.conftest import StackMaker
from tests.harness import ROOT, Process, Stack, eventually, free_port
from tests.stored import ended, payloads, reach, row

SLACK_SECONDS = 5.0
"""Of a busy machine."""


def work(run: Run, month: str) -> dict[str, Any]:
    """Calls every verb."""
    assert current_run() is run
    run.plan(["Read", "Write"])
    with run.step("Read") as step:
        step.progress(0.5)
        rows = run.tool("query", len, month, label="Reading", summary={"month": month})
    run.progress(0.5)
    run.source("Books", url="https://example.com")
    run.check("tone", True)
    run.usage(input_tokens=1)
    run.emit("custom.note", {"n": 1})
    run.sleep(0.05)
    assert not run.cancelled
    run.check_cancelled()
    return {"rows": rows, "text": run.stream(["It is ", month])}


DONE = {"rows": 3, "text": "It is May"}


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Accepts connections and leaves each to `serve`."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as opened:

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                opened.callback(connection.close)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def drip(connection: socket.socket) -> None:
    """An answer that goes on for ever, a byte at a time."""
    try:
        connection.sendall(b"HTTP/1.1 202 Accepted\r\nX-Slow: ")
        while True:
            connection.sendall(b"x")
            time.sleep(0.1)
    except OSError:
        pass


def saying(status: int, body: bytes, kind: str = "application/json") -> Callable[[socket.socket], None]:
    """Answers whatever it is asked with that."""

    def serve(connection: socket.socket) -> None:
        head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        try:
            while connection.recv(65_536):
                connection.sendall(head + body)
        except OSError:
            pass

    return serve


# At the start.


NEVER: dict[str, Callable[[socket.socket], None]] = {
    "never answers": lambda connection: None,
    "drips": drip,
    "hangs up": lambda connection: connection.close(),
    "fails": saying(500, b"{}"),
    "is busy": saying(503, b""),
    "is something else": saying(200, b"<p>Welcome</p>", "text/html"),
    "answers with other JSON": saying(202, b"[1]"),
    "answers with no run": saying(202, b'{"run_id": "run_1"}'),
    "says that it knows nobody": saying(401, b'{"code": "unauthorized", "detail": "Who are you?"}'),
}
START_SECONDS = 2.0


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs wait for a shorter time than by default."""
    assert DEFAULT_START_SECONDS <= 10
    monkeypatch.setattr("runtail.client.claiming.START_SECONDS", START_SECONDS)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", NEVER)
def test_a_job_does_its_work_where_the_server(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with listener(NEVER[kind]) as url, Runtail(url) as client:
        begun = time.monotonic()
        assert client.job(work)("May") == DONE
        assert time.monotonic() - begun < START_SECONDS + SLACK_SECONDS
    assert "The job does its work without a run." in caplog.text


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1", "http://runtail.invalid", "http://[::1", "no address at all"],  # nobody listens on 1
)
def test_a_job_does_its_work_where_nobody_is(url: str, caplog: pytest.LogCaptureFixture) -> None:
    client = Runtail(url)
    assert client.job(work)("May") == DONE
    assert "The job does its work without a run." in caplog.text


@pytest.mark.parametrize("ref", ["", "no ref", "{}", '{"key": 1, "user": null, "body": null}'])
def test_so_it_does_with_a_ref_that_is_none(live: Stack, ref: str) -> None:
    with Runtail(live.url) as client:
        assert client.job(work)("May", ref=ref) == DONE


def test_without_a_run_nobody_is_waited_for() -> None:
    with Runtail(f"http://127.0.0.1:{free_port()}") as client:

        @client.job
        def ask(run: Run) -> tuple[str, list[str]]:
            return run.approve("Send it?").decision, run.inputs(wait=True)

        assert ask() == ("expired", [])


def slowly(path: str, producer_seq: str) -> str:
    """Arrives after a second."""
    time.sleep(1)
    return ARRIVES


@pytest.mark.parametrize("work_seconds", [0.0, 2.0])
def test_a_run_that_is_claimed_too_late_shows_the_result_all_the_same(
    live: Stack, monkeypatch: pytest.MonkeyPatch, work_seconds: float
) -> None:
    monkeypatch.setattr("runtail.client.claiming.START_SECONDS", 0.5)
    with line_to(live.port) as line, Runtail(live.url) as client, Runtail(line.url) as slow:
        opened = client.open()

        @slow.job
        def report(run: Run) -> str:
            time.sleep(work_seconds)
            line.fate = lambda path, producer_seq: ARRIVES
            return run.stream(["a", "b"])

        line.fate = slowly
        assert report(ref=opened.ref) == "ab"
        if work_seconds:
            assert ended(live, opened.run_id).output == "ab"
        else:  # the first claim is still on its way, and may come first or last
            assert eventually(lambda: row(live, opened.run_id).terminal, 30)


class Stopped(BaseException):
    """As gevent's time-outs, which are no Exception."""


@contextmanager
def late_claim(live: Stack) -> Iterator[tuple[Runtail, Opened, Callable[[], bool]]]:
    """A client whose claims arrive after a second, a run, and whether nobody in this process writes it."""
    with line_to(live.port) as line, Runtail(live.url) as client, Runtail(line.url, beat_seconds=0.1) as slow:
        opened = client.open()
        line.fate = lambda path, producer_seq: slowly(path, producer_seq) if path == "/runs" else ARRIVES

        def at_rest() -> bool:
            at_work = {thread.name for thread in threading.enumerate()}
            asked = any(path == "/runs" for path, *_ in line.seen)
            return asked and not at_work & {f"runtail {opened.run_id}", "runtail asks"}

        yield slow, opened, at_rest


@pytest.mark.parametrize("tried_again", [False, True])
@pytest.mark.parametrize("stopped", [JobTimeoutException, Stopped, SystemExit])
def test_a_job_stopped_while_it_waits_for_its_run_leaves_no_writer(
    live: Stack, stopped: type[BaseException], tried_again: bool
) -> None:
    def stop(number: int, frame: Any) -> None:
        raise stopped

    with late_claim(live) as (client, opened, at_rest):
        job = client.job(work, retried=lambda error: tried_again)
        before = signal.signal(signal.SIGALRM, stop)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(stopped):
                job("May", ref=opened.ref)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        eventually(at_rest, 20, "the end of its threads")
        assert row(live, opened.run_id).terminal is not tried_again


@pytest.mark.parametrize("work_seconds", [0.0, 2.0])
def test_a_job_stopped_at_its_work_without_a_run_leaves_no_writer(
    live: Stack, monkeypatch: pytest.MonkeyPatch, work_seconds: float
) -> None:
    monkeypatch.setattr("runtail.client.claiming.START_SECONDS", 0.3)
    with late_claim(live) as (client, opened, at_rest):

        @client.job
        def report(run: Run) -> None:
            time.sleep(work_seconds)
            raise SystemExit

        with pytest.raises(SystemExit):
            report(ref=opened.ref)
        eventually(at_rest, 20, "the end of its threads")
        assert ended(live, opened.run_id, "failed").error["code"] == "writer_lost"


def test_a_server_that_is_back_before_the_job_has_ended_gets_its_result(live: Stack) -> None:
    with line_to(live.port) as line, Runtail(live.url) as client, Runtail(line.url) as away:
        good, bad = client.open(), client.open()

        @away.job
        def report(run: Run, error: Exception | None = None) -> int:
            assert run.id == ""
            line.dead = False
            if error:
                raise error
            return 7

        line.dead = True
        assert report(ref=good.ref) == 7
        line.dead = True
        with pytest.raises(ConnectionError, match="its own"):
            report(ConnectionError("its own"), ref=bad.ref)
    assert ended(live, good.run_id).output == 7
    assert ended(live, bad.run_id, "failed").error["code"] == "agent_error"


# In the middle, and at the end.


@pytest.fixture
def own(stack: StackMaker) -> Stack:
    """A server that a test may do anything to."""
    own = stack()
    own.start_web()
    return own


def family(server: Stack) -> list[psutil.Process]:
    """The processes of its web."""
    parent = psutil.Process(server.web_pid)
    return [parent, *parent.children(recursive=True)]


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_finished_job_returns_within_ten_seconds_when_the_server_is_gone_for_good(
    own: Stack, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Runtail(own.url) as client:

        @client.job
        def report(run: Run) -> dict[str, Any]:
            for process in family(own):
                process.send_signal(number)
            return work(run, "May")

        begun = time.monotonic()
        assert report() == DONE
        took = time.monotonic() - begun
    assert took < FINISH_SECONDS + SLACK_SECONDS
    assert "was not confirmed" in caplog.text


@pytest.mark.parametrize("fate", [REQUEST_LOST, BUSY, PAGE, TOO_LARGE])
def test_a_job_ends_in_time_when_its_line_breaks_in_the_middle(live: Stack, fate: str) -> None:
    with line_to(live.port) as line, Runtail(line.url, finish_seconds=1.0) as client:

        @client.job
        def report(run: Run) -> str:
            line.fate = lambda path, producer_seq: fate
            return run.stream(["a", "b"])

        begun = time.monotonic()
        assert report() == "ab"
        assert time.monotonic() - begun < 1 + SLACK_SECONDS


def test_an_exception_of_the_job_itself_is_raised_as_soon(live: Stack) -> None:
    with line_to(live.port) as line, Runtail(line.url, finish_seconds=1.0) as client:

        @client.job
        def report(run: Run) -> None:
            line.dead = True
            raise ConnectionError("its own")

        begun = time.monotonic()
        with pytest.raises(ConnectionError, match="its own"):
            report()
        assert time.monotonic() - begun < 1 + SLACK_SECONDS


def test_an_end_that_was_not_confirmed_in_time_is_delivered_when_the_server_is_back(live: Stack) -> None:
    with line_to(live.port) as line, Runtail(line.url, finish_seconds=0.5) as client:
        runs: list[str] = []

        @client.job
        def report(run: Run) -> str:
            runs.append(run.id)
            line.dead = True
            return run.stream(["late"])

        assert report() == "late"
        line.dead = False
        assert ended(live, runs[0]).output == "late"


def test_a_full_buffer_does_not_hold_a_job_up_for_ever(live: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtail.client.patience.ROOM_SECONDS", 1.0)
    with line_to(live.port) as line, Runtail(line.url, buffer_bytes=50_000, finish_seconds=5.0) as client:
        runs: list[str] = []

        @client.job
        def report(run: Run) -> int:
            runs.append(run.id)
            line.dead = True
            begun = time.monotonic()
            for n in range(3_000):
                run.emit("custom.tick", {"n": n, "text": "x" * 50})
            assert time.monotonic() - begun < 1 + SLACK_SECONDS
            line.dead = False
            return 7

        assert report() == 7
    error = ended(live, runs[0], "failed").error
    assert error == {"code": "unreachable", "message": "Not all that the job has written could be taken."}


def test_a_server_that_hangs_is_asked_for_inputs_once(own: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtail.client.patience.ANSWER_SECONDS", 1.0)
    with Runtail(own.url, finish_seconds=0.5) as client:

        @client.job
        def report(run: Run) -> float:
            assert run.inputs() == []
            for process in family(own):
                process.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            assert [run.inputs() for _ in range(50)] == [[]] * 50
            return time.monotonic() - begun

        assert 0.9 < report() < 1 + SLACK_SECONDS


def test_nobody_waits_for_a_person_while_the_server_is_away(live: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtail.client.patience.AWAY_SECONDS", 1.0)
    with line_to(live.port) as line, Runtail(line.url, finish_seconds=0.5) as client:

        @client.job
        def report(run: Run) -> tuple[str, list[str]]:
            line.dead = True
            return run.approve("Send it?").decision, run.inputs(wait=True)

        assert report() == ("expired", [])


def test_a_cancel_still_stops_a_job_of_which_an_event_was_refused(live: Stack) -> None:
    with Runtail(live.url, beat_seconds=0.1) as client:
        seen: list[str] = []

        @client.job
        def report(run: Run) -> None:
            run.plan([f"Step {n}" for n in range(1_001)])  # too many for the server
            eventually(lambda: "refused" if run._sink._sender.incomplete else "", what="the refusal")
            client.cancel(run.id)
            try:
                for _ in range(200):
                    run.sleep(0.05)
            except Cancelled:
                seen.append("cancelled")
                raise

        assert report() is None
        assert seen == ["cancelled"]


# Under RQ, which ends a job whose time is over.


@contextmanager
def rq_job(live: Stack, url: str, name: str, *args: Any, **options: Any) -> Iterator[Job]:
    """A job of `tests.client.jobs`, and a worker that knows Runtail at that address."""
    queue_name = f"alone-{name}"
    command = [
        str(Path(sys.executable).with_name("rq")),
        "worker",
        "--burst",
        "--url",
        live.env["REDIS_URL"],
        queue_name,
    ]
    with Redis.from_url(live.env["REDIS_URL"]) as redis:
        job = Queue(queue_name, connection=redis).enqueue(f"tests.client.jobs.{name}", *args, **options)
        worker = Process("rq", command, {**os.environ, "RUNTAIL_URL": url, "PYTHONPATH": str(ROOT)}, live.folder)
        try:
            yield job
            assert worker.popen.wait(60) == 0
        finally:
            worker.kill()


def test_a_server_that_hangs_costs_a_short_job_little_of_its_time(live: Stack) -> None:
    with listener(lambda connection: None) as url, rq_job(live, url, "report", "May", job_timeout=8) as job:
        eventually(lambda: job.get_status(refresh=True) in ("finished", "failed"), 30, "the end of the job")
        assert job.return_value() == "3 letters in May.", job.latest_result()


def test_a_job_that_is_done_when_its_time_is_over_has_succeeded(live: Stack) -> None:
    with line_to(live.port) as line, Runtail(live.url) as client:
        opened = client.open()
        with rq_job(live, line.url, "ticks", 3, ref=opened.ref, job_timeout=15) as job:
            reach(live, opened.run_id, "custom.tick")
            line.dead = True
            eventually(lambda: job.get_status(refresh=True) in ("finished", "failed"), 30, "the end of the job")
            assert job.return_value() == "Done.", job.latest_result()


# What the server does not take.


def odd_results() -> dict[str, Any]:
    """What a job may return."""

    class Lazy(dict[str, Any]):
        def items(self) -> Any:
            raise LookupError("The session is closed.")

    return {
        "a date": datetime.date(2026, 5, 1),
        "a set": {1, 2},
        "not a number": {"mean": float("nan")},
        "a large integer": 2**64,
        "a lazy row": Lazy(a=1),
        "bytes": b"\0\1",
        "2 MB": ["x" * 1_000] * 2_000,
    }


@pytest.mark.parametrize("kind", odd_results())
def test_a_job_returns_what_has_no_json_form_or_is_too_large(live: Stack, kind: str) -> None:
    result = odd_results()[kind]
    with Runtail(live.url) as client:
        assert client.job(lambda run: result, user=f"odd {kind}")() is result
        (run,) = live.http.get("/runs", headers={"Runtail-User": f"odd {kind}"}).json()["runs"]
        eventually(lambda: row(live, run["run_id"]).terminal)


@pytest.mark.parametrize(
    "write",
    [
        lambda run: run.emit("custom.mean", {"mean": float("inf")}),
        lambda run: run.emit("not.custom", {}),
        lambda run: run.emit("custom.large", {"text": "x" * 1_000_000}),
        lambda run: run.source(b"bytes"),
        lambda run: run.plan(["x" * 1_000_000]),
        lambda run: run.usage(input_tokens=2**70),
    ],
    ids=["infinite", "another type", "too large", "bytes", "a large plan", "too many tokens"],
)
def test_a_job_goes_on_after_an_event_that_cannot_be_sent(
    live: Stack, write: Callable[[Run], None], caplog: pytest.LogCaptureFixture
) -> None:
    with Runtail(live.url) as client:
        runs: list[str] = []

        @client.job
        def report(run: Run) -> str:
            runs.append(run.id)
            write(run)
            run.emit("custom.after", {})
            return run.stream(["whole"])

        assert report() == "whole"
    assert ended(live, runs[0]).output == "whole"
    assert len(payloads(live, runs[0], "custom.after")) == 1
    assert [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_job_whose_result_is_not_the_text_that_it_streamed_has_it_for_its_answer(live: Stack) -> None:
    with Runtail(live.url) as client:
        runs: list[str] = []

        @client.job
        def report(run: Run) -> str:
            runs.append(run.id)
            run.stream(["one truth"])
            return "another one"

        assert report() == "another one"
    assert ended(live, runs[0]).output == "another one"


def test_a_job_whose_run_was_given_to_another_writer_does_its_work(live: Stack) -> None:
    with Runtail(live.url, beat_seconds=0.1) as client:
        opened = client.open()

        @client.job
        def report(run: Run) -> dict[str, Any]:
            with client.run(ref=opened.ref) as other:
                other.output = "theirs"
            eventually(lambda: run._sink._sender._lost)
            return work(run, "May")

        assert report(ref=opened.ref) == DONE
    assert ended(live, opened.run_id).output == "theirs"


def test_a_job_whose_key_was_revoked_does_its_work(live: Stack, caplog: pytest.LogCaptureFixture) -> None:
    key = live.services.registry.create_key(Principal("acme", "worker", admin=False, writer=True))
    with Runtail(live.url, key) as client:
        opened = client.open()
        with live.services.database.session() as db:
            db.execute_sql("DELETE FROM api_keys WHERE tenant_id = 'acme' AND user_id = 'worker'")
        eventually(lambda: live.http.get("/runs", headers={"Authorization": f"Bearer {key}"}).status_code == 401, 20)
        assert client.job(work)("May", ref=opened.ref) == DONE
    assert "unauthorized" in caplog.text


def test_a_process_forked_by_a_job_may_use_its_run(live: Stack) -> None:
    with Runtail(live.url) as client:

        @client.job
        def report(run: Run) -> int:
            if (child := os.fork()) == 0:
                try:
                    run.emit("custom.child", {})
                    run.sleep(0.01)
                    os._exit(0)
                finally:
                    os._exit(1)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        assert report() == 0


# Runs that have ended.


def lost(live: Stack, client: Runtail, code: str = "writer_lost") -> str:
    """The ref of a run that has failed."""
    opened = client.open(user="erin")
    client.fail(opened.ref, code)
    ended(live, opened.run_id, "failed")
    return opened.ref


@pytest.mark.parametrize("code", ["writer_lost", "agent_error"])
def test_a_try_that_finds_its_run_failed_does_its_work_outside_a_run(live: Stack, code: str) -> None:
    with Runtail(live.url) as client:
        assert client.job(work)("May", ref=lost(live, client, code)) == DONE


@pytest.mark.parametrize("chars", [200, 201, 255])
def test_a_run_is_the_same_for_all_ways_to_write_it_however_long_its_key_is(live: Stack, chars: int) -> None:
    with Runtail(live.url) as client:
        opened = client.open(user="erin", idempotency_key=f"{chars}".ljust(chars, "k"))
        runs: list[str] = []

        @client.job(retried=lambda error: True)
        def report(run: Run) -> None:
            runs.append(run.id)
            raise ConnectionError("Not this time.")

        with pytest.raises(ConnectionError):
            report(ref=opened.ref)
        with client.run(ref=opened.ref) as run:
            runs.append(run.id)
        assert runs == [opened.run_id] * 2
        client.fail(opened.ref)
        assert client.open(ref=opened.ref).status == ended(live, opened.run_id).status


@pytest.mark.parametrize("chars", [255, 256, 1_000])
def test_a_job_whose_own_name_is_longer_than_a_key_has_a_run(chars: int) -> None:
    name = "j" * chars
    assert len(fitting_key(name)) <= KEY_MAX_CHARS
    assert fitting_key(name) != fitting_key(name + "k")


def test_a_job_executed_twice_gives_what_the_run_of_its_user_came_to(live: Stack) -> None:
    with Runtail(live.url) as client:
        opened = client.open(user="erin", input={"month": "May"})
        calls: list[str] = []

        @client.job
        def report(run: Run, month: str) -> dict[str, Any]:
            calls.append(run.id)
            return work(run, month)

        assert [report("May", ref=opened.ref) for _ in range(2)] == [DONE, DONE]
        assert calls == [opened.run_id]


def test_a_job_stopped_by_its_user_before_it_began_does_nothing(live: Stack) -> None:
    with Runtail(live.url) as client:
        opened = client.open(user="erin")
        client.for_user("erin").cancel(opened.run_id)
        assert client.job(work)("May", ref=opened.ref) is None


def test_a_job_whose_output_cannot_be_read_again_is_done_again(live: Stack) -> None:
    with line_to(live.port) as line, Runtail(line.url, timeout=1.0) as client:
        opened = client.open(user="erin")
        assert client.job(work)("May", ref=opened.ref) == DONE
        line.fate = lambda path, producer_seq: BUSY if opened.run_id in path else ARRIVES
        assert client.job(work)("May", ref=opened.ref) == DONE


def test_a_run_that_has_ended_can_be_opened_to_be_shown(live: Stack) -> None:
    with Runtail(live.url) as client:
        opened = client.open(user="erin")
        client.job(work)("May", ref=opened.ref)
        again = client.open(ref=opened.ref)
    assert (again.run_id, again.status, again.ref) == (opened.run_id, "completed", opened.ref)
    assert again.watch_url.endswith(f"watch_token={again.watch_token}")
    with Runtail(live.url) as anybody:
        events = list(anybody.watch(again.run_id, watch_token=again.watch_token))
    assert events[-1]["type"] == "run.completed"
