"""A bare Debian 13. Where none can be made these tests are skipped, except in CI, where they fail."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.programs import give_up, needed

MACHINE = Path(__file__).with_name("machine.sh")
BUILD_SECONDS = 600


class Machine:
    """A bare machine in a folder; see machine.sh."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def command(self, *argv: str) -> list[str]:
        """The command line, on this machine, of a command there."""
        return [str(MACHINE), "run", str(self.folder), *argv]


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Made once for all tests here."""
    for program in ("debootstrap", "unshare"):
        needed(program, os.environ["PATH"] + ":/usr/sbin:/sbin")
    if os.geteuid() != 0:
        give_up("Making a machine in a folder needs root.")
    folder = tmp_path_factory.mktemp("fresh", numbered=True) / "debian"
    subprocess.run([str(MACHINE), "make", str(folder)], check=True, timeout=BUILD_SECONDS)
    return Machine(folder)
