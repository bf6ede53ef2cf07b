"""What Postgres says when it cannot, by SQLSTATE: no run is given up for it, and callers know whose fault it is."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest

from app.dev.services import EmbeddedServices
from app.storage.run_store import migrate
from tests.harness import Stack, eventually, problem
from tests.stored import begin, ended, payloads, reach, row

READ_ONLY_SECONDS = 10
"""Longer than it takes to call a worker lost."""

APP = "app"
"""The role of the stack: none of the server's administrators, whom no limit holds for."""
ROLE = f"""
CREATE ROLE {APP} LOGIN PASSWORD '{APP}'; GRANT ALL ON ALL TABLES IN SCHEMA public TO {APP}
"""
CUT_OFF = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{APP}'"
TRIGGER = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  RAISE EXCEPTION 'a trigger says no to hunter2' USING ERRCODE = upper(substring(NEW.session_id from 7));
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON runs FOR EACH ROW WHEN (NEW.session_id LIKE 'raise\\_%')
EXECUTE FUNCTION refuse();
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A web process and two workers on servers of their own, whose settings tests change."""
    with ExitStack() as opened:
        servers = opened.enter_context(EmbeddedServices(tmp_path_factory.mktemp("servers")))
        migrate(servers.database_url)
        parts = urlsplit(servers.database_url)
        url = parts._replace(netloc=f"{APP}:{APP}@{parts.hostname}:{parts.port}").geturl()
        urls = {"DATABASE_URL": url, "ADMIN_URL": servers.database_url, "REDIS_URL": servers.redis_url}
        stack = opened.enter_context(Stack({**urls, "DB_POOL_SIZE": "3"}, tmp_path_factory.mktemp("stack")))
        _execute(stack, TRIGGER, ROLE)
        stack.start_web()
        stack.start_worker()
        stack.start_worker()
        yield stack


def _execute(stack: Stack, *statements: str) -> None:
    with closing(psycopg2.connect(stack.env["ADMIN_URL"])) as connection:
        connection.autocommit = True
        for statement in statements:
            connection.cursor().execute(statement)


@contextmanager
def _setting(stack: Stack, name: str, value: str) -> Iterator[None]:
    """A setting of the server, for the sessions there are and for new ones."""
    _execute(stack, f"ALTER SYSTEM SET {name} = {value}", "SELECT pg_reload_conf()")
    try:
        yield
    finally:
        _execute(stack, f"ALTER SYSTEM RESET {name}", "SELECT pg_reload_conf()")


@contextmanager
def _steady(stack: Stack, folder: Path, count: int = 4) -> Iterator[list[str]]:
    """Runs that go on for the block; after it each ends, executed by one worker from its begin to its end."""
    gate = folder / "gate"
    run_ids = [begin(stack, "steady", count=10, interval=0.1, gate=str(gate)) for _ in range(count)]
    for run_id in run_ids:
        reach(stack, run_id, "custom.tick", times=3)
    yield run_ids
    gate.touch()
    for run_id in run_ids:
        assert ended(stack, run_id).attempt == 1
        assert payloads(stack, run_id, "run.step") == []


def _post(stack: Stack, **body: Any) -> Any:
    return stack.http.post("/runs", json={"agent": "steady", "input": {"count": 1, "interval": 0}, **body})


def test_a_server_that_is_read_only_for_a_while_restarts_no_run_and_is_a_503(stack: Stack, tmp_path: Path) -> None:
    folder = tmp_path / "tended"
    folder.mkdir()
    with _steady(stack, tmp_path) as run_ids:
        tended = begin(stack, "tends", folder=str(folder), count=2)
        reach(stack, tended, "tool.started")
        with _setting(stack, "default_transaction_read_only", "on"):
            until = time.monotonic() + READ_ONLY_SECONDS
            (folder / "gate-0").touch()
            while time.monotonic() < until:
                answer = _post(stack)
                problem(answer, 503, "store_unavailable")
                assert answer.headers["Retry-After"] == "1"
                problem(stack.http.post(f"/runs/{run_ids[0]}/cancel"), 503, "store_unavailable")
                assert stack.read(run_ids[0])["status"] == "running"
                time.sleep(0.5)
        (folder / "gate-1").touch()
        assert ended(stack, tended).attempt == 1
        assert (folder / "calls").read_text().split() == ["0", "1"]
    assert _post(stack).status_code == 202


@pytest.mark.parametrize("name", ["lock_timeout", "statement_timeout"])
def test_who_waits_too_long_for_a_row_is_told_to_try_again(stack: Stack, tmp_path: Path, name: str) -> None:
    with (
        _steady(stack, tmp_path) as run_ids,
        _setting(stack, name, "'300ms'"),
        closing(psycopg2.connect(stack.env["DATABASE_URL"])) as other,
    ):
        other.cursor().execute("SELECT 1 FROM runs WHERE id = %s FOR UPDATE", (run_ids[0],))
        problem(stack.http.post(f"/runs/{run_ids[0]}/cancel"), 503, "store_unavailable")
        for run_id in run_ids[1:]:  # which share transactions with the run whose row is locked
            reach(stack, run_id, "custom.tick", times=len(payloads(stack, run_id, "custom.tick")) + 20)


def test_connections_that_the_server_ends_cost_no_run_anything(stack: Stack, tmp_path: Path) -> None:
    with _steady(stack, tmp_path):
        for _ in range(8):
            _execute(stack, CUT_OFF)
            assert _post(stack).status_code in (202, 503)
            time.sleep(0.4)
        eventually(lambda: _post(stack).status_code == 202)


def test_a_server_that_takes_no_more_connections_is_a_503(stack: Stack, tmp_path: Path) -> None:
    with _steady(stack, tmp_path):
        # Who is connected stays so: each of them is cut off, and finds no other connection.
        _execute(stack, f"ALTER ROLE {APP} CONNECTION LIMIT 0", CUT_OFF)
        try:
            for _ in range(4):
                problem(_post(stack), 503, "store_unavailable")
                time.sleep(0.5)
        finally:
            _execute(stack, f"ALTER ROLE {APP} CONNECTION LIMIT -1")
    assert _post(stack).status_code == 202


@pytest.mark.parametrize(
    ("state", "status", "code"),
    [
        ("22003", 422, "refused_value"),
        ("22p05", 422, "refused_value"),
        ("23514", 422, "refused_value"),
        ("54000", 422, "refused_value"),
        ("53100", 503, "store_unavailable"),
        ("53300", 503, "store_unavailable"),
        ("40p01", 503, "store_unavailable"),
        ("40001", 503, "store_unavailable"),
        ("55p03", 503, "store_unavailable"),
        ("57p01", 503, "store_unavailable"),
        ("57014", 503, "store_unavailable"),
        ("58030", 503, "store_unavailable"),
        ("08006", 503, "store_unavailable"),
        ("25006", 503, "store_unavailable"),
        ("p0001", 500, "store_failed"),
        ("xx000", 500, "store_failed"),
        ("42501", 500, "store_failed"),
        ("zz999", 500, "store_failed"),
    ],
)
def test_each_class_of_errors_has_its_answer(stack: Stack, state: str, status: int, code: str) -> None:
    answer = _post(stack, session_id=f"raise_{state}")
    assert "hunter2" not in str(problem(answer, status, code))
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert _post(stack).status_code == 202


def test_the_runs_of_a_row_that_was_locked_can_be_read(stack: Stack) -> None:
    """After all that nothing is left over."""
    run_id = _post(stack).json()["run_id"]
    assert ended(stack, run_id).attempt == 1
    assert row(stack, run_id).finished_at is not None
