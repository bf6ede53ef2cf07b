"""The image, built by buildah as its Dockerfile says, and containers of it.

No registry is asked. The base is made from Debian's packages: the distribution and the Python that the tag of `FROM`
names, the interpreter in another folder. The containers share the network of this machine and nothing else; their
command is process 1 of its own process namespace, as under any engine.
"""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.fresh.conftest import MACHINE
from tests.harness import ROOT, eventually

BUILD_SECONDS = 600
NAME = "localhost/runtail"
INSIDE = """
root=$1 user=$2 folder=$3; shift 3
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot --userspec="$user" "$root" /usr/bin/env --ignore-environment --chdir="$folder" "$@"
"""
AGAIN = 'root=$1 user=$2; shift 2; exec chroot --userspec="$user" "$root" /usr/bin/env --ignore-environment "$@"'


@dataclass(frozen=True, slots=True)
class Base:
    """What `FROM` names: an image, its Python and its Debian."""

    image: str
    python: str
    suite: str


def base() -> Base:
    """The one base of all stages."""
    (image,) = set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    tag = re.fullmatch(r"python:(3\.\d+)-slim-(\w+)", image)
    assert tag, f"{image} does not name its Python and its Debian"
    return Base(image, tag[1], tag[2])


class Engine:
    """buildah with a store of its own in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._store = ["--root", str(folder / "store"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]

    def __call__(self, *command: str) -> str:
        """A command of buildah; what it prints."""
        argv = ["buildah", *self._store, *command]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=BUILD_SECONDS)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return done.stdout.strip()

    def make_base(self, base: Base) -> None:
        """An image of that name from Debian's packages, with what this machine's pip needs to reach its index."""
        root = self.folder / "debian"
        subprocess.run([str(MACHINE), "bare", str(root), base.suite], check=True, timeout=BUILD_SECONDS)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        container = self("from", "scratch")
        self("add", "--quiet", container, str(root), "/")
        for name, value in os.environ.items():
            if re.fullmatch(r"PIP_.*|https?_proxy|no_proxy", name, re.IGNORECASE):
                self("config", "--env", f"{name}={value}", container)
        self("commit", "--quiet", container, f"docker.io/library/{base.image}")
        self("rm", container)

    def build(self) -> "Image":
        """Execute the Dockerfile."""
        how = ["--pull-never", "--isolation", "chroot", "--network", "host", "--format", "docker"]
        self("build", *how, "--tag", NAME, str(ROOT))
        config = json.loads(self("inspect", "--type", "image", NAME))["Docker"]["config"]
        return Image(Path(self("mount", self("from", "--pull-never", NAME))), config)


@dataclass(frozen=True, slots=True)
class Image:
    """Its files, and its configuration in Docker's words."""

    root: Path
    config: dict[str, Any]

    def start(self, log: Path, env: dict[str, str], *command: str) -> "Container":
        """A container of that command, or of the image's own."""
        settings = {**dict(pair.split("=", 1) for pair in self.config["Env"]), **env}
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--", "sh", "-euc", INSIDE, "sh"]
        where = [str(self.root), self.config["User"], self.config["WorkingDir"]]
        pairs = [f"{name}={value}" for name, value in settings.items()]
        with log.open("wb") as output:
            process = psutil.Popen(
                [*argv, *where, *pairs, *(command or self.config["Cmd"])], stdout=output, stderr=output
            )
        return Container(self, settings, process, log)

    def run(self, log: Path, env: dict[str, str], *command: str) -> str:
        """A command that ends well; what it prints."""
        container = self.start(log, env, *command)
        assert container.process.wait(60) == 0, log.read_text()
        return log.read_text()


@dataclass(frozen=True, slots=True)
class Container:
    """A running container."""

    image: Image
    env: dict[str, str]
    process: psutil.Popen
    log: Path

    @property
    def first(self) -> psutil.Process:
        """Its process 1, seen from outside."""
        (found,) = eventually(self.process.children, what="the first process")
        return found

    def check(self, **env: str) -> int:
        """The exit code of the image's health check in there."""
        kind, *command = self.image.config["Healthcheck"]["Test"]
        assert kind == "CMD"
        argv = ["nsenter", "--target", str(self.first.pid), "--mount", "--pid", "sh", "-euc", AGAIN, "sh"]
        pairs = [f"{name}={value}" for name, value in {**self.env, **env}.items()]
        where = [str(self.image.root), self.image.config["User"]]
        return subprocess.run([*argv, *where, *pairs, *command], capture_output=True, timeout=30).returncode

    def stop(self, seconds: float) -> int:
        """SIGTERM to process 1, as an engine stops it; the exit code."""
        self.first.terminate()
        code: int = self.process.wait(seconds)
        return code
