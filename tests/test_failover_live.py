"""A whole installation whose PostgreSQL is replaced, while everything runs, by an earlier copy of its data folder."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.dev.services import EmbeddedServices
from app.storage.run_store import migrate
from tests.external_writer import ExternalWriter, ndjson
from tests.harness import Stack, eventually
from tests.stored import PATIENCE_SECONDS, ended, events, row
from tests.test_outages import Window

LOST_SECONDS = 1.5
"""Of transactions that the copy does not have."""


class Replaceable:
    """The servers, a web process and two workers."""

    def __init__(self, servers: EmbeddedServices, stack: Stack, copy: Path) -> None:
        self.servers = servers
        self.stack = stack
        self._folder = servers.servers["postgres"].folder
        self._copy = copy

    def copy(self) -> None:
        """Take a copy of what Postgres has made durable, as of a crash at this moment."""
        self.servers.kill("postgres")
        shutil.copytree(self._folder, self._copy)
        self.servers.start("postgres")

    def replace(self) -> None:
        """Have the copy take its place."""
        self.servers.kill("postgres")
        owner = self._folder.stat()
        shutil.rmtree(self._folder)
        shutil.copytree(self._copy, self._folder)
        for path in (self._folder, *self._folder.rglob("*")):
            shutil.chown(path, owner.st_uid, owner.st_gid)
        self.servers.start("postgres")


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Replaceable]:
    with ExitStack() as opened:
        servers = opened.enter_context(EmbeddedServices(tmp_path / "servers"))
        urls = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url, "STREAM_MAX_PER_USER": "0"}
        more = {"STREAM_MAX_PER_ADDRESS": "0", "EXTERNAL_LEASE_SECONDS": "10"}
        stack = opened.enter_context(Stack({**urls, **more}, tmp_path))
        migrate(servers.database_url)
        stack.start_web()
        stack.start_worker()
        stack.start_worker()
        yield Replaceable(servers, stack, tmp_path / "copy")


@pytest.mark.timeout(180)
def test_runs_keep_their_logs_whole_while_postgres_is_replaced_by_one_with_less(installation: Replaceable) -> None:
    stack = installation.stack
    emit = {"interval_ms": 50, "type": "custom.tick"}
    long = [stack.start("emit", {**emit, "count": 240}) for _ in range(6)]
    waits = [stack.start("waits_for", {"on": "approval"}) for _ in range(2)]
    for run_id in waits:
        eventually(lambda run_id=run_id: row(stack, run_id).status == "waiting", PATIENCE_SECONDS, "it waits")
    short = [stack.start("emit", {**emit, "count": 40}) for _ in range(6)]
    late = [stack.start("emit", {**emit, "count": 40}) for _ in range(4)]
    windows = {run_id: Window(stack, run_id) for run_id in (*long, *waits, *short, *late)}
    installation.copy()
    eventually(lambda: stack.http.get("/readyz").status_code == 200, PATIENCE_SECONDS, "readiness")
    for run_id in waits:
        approval = row(stack, run_id).state["approvals"][0]["id"]
        path = f"/runs/{run_id}/approvals/{approval}"
        eventually(lambda path=path: _approved(stack, path), 10, "the decision")
    time.sleep(LOST_SECONDS)
    installation.replace()
    for run_id in windows:
        run = ended(stack, run_id)
        log = events(stack, run_id)
        assert run.status == "completed"
        assert [event.seq for event in log] == list(range(1, len(log) + 1))
        assert [event.type for event in log].count("run.started") == 1
    for run_id, window in windows.items():
        window.saw(stack, run_id)
        assert stack.services.log.read(run_id, 0, 100_000) == events(stack, run_id)


@pytest.mark.timeout(180)
def test_an_external_run_keeps_its_log_whole_while_postgres_is_replaced_by_one_with_less(
    installation: Replaceable,
) -> None:
    stack = installation.stack
    writers = [ExternalWriter.start(stack.http) for _ in range(4)]
    windows = {writer.run_id: Window(stack, writer.run_id) for writer in writers}

    def write(writer: ExternalWriter, until: threading.Event) -> None:
        while not until.is_set():
            _taken(writer, ("custom.tick", {"n": writer.seq + 1}))
            time.sleep(0.02)

    done = threading.Event()
    threads = [threading.Thread(target=write, args=(writer, done)) for writer in writers[:3]]
    for thread in threads:
        thread.start()
    _taken(writers[3], ("custom.tick", {"n": 1}))
    time.sleep(0.5)
    installation.copy()
    _taken(writers[3], ("custom.tick", {"n": 2}))
    assert writers[3].complete(output=None).status_code == 200
    time.sleep(LOST_SECONDS)
    installation.replace()
    time.sleep(LOST_SECONDS)
    done.set()
    for thread in threads:
        thread.join()
    for writer in writers[:3]:
        eventually(lambda writer=writer: writer.complete(output=None).status_code == 200, 10, "the end")
    for writer in writers:
        run = ended(stack, writer.run_id)
        assert run.status == "completed"
        ticks = [event.envelope()["payload"]["n"] for event in events(stack, run.id) if event.type == "custom.tick"]
        assert ticks == list(range(1, writer.seq + 1)), "each batch that was answered is there once"
        windows[run.id].saw(stack, run.id)


def _approved(stack: Stack, path: str) -> bool:
    return stack.http.post(path, json={"decision": "approved"}).status_code == 200


def _taken(writer: ExternalWriter, line: tuple[str, dict[str, int]]) -> None:
    """Send a batch until it is answered."""
    answer = writer.append(line)
    while answer.status_code >= 500:
        time.sleep(0.05)
        answer = writer.send(ndjson([line]))
    assert answer.status_code == 200, answer.text
