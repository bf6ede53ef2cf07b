"""What is stored of calls, what a program inherits, and what PostgreSQL's log holds."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import peewee
import pytest

from app.dev.services import EmbeddedServices
from app.errors import RuntailError
from app.storage.run_store import Database
from runtail.programs import inherited, run_program
from runtail.redaction import REDACTED
from tests.conftest import StackMaker
from tests.harness import ROOT, Stack, eventually

SECRET = "s3cret-V4lue"
KEYS = {
    "STRIPE_LIVE": SECRET,
    "OPENAI_API_KEY": SECRET,
    "MY_APP_SETTING": SECRET,
    "EVENTS_REDIS_URL": f"redis://:{SECRET}@h",
    "PGPASSWORD": SECRET,
    "AWS_SESSION_TOKEN": SECRET,
    "HEROKU_POSTGRESQL_AMBER_URL": f"postgres://u:{SECRET}@h/d",
    "http_proxy": f"http://u:{SECRET}@proxy:3128",
}


OURS = {name: value for name, value in KEYS.items() if name != "EVENTS_REDIS_URL"}
"""Without what the server itself would use."""


def test_a_program_inherits_what_is_harmless_only() -> None:
    own = {"PATH": "/bin", "HOME": "/h", "LANG": "C", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONPATH": "/x"}
    assert inherited({**own, **KEYS, "DATABASE_URL": "x", "REDIS_URL": "x", "RUNTAIL_KEY": "x"}) == own


def test_a_program_that_is_given_an_environment_has_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    show = [sys.executable, "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    found: dict[str, str] = json.loads(str(run_program(show, None, 10, None, None)["stdout"]))
    assert SECRET not in str(found)
    assert found["PATH"] == os.environ["PATH"]
    given = json.loads(str(run_program(show, None, 10, None, {"MY_APP_SETTING": SECRET})["stdout"]))
    assert given["MY_APP_SETTING"] == SECRET


@pytest.fixture(scope="module")
def server(module_stack: StackMaker) -> Stack:
    stack = module_stack(PYTHONPATH=str(ROOT / "tests" / "privacy_for_tests"), **OURS)
    stack.start_web()
    stack.start_worker()
    return stack


def test_what_is_stored_of_calls_holds_no_secret_and_the_run_goes_on_with_it(server: Stack) -> None:
    run_id = server.start("private", {"secret": SECRET})
    eventually(lambda: server.read(run_id)["status"] == "waiting", 20)
    assert SECRET not in json.dumps(_stored(server, run_id))
    assert SECRET not in json.dumps(server.events(run_id))
    server.http.post(f"/runs/{run_id}/input", json={"text": "go on"}).raise_for_status()
    run = server.ended(run_id, 20)
    assert (run["status"], run["attempt"]) == ("completed", 1), run["error"]
    assert run["output"] == {"same": True, "leaked": False}


def test_the_fingerprint_is_of_what_was_given(server: Stack) -> None:
    """With other secrets it is another call, although the same is stored."""
    first, second = (server.start("private", {"secret": secret}) for secret in (SECRET, "another"))
    for run_id in (first, second):
        eventually(lambda run_id=run_id: server.read(run_id)["status"] == "waiting", 20)
    stored = _stored(server, first), _stored(server, second)
    assert [row[0] for row in stored[0]] == [row[0] for row in stored[1]]
    assert [a[1] != b[1] for a, b in zip(*stored, strict=True)] == [True, True, True, False]


def _stored(server: Stack, run_id: str) -> list[tuple[Any, str]]:
    with server.services.database.session() as db:
        sql = "SELECT arguments, fingerprint FROM run_ops WHERE run_id = %s AND kind = 'tool' ORDER BY op"
        return list(db.execute_sql(sql, (run_id,)).fetchall())


def test_what_is_stored_names_what_there_was(server: Stack) -> None:
    run_id = server.start("private", {"secret": SECRET})
    eventually(lambda: server.read(run_id)["status"] == "waiting", 20)
    login, bound, program, bare = (arguments for arguments, _ in _stored(server, run_id))
    assert login == {"args": ["ann"], "kwargs": {"password": REDACTED, "url": f"redis://:{REDACTED}@h/0"}}
    assert bound == {"args": ["ann", REDACTED], "kwargs": {}}
    assert program["env"] == {"PLAIN": REDACTED, "PATH": REDACTED}
    assert bare["env"] is None
    assert program["argv"][-2:] == ["--password", REDACTED]


def test_the_log_of_postgres_holds_nothing_of_a_statement_that_failed(tmp_path: Path) -> None:
    with EmbeddedServices(tmp_path) as embedded:
        database = Database(embedded.database_url, 1)
        for statement, values in (
            ("SELECT %s::int", (SECRET,)),
            ("CREATE TABLE once AS SELECT %s AS text; CREATE UNIQUE INDEX ON once (text)", (SECRET,)),
            ("INSERT INTO once VALUES (%s)", (SECRET,)),
            ("SELECT %s FROM nowhere", (SECRET,)),
        ):
            with contextlib.suppress(peewee.PeeweeException, RuntailError), database.session() as db:
                db.execute_sql(statement, values)
        database.close()
        log = (tmp_path / "logs" / "postgres.log").read_text()
    assert "ready to accept connections" in log
    assert SECRET not in log
