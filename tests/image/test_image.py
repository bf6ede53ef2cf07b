"""The image: its Dockerfile executed, and every command of it against a real PostgreSQL and Valkey."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.conftest import own_databases
from tests.deploy.platforms import PROCFILE
from tests.harness import ROOT, eventually, free_port
from tests.image.engine import Container, Image, base

READY_SECONDS = 60
STOP_SECONDS = 30
NOBODY_SPECIAL = 10_001

PACKAGES = """
import json, os, re, sys
from importlib import metadata
names = {re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower() for found in metadata.distributions()}
writable = [path for path in (*sys.path, os.getcwd(), "/srv", "/venv") if os.access(path, os.W_OK)]
system = next(line for line in open("/etc/os-release") if line.startswith("VERSION_CODENAME="))
print(json.dumps({"names": sorted(names), "uid": os.getuid(), "writable": writable, "python": sys.version_info[:2],
                  "system": system.strip().partition("=")[2]}))
"""


@pytest.fixture(scope="module")
def env(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """What a platform tells every container."""
    with own_databases(environment, migrated=False) as urls:
        yield {**urls, "PORT": str(free_port()), "DEMO_AGENTS": "1", "DRAIN_SECONDS": "1"}


@pytest.fixture(scope="module")
def released(image: Image, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """After the release command ran in a container."""
    image.run(tmp_path_factory.mktemp("release") / "log", env, *shlex.split(PROCFILE["release"]))
    return env


@contextmanager
def running(image: Image, env: dict[str, str], log: Path, *command: str) -> Iterator[Container]:
    """A container that is stopped at the end, and then ends well."""
    container = image.start(log, env, *command)
    try:
        yield container
        assert container.stop(STOP_SECONDS) == 0, log.read_text()
    finally:
        if container.process.poll() is None:
            container.process.kill()
            container.process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def test_it_has_what_is_locked_and_nothing_else_on_the_base_that_is_named(image: Image, tmp_path: Path) -> None:
    found = json.loads(image.run(tmp_path / "log", {}, "python", "-c", PACKAGES))
    locked = set(re.findall(r"^([\w.-]+)==", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert set(found["names"]) - {"pip"} == (locked - {"async-timeout"}) | {"runtail", "runtail-server"}
    assert (".".join(map(str, found["python"])), found["system"]) == (base().python, base().suite)


def test_it_runs_as_a_user_who_may_change_nothing_in_it(image: Image, tmp_path: Path) -> None:
    found = json.loads(image.run(tmp_path / "log", {}, "python", "-c", PACKAGES))
    assert found["uid"] == NOBODY_SPECIAL
    assert found["writable"] == []


def test_web_and_workers_serve_a_run_and_their_health_is_known(
    image: Image, released: dict[str, str], tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{released['PORT']}"
    with (
        running(image, released, tmp_path / "web.log") as web,
        running(image, released, tmp_path / "worker.log", *shlex.split(PROCFILE["worker"])) as worker,
        running(image, released, tmp_path / "isolated.log", *shlex.split(PROCFILE["isolated"])) as isolated,
    ):
        eventually(lambda: answers(f"{url}/healthz"), READY_SECONDS, "life")
        eventually(lambda: answers(f"{url}/readyz"), READY_SECONDS, "readiness")
        for container in (worker, isolated):
            eventually(lambda log=container.log: " is ready: " in log.read_text(), READY_SECONDS, "a worker")
        everybody = [
            process
            for container in (web, worker, isolated)
            for process in (container.first, *container.first.children(recursive=True))
        ]
        assert {process.uids().real for process in everybody} == {NOBODY_SPECIAL}
        assert completed(image, released, url, tmp_path)
        assert [container.check() for container in (web, worker, isolated)] == [0, 0, 0]
        assert web.check(PORT=str(free_port())) != 0, "nobody listens there"


def completed(image: Image, env: dict[str, str], url: str, tmp_path: Path) -> bool:
    """Whether a run, started with a key that the image's command line made, is executed."""
    made = image.run(tmp_path / "key", env, "runtail", "keys", "create", "--tenant", "acme", "--user", "ann")
    key = next(word for word in made.split() if word.startswith("rt_"))
    headers = {"Authorization": f"Bearer {key}", "Prefer": "wait=25"}
    answer = httpx.post(f"{url}/runs", json={"agent": "emit", "input": {"count": 3}}, headers=headers, timeout=40)
    return bool(answer.json()["status"] == "completed")
