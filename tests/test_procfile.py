"""The Procfile's lines, run as a platform runs them: from the checkout, told by DATABASE_URL, REDIS_URL and PORT,
with the packages of requirements.txt alone.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import httpx
import psycopg2
import pytest

from app.devservices import EmbeddedServices
from tests.harness import ROOT, eventually, free_port

READY_SECONDS = 30
LINES = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())

# What the platform would answer to the import of a package that it did not install.
ONLY_LOCKED = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError("not in requirements.txt: " + name, name=name)

sys.meta_path.insert(0, Missing())
"""


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def modules_that_are_not_deployed() -> set[str]:
    """The importable names of everything installed here that requirements.txt does not name."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    locked = {normal(line.partition("==")[0]) for line in lines if "==" in line} | {"runtail-server"}
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if not locked & {normal(owner) for owner in owners}
    }


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A dyno's whole environment, with databases of its own."""
    folder = tmp_path_factory.mktemp("platform")
    (folder / "sitecustomize.py").write_text(ONLY_LOCKED.format(missing=modules_that_are_not_deployed()))
    with EmbeddedServices(folder / "data") as services:
        yield {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
            "PYTHONPATH": str(folder),
            "DATABASE_URL": services.database_url.replace("postgresql://", "postgres://"),
            "REDIS_URL": services.redis_url,
            "PORT": str(free_port()),
            "DEMO_AGENTS": "1",
        }


@pytest.fixture(scope="module")
def released(platform: dict[str, str]) -> dict[str, str]:
    """The platform after its release line ran, twice, as at every deploy."""
    for _ in range(2):
        done = subprocess.run(
            LINES["release"], shell=True, cwd=ROOT, env=platform, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done
    return platform


@contextmanager
def dyno(line: str, env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            f"exec {LINES[line]}", shell=True, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
        assert process.poll() is None, log.read_text()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def test_there_is_a_line_for_each_kind_of_process() -> None:
    assert list(LINES) == ["release", "web", "worker", "isolated"]


def test_the_release_line_migrates(released: dict[str, str]) -> None:
    connection = psycopg2.connect(released["DATABASE_URL"])
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM runs")
        assert cursor.fetchone() == (0,)
    connection.close()


def test_the_web_line_serves_on_every_interface_and_asks_for_a_key(released: dict[str, str], tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{released['PORT']}"
    with dyno("web", released, tmp_path / "web.log"):
        eventually(lambda: answers(f"{url}/readyz"), READY_SECONDS, "readiness")
        assert httpx.get(f"{url}/runs").status_code == httpx.codes.UNAUTHORIZED
        assert "0.0.0.0" in (tmp_path / "web.log").read_text()


@pytest.mark.parametrize("line", ["worker", "isolated"])
def test_the_worker_lines_register_the_agents(released: dict[str, str], tmp_path: Path, line: str) -> None:
    def registered() -> set[str]:
        with connection.cursor() as cursor:
            cursor.execute("SELECT name FROM agents")
            return {name for (name,) in cursor.fetchall()}

    connection = psycopg2.connect(released["DATABASE_URL"])
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM agents")
    with dyno(line, released, tmp_path / f"{line}.log"):
        eventually(lambda: {"emit", "support"} <= registered(), READY_SECONDS, "the agents")
    connection.close()
