"""What the platforms are told is well formed, and the same for all that matters."""

import copy
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import validators

from app.config import Config
from tests.deploy.platforms import PLATFORMS, PROCFILE, Platform, read
from tests.harness import ROOT

REQUIRED = {"DATABASE_URL": "postgresql://localhost/db", "REDIS_URL": "redis://localhost"}
DRAIN_MARGIN_SECONDS = 5
"""What a worker needs beside the drain: to hand back what is left, and to leave in order."""
OURS = Path(__file__).parent / "schemas"
SCHEMAS = {
    "app.json": OURS / "app.json",
    "render.yaml": OURS / "render.json",
    "fly.toml": OURS / "fly.json",
    "compose.yaml": files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json",
}
each_platform = pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.name)


def errors(name: str, content: Any) -> list[str]:
    """What the file's schema says against it."""
    schema = json.loads(SCHEMAS[name].read_text())
    kind = validators.validator_for(schema)
    kind.check_schema(schema)
    return [f"{error.json_path}: {error.message}" for error in kind(schema).iter_errors(content)]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_file_keeps_to_its_schema(name: str) -> None:
    assert errors(name, read(name)) == []


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_refuses_a_field_that_nobody_knows(name: str) -> None:
    wrong = copy.deepcopy(read(name))
    inner = {"render.yaml": lambda: wrong["services"][0], "compose.yaml": lambda: wrong["services"]["web"]}
    inner.get(name, lambda: wrong)()["kill_timout"] = "30s"
    assert errors(name, wrong)


@each_platform
def test_each_platform_has_the_processes_of_the_procfile(platform: Platform) -> None:
    assert platform.commands == PROCFILE


@each_platform
def test_what_a_platform_sets_is_understood(platform: Platform) -> None:
    known = (ROOT / "docs" / "operations.md").read_text()
    assert all(f"| `{name}` |" in known for name in platform.settings)
    Config.from_env({**REQUIRED, **platform.settings})


@each_platform
def test_agents_drain_before_the_platform_kills(platform: Platform) -> None:
    drain = Config.from_env({**REQUIRED, **platform.settings}).drain_seconds
    assert drain + DRAIN_MARGIN_SECONDS <= platform.stop_seconds


def test_the_image_runs_what_the_procfile_runs() -> None:
    (command,) = re.findall(r"^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert json.loads(command) == PROCFILE["web"].split()


def test_ports_are_the_ones_that_the_web_listens_on() -> None:
    fly, compose = read("fly.toml"), read("compose.yaml")
    assert fly["http_service"]["internal_port"] == int(fly["env"]["PORT"])
    default = str(Config.from_env(REQUIRED).port)
    assert compose["services"]["web"]["ports"] == [f"{default}:{default}"]
    assert re.search(rf"\bPORT={default}\b", (ROOT / "Dockerfile").read_text())


def test_routers_ask_for_life_and_never_for_readiness() -> None:
    """Without Redis a web process is degraded and still serves: nobody may take it out of service for that."""
    (check,) = read("fly.toml")["http_service"]["checks"]
    (web, *_) = read("render.yaml")["services"]
    assert check["path"] == web["healthCheckPath"] == read("app.json")["success_url"] == "/healthz"


def test_stores_are_new_enough_keep_what_they_hold_and_never_evict() -> None:
    render, compose = read("render.yaml"), read("compose.yaml")["services"]
    (database,) = render["databases"]
    (redis,) = (service for service in render["services"] if service["type"] == "keyvalue")
    assert database["postgresMajorVersion"] == "18"
    assert compose["postgres"]["image"] == "postgres:18"
    assert redis["maxmemoryPolicy"] == "noeviction"
    assert redis["plan"] != "free", "which keeps nothing on disk"
    assert "heroku-redis:premium-0" in {addon["plan"] for addon in read("app.json")["addons"]}, "mini keeps nothing"
    for name in ("postgres", "valkey"):
        (volume,) = compose[name]["volumes"]
        assert volume.partition(":")[0] in read("compose.yaml")["volumes"]
