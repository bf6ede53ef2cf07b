"""The commands of every platform's file, run as the platform runs them: from the checkout, told by DATABASE_URL,
REDIS_URL, PORT and what the file sets, with the packages of requirements.txt alone.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as NotThere

from app.dev.services.redis_server import prepare
from tests.conftest import own_databases
from tests.deploy.platforms import PLATFORMS, Platform, read
from tests.harness import ROOT, eventually, free_port
from tests.tls_relay import tls_relay

READY_SECONDS = 60
IN_THE_GATE = {"heroku", "compose"}
"""Of the platforms, whose commands are the same (test_manifests), two with unlike settings."""

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
    locked = {normal(line.partition("==")[0]) for line in lines if "==" in line} | {"runtail-server", "runtail"}
    return {
        module
        for module, owners in metadata.packages_distributions().items()
        if not locked & {normal(owner) for owner in owners}
    }


class Deployed:
    """One platform's processes, on databases of their own."""

    def __init__(self, platform: Platform, folder: Path, urls: dict[str, str]) -> None:
        self.platform = platform
        self.folder = folder
        (folder / "sitecustomize.py").write_text(ONLY_LOCKED.format(missing=modules_that_are_not_deployed()))
        self.env = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
            "PYTHONPATH": str(folder),
            "PORT": str(free_port()),
            "DEMO_AGENTS": "1",
            **platform.settings,
            **urls,
        }
        self.url = f"http://127.0.0.1:{self.env['PORT']}"

    def run(self, *command: str) -> str:
        """A command that ends, with what it prints."""
        done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done
        return done.stdout

    @contextmanager
    def process(self, kind: str) -> Iterator[Path]:
        """A process of that type and its log; it ends at SIGTERM, in the platform's time."""
        log = self.folder / f"{kind}.log"
        command = shlex.split(self.platform.commands[kind])
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=self.env, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield log
            assert process.poll() is None, log.read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(self.platform.stop_seconds)


def played(platform: Platform) -> object:
    marks = () if platform.name in IN_THE_GATE else pytest.mark.thorough
    return pytest.param(platform, id=platform.name, marks=marks)


@pytest.fixture(scope="module", params=map(played, PLATFORMS))
def deployed(
    request: pytest.FixtureRequest, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    """A platform's web, worker and isolated process after its release command ran, twice, as at every deploy."""
    platform: Platform = request.param
    with ExitStack() as opened:
        urls = opened.enter_context(own_databases(environment, migrated=False))
        if platform.name == "heroku":
            urls["DATABASE_URL"] = urls["DATABASE_URL"].replace("postgresql://", "postgres://")
            urls["REDIS_URL"] = opened.enter_context(tls_relay(urls["REDIS_URL"]))
        deployed = Deployed(platform, tmp_path_factory.mktemp(platform.name), urls)
        for _ in range(2):
            deployed.run(*shlex.split(platform.commands["release"]))
        for kind in ("web", "worker", "isolated"):
            opened.enter_context(deployed.process(kind))
        yield deployed


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def test_the_web_serves_on_every_interface_and_asks_for_a_key(deployed: Deployed) -> None:
    eventually(lambda: answers(f"{deployed.url}/readyz"), READY_SECONDS, "readiness")
    assert answers(f"{deployed.url}/healthz")
    assert httpx.get(f"{deployed.url}/runs").status_code == httpx.codes.UNAUTHORIZED
    assert "0.0.0.0" in (deployed.folder / "web.log").read_text()


def test_a_run_that_is_started_with_a_key_is_executed(deployed: Deployed) -> None:
    eventually(lambda: answers(f"{deployed.url}/readyz"), READY_SECONDS, "readiness")
    created = deployed.run("python", "-m", "app.cli", "keys", "create", "--tenant", "acme", "--user", "ann")
    key = next(word for word in created.split() if word.startswith("rt_"))
    with httpx.Client(base_url=deployed.url, headers={"Authorization": f"Bearer {key}"}, timeout=40) as client:
        agents = eventually(lambda: client.get("/agents").json(), READY_SECONDS, "the agents")
        assert {"emit", "support"} <= {agent["name"] for agent in agents}
        body = {"agent": "emit", "input": {"count": 3}}
        answer = client.post("/runs", json=body, headers={"Prefer": "wait=25"})
    assert answer.json()["status"] == "completed", answer.text


def test_the_isolated_process_gets_ready(deployed: Deployed) -> None:
    log = deployed.folder / "isolated.log"
    eventually(lambda: " is ready: " in log.read_text(), READY_SECONDS, "readiness of the isolated process")


def test_the_store_of_compose_has_an_append_only_file_and_never_evicts(tmp_path: Path) -> None:
    program, *options = shlex.split(read("compose.yaml")["services"]["valkey"]["command"])
    assert program == "valkey-server"
    port = free_port()
    command = [prepare(tmp_path).argv[0], *options, "--port", str(port), "--dir", str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with Redis(port=port, decode_responses=True) as client:
            eventually(lambda: there(client), what="the server")
            found = client.config_get("appendonly", "maxmemory-policy")
        assert found == {"appendonly": "yes", "maxmemory-policy": "noeviction"}
    finally:
        server.terminate()
        server.wait(10)


def there(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except NotThere:
        return False
