"""The command line as its users meet it: real processes against a real server, and their output."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest

from app.cli.plain import one_line, printable
from app.client import Client
from app.storage.run_store import Principal
from tests.conftest import StackMaker, execute
from tests.harness import READY_SECONDS, ROOT, Process, Stack, eventually, free_port
from tests.waiting import ended, got, waiting

COMMAND = str(Path(sys.executable).with_name("runtail"))
RUNTAIL = [COMMAND]
QUESTION = json.dumps({"message": "Where is order 48291?", "latency_scale": 0.02})
ENDLESS = {"count": 100_000, "interval_ms": 100, "type": "custom.tick"}


def environment(url: str, **more: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "RUNTAIL_KEY", "RUNTAIL_USER")}
    return {**inherited, "RUNTAIL_URL": url, "FORCE_COLOR": "1", **more}


def runtail(url: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RUNTAIL, *arguments],
        env=environment(url, **env),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


class Follower:
    """A `runtail` that runs beside the test, with its output in files."""

    def __init__(self, folder: Path, url: str, *arguments: str) -> None:
        self._out, self._err = folder / "out", folder / "err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            command = [*RUNTAIL, *arguments]
            self.process = subprocess.Popen(
                command, env=environment(url), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def one_sentence(done: subprocess.CompletedProcess[str]) -> str:
    """What a command that got into trouble said: a line on stderr, nothing else."""
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def ticks(output: str) -> list[int]:
    return [int(n) for n in re.findall(r'"n": (\d+)', output)]


# Starting and watching.


def test_start_prints_the_run_id_and_nothing_else(live: Stack) -> None:
    done = runtail(live.url, "start", "support", "--input", QUESTION)
    assert (done.returncode, done.stderr) == (0, "")
    assert live.read(done.stdout.strip())["agent"] == "support"


def test_following_in_a_pipe_prints_the_run_as_plain_lines(live: Stack) -> None:
    done = runtail(live.url, "start", "support", "--input", QUESTION, "--follow")
    assert (done.returncode, done.stderr) == (0, "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", done.stdout), "control codes"
    lines = done.stdout.splitlines()
    run = live.read(re.findall(r"run_\w+", lines[0])[0])
    for expected in (
        "[plan] 1. Look up order #48291; 2. Check inventory",
        "[step] Check inventory: done in",
        "[tool] Looking up order #48291: done in",
        "[source] Order #48291: ",
        "[check] mentions_the_order: passed",
        "[run] completed",
    ):
        assert len([line for line in lines if line.startswith(expected)]) == 1, expected
    assert lines.count(run["state"]["answer"]["text"]) == 1, "the text comes whole and in one piece"


def test_input_comes_from_stdin_where_it_is_a_dash(live: Stack) -> None:
    command = [*RUNTAIL, "start", "support", "--input", "-"]
    run_id = subprocess.check_output(command, env=environment(live.url), cwd=ROOT, input=QUESTION, text=True)
    assert live.read(run_id.strip())["input"] == json.loads(QUESTION)


def test_tail_shows_a_finished_run_from_any_event(live: Stack) -> None:
    run_id = live.start("emit", {"count": 5, "type": "custom.tick"})
    live.ended(run_id)
    whole, rest = runtail(live.url, "tail", run_id), runtail(live.url, "tail", run_id, "--since", "5")
    assert ticks(whole.stdout) == [0, 1, 2, 3, 4]
    assert ticks(rest.stdout) == [3, 4]
    assert runtail(live.url, "tail", run_id, "--since", "8").stdout == ""


def test_what_an_agent_writes_never_controls_the_terminal(live: Stack) -> None:
    run_id = live.start("emit", {"count": 1, "text": "\x1b[2Jred\x07 \x9b31m\r\nnext"})
    done = runtail(live.url, "tail", run_id)
    assert "�[2Jred� �31m\nnext\n" in done.stdout


def test_following_survives_a_restarted_server_and_prints_every_event_once(stack: StackMaker, tmp_path: Path) -> None:
    server = stack()
    web = server.start_web()
    server.start_worker()
    # It goes on while the follower and the second server start: ten seconds are enough on a busy machine.
    run_id = server.start("emit", {"count": 200, "interval_ms": 50, "type": "custom.tick"})
    with Follower(tmp_path, server.url, "tail", run_id) as follower:
        eventually(lambda: '"n": 10,' in follower.out)
        web.kill()
        eventually(lambda: follower.err.endswith("Trying again.\n"))
        server.start_web()
        assert follower.process.wait(30) == 0
    assert ticks(follower.out) == list(range(200))
    assert follower.err.count("\n") == 2
    assert follower.err.endswith("Connected again.\n")


def test_ctrl_c_stops_watching_and_not_the_run(live: Stack, tmp_path: Path) -> None:
    run_id = live.start("emit", ENDLESS)
    with Follower(tmp_path, live.url, "tail", run_id) as follower:
        eventually(lambda: "custom.tick" in follower.out)
        follower.process.send_signal(signal.SIGINT)
        assert follower.process.wait(10) == 130
    assert follower.err == f"Stopped watching; the run goes on. To watch it again: {COMMAND} tail {run_id}\n"
    assert live.read(run_id)["status"] == "running"
    live.http.post(f"/runs/{run_id}/cancel")


def in_terminal(url: str, *arguments: str) -> tuple[int, str]:
    """Exit code and everything that a terminal of 100 × 40 got."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        size = {"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color"}
        os.execve(RUNTAIL[0], [*RUNTAIL, *arguments], environment(url, **size))
    seen = b""
    with suppress(OSError), open(terminal, "rb", buffering=0) as output:  # Linux: EIO once the child is gone
        while chunk := output.read(65_536):
            seen += chunk
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()


def test_in_a_terminal_the_run_is_drawn_live_and_left_behind_whole(live: Stack) -> None:
    question = json.dumps({"message": "Where is order 48291?", "latency_scale": 0.1, "fail_tool": "inventory"})
    code, seen = in_terminal(live.url, "start", "support", "--input", question, "--follow")
    assert code == 0
    assert "\x1b[1A\x1b[2K" in seen, "earlier pictures are taken back"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    frames, picture = text[: text.rindex("support run_")], text[text.rindex("support run_") :]
    assert re.search(r"Checking the stock of Meridian standing desk +━+", frames), "a progress bar"
    assert "○ Draft the reply" in frames
    assert "✓ Draft the reply" in picture
    assert re.search(r"✗ Checking the stock of Meridian standing desk +inventory_unavailable", picture)
    assert "I could not check our stock" in picture
    assert "✓ mentions_the_order" in picture
    assert re.search(r"✓ completed in \d+\.\d s · \d+ events", picture)


# Ends and their exit codes.


def test_exit_code_1_says_that_the_run_failed(live: Stack) -> None:
    run_id = live.start("emit", ENDLESS, timeout_s=1)
    done = runtail(live.url, "tail", run_id)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].endswith("(timeout)")


def test_exit_code_3_says_that_the_run_was_cancelled(live: Stack) -> None:
    run_id = live.start("emit", ENDLESS)
    said = [runtail(live.url, "cancel", run_id).stdout for _ in range(2)]
    assert said == [f"{run_id} is cancelled.\n"] * 2
    assert runtail(live.url, "tail", run_id).returncode == 3


def test_cancel_of_a_finished_run_says_how_it_ended(live: Stack) -> None:
    run_id = live.start("emit", {"count": 1})
    live.ended(run_id)
    assert runtail(live.url, "cancel", run_id).stdout == f"{run_id} is completed.\n"


# Decisions and inputs.


@pytest.fixture(scope="module")
def unattended(module_stack: StackMaker) -> Stack:
    """A web process whose runs nobody executes."""
    unattended = module_stack()
    unattended.start_web()
    return unattended


@pytest.mark.parametrize(("command", "decision"), [("approve", "approved"), ("deny", "denied")])
def test_the_open_approval_of_a_run_is_decided_without_naming_it(
    unattended: Stack, command: str, decision: str
) -> None:
    run = waiting(unattended.services, requires="operator")
    done = runtail(unattended.url, command, run.id, "--comment", "So be it.")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"apr_1 of {run.id} is {decision} by dev: Refund by apr_1?\n"
    (approval,) = unattended.http.get("/approvals", params={"run": run.id}).json()["approvals"]
    assert (approval["status"], approval["comment"]) == (decision, "So be it.")
    assert one_sentence(runtail(unattended.url, command, run.id)).endswith(f"There is no open approval of {run.id}.")


def test_of_several_open_approvals_one_has_to_be_named(unattended: Stack) -> None:
    run = waiting(unattended.services, ids=("apr_1", "apr_2"))
    said = one_sentence(runtail(unattended.url, "approve", run.id))
    assert said.endswith(f"{run.id} has several open approvals; name one of apr_2, apr_1.")
    assert got(unattended.services, run.id).status == "waiting"
    assert runtail(unattended.url, "approve", run.id, "apr_2").stdout.startswith(f"apr_2 of {run.id} is approved")
    assert runtail(unattended.url, "deny", run.id).stdout.startswith(f"apr_1 of {run.id} is denied")


def test_a_decision_that_comes_too_late_is_told_the_outcome(unattended: Stack) -> None:
    run, over = waiting(unattended.services), waiting(unattended.services, expires_in=-1)
    first = runtail(unattended.url, "deny", run.id, "apr_1", "--comment", "No.")
    assert runtail(unattended.url, "deny", run.id, "apr_1").stdout == first.stdout
    for late, code, outcome in (
        (runtail(unattended.url, "approve", run.id, "apr_1"), "approval_resolved", "is denied by dev. No."),
        (runtail(unattended.url, "approve", over.id), "approval_resolved", "is expired."),
        (runtail(unattended.url, "approve", ended(unattended.services, over).id, "apr_1"), "approval_resolved", ""),
    ):
        assert (late.returncode, late.stdout) == (1, "")
        assert f"{outcome} ({code})" in late.stderr
        assert late.stderr.count("\n") == 1


def test_open_approvals_are_listed_a_line_each(unattended: Stack) -> None:
    runs = [waiting(unattended.services, expires_in=n) for n in (None, 1_000)]
    runtail(unattended.url, "approve", waiting(unattended.services).id)
    lines = runtail(unattended.url, "approvals").stdout.splitlines()
    assert re.fullmatch(rf"{runs[1].id} apr_1 Refund by apr_1\? \(needed from owner, until \S+\)", lines[0])
    assert lines[1] == f"{runs[0].id} apr_1 Refund by apr_1? (needed from owner)"
    key = unattended.services.registry.create_key(Principal("acme", "cleo"))
    assert runtail(unattended.url, "approvals", RUNTAIL_KEY=key).stdout == ""


def test_an_input_is_sent_until_the_run_has_ended(unattended: Stack) -> None:
    run = waiting(unattended.services)
    done = runtail(unattended.url, "input", run.id, "The grey one.")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{run.id} was sent inp_1.\n", "")
    assert [sent.text for sent in unattended.services.waits.inputs(run.id, 0, 9)] == ["The grey one."]
    late = runtail(unattended.url, "input", ended(unattended.services, run).id, "And quickly.")
    assert (late.returncode, late.stdout) == (1, "")
    assert late.stderr == f"Error: {run.id} is cancelled. (run_ended)\n"


def test_who_watches_a_run_is_told_how_to_decide(unattended: Stack, tmp_path: Path) -> None:
    run = waiting(unattended.services, requires="operator")
    with Follower(tmp_path, unattended.url, "tail", run.id) as follower:
        eventually(lambda: "[run] waits" in follower.out)
        ended(unattended.services, run)
        assert follower.process.wait(20) == 3
    how = f"{COMMAND} approve {run.id} apr_1, or {COMMAND} deny …"
    said = f"Refund by apr_1?: needed from operator. To decide: {how}"
    assert f"[approval] {said}" in follower.out.splitlines()


def test_a_followed_run_goes_on_once_it_is_approved_from_another_terminal(live: Stack, tmp_path: Path) -> None:
    with Follower(tmp_path, live.url, "start", "waits_for", "--input", '{"on": "approval"}', "--follow") as follower:
        how = eventually(lambda: re.search(r"runtail (approve run_\w+) apr_\S+, or", follower.out), 30)
        done = runtail(live.url, *how[1].split(), "--comment", "Go on.")
        assert (done.returncode, done.stderr) == (0, "")
        assert follower.process.wait(30) == 0
    lines = follower.out.splitlines()
    assert "[approval] approved by dev: Go on." in lines
    assert lines[-1] == "[run] completed"


def test_a_run_that_waits_for_input_goes_on_with_what_it_is_sent(live: Stack) -> None:
    run_id = live.start("waits_for", {"on": "input"})
    eventually(lambda: live.read(run_id)["status"] == "waiting", 30)
    assert runtail(live.url, "input", run_id, "The grey one.").returncode == 0
    run = live.ended(run_id, 30)
    assert run["output"] == {"texts": ["The grey one."]}
    assert run["state"]["inputs"] == [{"id": "inp_1", "text": "The grey one."}]


def test_a_decision_and_an_input_whose_answers_are_lost_are_made_once(unattended: Stack) -> None:
    run = waiting(unattended.services)
    with bad_line(unattended.port, [0, 20, -1]) as port, Client(f"http://127.0.0.1:{port}") as client:
        assert client.send_input(run.id, "The grey one.") == "inp_1"
    with bad_line(unattended.port, [0, 20, -1]) as port, Client(f"http://127.0.0.1:{port}") as client:
        assert client.decide(run.id, "apr_1", "approved", None)["status"] == "approved"
    assert len(unattended.services.waits.inputs(run.id, 0, 9)) == 1


# Trouble.


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("start", "nobody"), "unknown_agent"),
        (("start", "support", "--input", '{"message": 3}'), "invalid_input"),
        (("tail", "run_0"), "run_not_found"),
        (("cancel", "../runs"), "not_found"),
        (("approve", "run_0", "apr_1"), "run_not_found"),
        (("input", "run_0", "hello"), "run_not_found"),
        (("verify", "run_0"), "run_not_found"),
        (("tail", "run_0", "--key", "rt_wrong"), "unauthorized"),
    ],
)
def test_what_the_server_refuses_becomes_one_sentence_with_its_code(
    live: Stack, arguments: tuple[str, ...], code: str
) -> None:
    assert f"({code})" in one_sentence(runtail(live.url, *arguments))


def test_a_server_that_is_not_there_becomes_one_sentence() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for arguments in (("start", "support"), ("tail", "run_0"), ("cancel", "run_0"), ("verify", "run_0")):
        assert f"{url} cannot be reached" in one_sentence(runtail(url, *arguments))
    assert "cannot be reached" in one_sentence(runtail("localhost:8000", "tail", "run_0"))


@pytest.mark.parametrize("input", ["{", "[]", "3"])
def test_an_input_that_is_no_json_object_is_wrong_usage(live: Stack, input: str) -> None:
    done = runtail(live.url, "start", "support", "--input", input)
    assert done.returncode == 2
    assert "--input" in done.stderr


# Verifying.


def test_verify_recomputes_the_digest_from_the_api_and_from_postgres(live: Stack) -> None:
    run_id = runtail(live.url, "start", "support", "--input", QUESTION).stdout.strip()
    digest = live.ended(run_id)["digest"]
    api = runtail(live.url, "verify", run_id)
    archive = runtail(live.url, "verify", run_id, "--database", database(live))
    assert (api.returncode, archive.returncode) == (0, 0)
    assert "from the API" in api.stdout
    assert "from Postgres" in archive.stdout
    assert digest in api.stdout
    assert digest in archive.stdout


def test_verify_takes_the_database_of_the_environment_in_heroku_s_spelling(live: Stack) -> None:
    run_id = live.start("emit", {"count": 1})
    live.ended(run_id)
    nowhere = f"http://127.0.0.1:{free_port()}"
    url = database(live).replace("postgresql://", "postgres://", 1)
    assert runtail(nowhere, "verify", run_id, DATABASE_URL=url).returncode == 0


@pytest.mark.parametrize(
    ("tampering", "complaint"),
    [
        ("UPDATE run_events SET e = replace(e, 'tick', 'tock') WHERE run_id = '{}'", "The digest of the log is"),
        ("DELETE FROM run_events WHERE run_id = '{}' AND seq = 3", "The log is broken: gap"),
        ("DELETE FROM run_events WHERE run_id = '{}' AND type = 'run.completed'", "has no terminal event"),
        ("UPDATE runs SET digest = 'x' WHERE id = '{}'", "the stored one is x"),
        ("UPDATE runs SET state = '{{}}' WHERE id = '{}'", "The stored state is not what the log folds to"),
    ],
)
def test_verify_finds_a_log_or_row_that_was_changed(live: Stack, tampering: str, complaint: str) -> None:
    run_id = live.start("emit", {"count": 3})
    live.ended(run_id)
    execute(database(live), tampering.format(run_id))
    done = runtail(live.url, "verify", run_id, "--database", database(live))
    assert done.returncode == 1
    assert complaint in done.stderr


def test_verify_of_a_run_that_goes_on_says_so(live: Stack) -> None:
    run_id = live.start("emit", ENDLESS)
    done = runtail(live.url, "verify", run_id)
    assert done.returncode == 1
    assert "has not ended yet" in done.stderr
    live.http.post(f"/runs/{run_id}/cancel")


def database(live: Stack) -> str:
    return live.env["DATABASE_URL"]


# Keys and workers.


def test_a_created_key_reaches_the_runs_of_its_own_user_only(live: Stack) -> None:
    created = runtail("", "keys", "create", "--tenant", "acme", "--user", "ann", "--database", database(live))
    key = created.stdout.strip()
    assert (created.returncode, created.stderr) == (0, "")
    run_id = runtail(live.url, "start", "emit", "--input", '{"count": 1}', RUNTAIL_KEY=key).stdout.strip()
    assert runtail(live.url, "tail", run_id, "--key", key).returncode == 0
    assert "run_not_found" in one_sentence(runtail(live.url, "tail", run_id))


def test_a_key_that_writes_shows_the_runs_of_the_user_that_is_named(live: Stack) -> None:
    options = ("--tenant", "acme", "--user", "reports", "--write", "--database", database(live))
    key = runtail("", "keys", "create", *options).stdout.strip()
    start = ("start", "emit", "--input", '{"count": 1}', "--user", "Jürgen")
    run_id = runtail(live.url, *start, RUNTAIL_KEY=key).stdout.strip()
    assert runtail(live.url, "tail", run_id, RUNTAIL_KEY=key, RUNTAIL_USER="Jürgen").returncode == 0
    assert "run_not_found" in one_sentence(runtail(live.url, "tail", run_id, RUNTAIL_KEY=key))


def test_runtail_worker_is_the_worker(stack: StackMaker, tmp_path: Path) -> None:
    server = stack()
    worker = Process("worker", [*RUNTAIL, "worker"], server.env, tmp_path)
    try:
        eventually(lambda: " is ready: " in worker.log.read_text(), READY_SECONDS, "readiness of the worker")
        assert worker.stop() == 0
    finally:
        worker.kill()


# The client, on a bad line.


@contextmanager
def bad_line(target: int, lengths: list[int]) -> Iterator[int]:
    """A TCP port that leads to another, where the n-th connection breaks after lengths[n] bytes of answer.

    A negative length is a server that cannot answer now; connections beyond the list last.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    plan = iter(lengths)

    def forward(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):  # either side is gone
            while chunk := client.recv(65_536):  # a request comes in pieces: its body after its head
                server.sendall(chunk)

    def serve(client: socket.socket, length: int | None) -> None:
        with client, socket.create_connection(("127.0.0.1", target)) as server, suppress(OSError):
            request = client.recv(65_536)
            if length is not None and length < 0:
                client.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            server.sendall(request)
            threading.Thread(target=forward, args=(client, server), daemon=True).start()
            while (length is None or length > 0) and (chunk := server.recv(4_096)):
                client.sendall(chunk[:length])
                length = None if length is None else length - len(chunk)
            client.shutdown(socket.SHUT_RDWR)  # a close alone waits for the forwarder's recv

    def accept() -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client, next(plan, None)), daemon=True).start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()


def test_a_client_on_a_line_that_keeps_breaking_gets_every_event_once(live: Stack) -> None:
    run_id = live.start("emit", {"count": 3_000, "type": "custom.tick"})
    told: list[bool] = []
    breaks = [0, 50, 700, -1, 4_000, 90_001, -1, -1, 123_457, 30_000, 3, 100_000]
    with (
        bad_line(live.port, breaks) as port,
        Client(f"http://127.0.0.1:{port}") as client,
        closing(client.follow(run_id, on_trouble=lambda reason: told.append(reason is not None))) as followed,
    ):
        events = list(followed)
    assert events == live.events(run_id)
    assert [event["seq"] for event in events] == list(range(1, 3_004))
    assert told[-1] is False
    assert all(before != after for before, after in pairwise(told)), "lost and back, in turn"


def test_a_start_whose_answer_is_lost_starts_one_run(live: Stack) -> None:
    before = len(live.http.get("/runs", params={"limit": 200}).json()["runs"])
    with bad_line(live.port, [0, 20, -1]) as port, Client(f"http://127.0.0.1:{port}") as client:
        run_id = client.start("emit", {"count": 1})
    runs = live.http.get("/runs", params={"limit": 200}).json()["runs"]
    assert runs[0]["run_id"] == run_id
    assert len(runs) == before + 1


# Output that cannot be written, input that is not what it seems.


@pytest.mark.parametrize(
    "arguments", [["tail", "{run}"], ["start", "emit", "--input", '{{"count": 3, "type": "custom.tick"}}'], ["--help"]]
)
def test_a_full_disk_is_one_sentence(live: Stack, arguments: list[str]) -> None:
    run_id = live.start("emit", {"count": 3, "type": "custom.tick"})
    with open("/dev/full", "wb") as full:
        command = [*RUNTAIL, *(argument.format(run=run_id) for argument in arguments)]
        done = subprocess.run(
            command, env=environment(live.url), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "Error: The output cannot be written: No space left on device.\n"


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 2}', '{"a": NaN}', '{"a": {"b": 1, "b": 1}}', '{"a": 1', "[]", '{"a": 1e999}x']
)
def test_an_input_that_the_server_would_not_take_is_not_sent(live: Stack, text: str) -> None:
    done = runtail(live.url, "start", "emit", "--input", text)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--input" in done.stderr


@pytest.mark.parametrize("sign", ["\u202e", "\u202a", "\u2066", "\u2069", "\x9b", "\x1b"])
def test_nothing_turns_the_order_of_what_a_terminal_shows(sign: str) -> None:
    assert sign not in one_line(f"Delete {sign}txt.exe?")
    assert sign not in printable(sign)
    assert one_line("שלום 👩‍👩‍👧") == "שלום 👩‍👩‍👧"
