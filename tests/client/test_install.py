"""The client as somebody installs it from a checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.harness import ROOT


def test_installing_it_leaves_nothing_in_the_checkout(tmp_path: Path) -> None:
    source = tmp_path / "python"
    shutil.copytree(ROOT / "clients" / "python", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    before = sorted(source.rglob("*"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", tmp_path / "site", source], check=True)
    assert sorted(source.rglob("*")) == before
    assert (tmp_path / "site" / "runtail" / "py.typed").exists()
