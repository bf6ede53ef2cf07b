"""The documents say what the code does."""

import re
from collections.abc import Iterator
from contextlib import closing

import pytest

from app import errors
from app.config import Config
from app.errors import ConfigError, RuntailError
from app.wiring import Services
from tests.harness import ROOT

REQUIRED = {"DATABASE_URL": "postgresql://localhost/db", "REDIS_URL": "redis://localhost"}
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()


class Recorder(dict[str, str]):
    """An environment that remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(REQUIRED)
        self.asked: set[str] = set()

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        self.asked.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return super().__getitem__(name)


def table(text: str, heading: str) -> Iterator[list[str]]:
    """The rows of the first table under a heading, cell by cell."""
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    for line in section.split("\n|---", 1)[1].splitlines()[1:]:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


SETTINGS = {row[0].strip("`"): row for row in table(OPERATIONS, "Settings")}
CODES = {row[0].strip("`"): row[1] for row in table(PROTOCOL, "Error codes")}
NUMBERS = {name: row[2].replace(",", "") for name, row in SETTINGS.items() if re.fullmatch(r"[\d,]+", row[2])}


def test_every_setting_is_documented_and_no_other() -> None:
    environment = Recorder()
    Config.from_env(environment)
    assert set(SETTINGS) == environment.asked
    for row in SETTINGS.values():
        assert len(row) == 5
        assert all(row)


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_the_documented_default_is_the_one_in_force(name: str) -> None:
    default = Config.from_env(REQUIRED)
    assert Config.from_env({**REQUIRED, name: NUMBERS[name]}) == default
    assert Config.from_env({**REQUIRED, name: str(int(NUMBERS[name]) + 1)}) != default


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_zero_means_what_is_documented(name: str) -> None:
    if SETTINGS[name][3] == "refused":
        with pytest.raises(ConfigError, match=name):
            Config.from_env({**REQUIRED, name: "0"})
    else:
        Config.from_env({**REQUIRED, name: "0"})


@pytest.mark.parametrize("name", sorted(set(NUMBERS) - {"RUNTAIL_DEV", "DEMO_AGENTS"}))
@pytest.mark.parametrize("value", ["-1", "1.5", "many", "٣"])
def test_a_setting_that_is_no_number_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Config.from_env({**REQUIRED, name: value})


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_a_missing_url_is_refused_by_name(name: str) -> None:
    for value in ({}, {name: ""}):
        with pytest.raises(ConfigError, match=name):
            Config.from_env({**{k: v for k, v in REQUIRED.items() if k != name}, **value})


def test_the_database_url_of_heroku_is_understood(environment: dict[str, str]) -> None:
    url = environment["DATABASE_URL"].replace("postgresql://", "postgres://", 1)
    with closing(Services.for_web(Config.from_env({**environment, "DATABASE_URL": url}))) as services:
        services.database.ping()


def kinds(root: type[RuntailError]) -> Iterator[type[RuntailError]]:
    """The errors of the server: of `app.errors`, which has some of the SDK's."""
    if getattr(errors, root.__name__, None) is root:
        yield root
        for kind in root.__subclasses__():
            yield from kinds(kind)


@pytest.mark.parametrize("kind", list(kinds(RuntailError)), ids=lambda kind: kind.code)
def test_every_error_code_is_documented_with_its_status(kind: type[RuntailError]) -> None:
    assert CODES[kind.code] in {str(kind.status or 500), "—", "log"}


def test_no_other_error_code_is_documented_and_no_two_errors_share_one() -> None:
    found = [kind.code for kind in kinds(RuntailError)]
    assert sorted(found) == sorted(CODES)
    assert all(kind.__doc__ and kind.title for kind in kinds(RuntailError))
