"""What each platform is told in its own file, in one form: commands, settings, and how long a stop may take."""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tests.harness import ROOT

PROCFILE = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
URLS = ("DATABASE_URL", "REDIS_URL")
HEROKU_STOP_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Platform:
    """One platform's file."""

    name: str
    commands: Mapping[str, str]
    """By process type: release, web, worker, isolated."""
    settings: Mapping[str, str]
    """Of every process, without what the platform knows first: URLs and the port."""
    stop_seconds: int
    """From SIGTERM to SIGKILL."""


def read(name: str) -> Any:
    """A file of the root, parsed; in YAML without what a shell would fill in."""
    text = (ROOT / name).read_text()
    if name.endswith(".toml"):
        return tomllib.loads(text)
    return json.loads(text) if name.endswith(".json") else yaml.safe_load(text)


def heroku() -> Platform:
    """app.json and the Procfile."""
    settings = {key: variable["value"] for key, variable in read("app.json")["env"].items()}
    return Platform("heroku", PROCFILE, settings, HEROKU_STOP_SECONDS)


def render() -> Platform:
    """render.yaml."""
    blueprint = read("render.yaml")
    processes = {
        service["name"].removeprefix("runtail-"): service
        for service in blueprint["services"]
        if service["type"] in ("web", "worker")
    }
    commands = {"release": processes["web"]["preDeployCommand"]}
    commands |= {name: service["dockerCommand"] for name, service in processes.items()}
    settings = {variable["key"]: variable["value"] for variable in blueprint["envVarGroups"][0]["envVars"]}
    return Platform(
        "render", commands, settings, same(service["maxShutdownDelaySeconds"] for service in processes.values())
    )


def fly() -> Platform:
    """fly.toml."""
    config = read("fly.toml")
    commands = {"release": config["deploy"]["release_command"], **config["processes"]}
    settings = {name: value for name, value in config["env"].items() if name != "PORT"}
    return Platform("fly", commands, settings, config["kill_timeout"])


def compose() -> Platform:
    """compose.yaml."""
    services = {name: service for name, service in read("compose.yaml")["services"].items() if name in PROCFILE}
    settings = same(service["environment"] for service in services.values())
    stop = same(service["stop_grace_period"] for name, service in services.items() if name != "release")
    return Platform(
        "compose",
        {name: service["command"] for name, service in services.items()},
        {name: value for name, value in settings.items() if name not in URLS},
        int(re.fullmatch(r"(\d+)s", stop)[1]),  # type: ignore[index]
    )


def same(values: Iterable[Any]) -> Any:
    """What all of them are; fails where they differ."""
    first, *others = values
    assert all(other == first for other in others), (first, others)
    return first


PLATFORMS = [heroku(), render(), fly(), compose()]
