"""`make lock`: the pinned requirements, and the releases in docs/dependencies.md, from what uv has resolved.

Usage: lock.py EVERYTHING DEPLOYMENT, each a pylock.toml (PEP 751) that covers every supported Python and platform.
"""

import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
HEADER = "# Locked by `make lock` from pyproject.toml. Do not edit."
BUILDS = {"flit-core", "setuptools"}
"""What builds our own distributions in the image."""
OURS = {"runtail"}
"""The SDK comes from the checkout: pip takes no folder among pins with hashes."""
EVERYWHERE = re.compile(
    r"(python_full_version (< '3\.15'|>= '3\.11')|sys_platform != 'win32'|(platform_python_)?implementation.*)$"
)
"""The parts of a marker that hold wherever the lock does (`tool.uv.environments`)."""

Package = dict[str, Any]


def packages(path: str) -> list[Package]:
    """What a pylock.toml installs, by name."""
    found: list[Package] = tomllib.loads(Path(path).read_text())["packages"]
    return [package for package in found if package["name"] not in OURS]


def pin(package: Package) -> str:
    """`name==version`, with a marker where not every supported Python gets it."""
    conditions = [part for part in package.get("marker", "").split(" and ") if part and not EVERYWHERE.match(part)]
    marker = f" ; {' and '.join(conditions)}" if conditions else ""
    return f"{package['name']}=={package['version']}{marker}"


def files(package: Package) -> list[Package]:
    """The files of a release on the index."""
    return [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]


def hashed(package: Package) -> str:
    """A pin that accepts only those files."""
    hashes = sorted({file["hashes"]["sha256"] for file in files(package)})
    return " \\\n    ".join((pin(package), *(f"--hash=sha256:{value}" for value in hashes)))


def write(name: str, chosen: list[Package], line: Callable[[Package], str]) -> None:
    """A requirements file in the root."""
    (ROOT / name).write_text("\n".join((HEADER, *map(line, chosen))) + "\n")


def dated(text: str, everything: list[Package]) -> Iterator[str]:
    """The lines of docs/dependencies.md: the second cell of a package's row is its release, and the day of that."""
    found = {
        package["name"]: f"{package['version']}, {max(file['upload-time'] for file in files(package)):%Y-%m-%d}"
        for package in everything
    }
    for line in text.splitlines():
        row = re.match(r"\| `([\w.-]+)` \|[^|]*\|", line)
        yield f"| `{row[1]}` | {found[row[1]]} |{line[row.end() :]}" if row and row[1] in found else line


def main(everything: str, deployment: str) -> None:
    """Write all four."""
    locked = packages(everything)
    write("requirements-dev.txt", locked, pin)
    write("requirements.txt", packages(deployment), hashed)
    write("requirements-build.txt", [package for package in locked if package["name"] in BUILDS], hashed)
    document = ROOT / "docs" / "dependencies.md"
    document.write_text("\n".join(dated(document.read_text(), locked)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
