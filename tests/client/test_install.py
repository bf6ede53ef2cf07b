"""The client as somebody installs it from a checkout."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT


def test_installing_it_leaves_nothing_in_the_checkout(tmp_path: Path) -> None:
    source = tmp_path / "python"
    shutil.copytree(ROOT / "clients" / "python", source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    before = sorted(source.rglob("*"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", tmp_path / "site", source], check=True)
    assert sorted(source.rglob("*")) == before
    assert (tmp_path / "site" / "runtail" / "py.typed").exists()


def test_a_server_that_runs_from_a_checkout_finds_the_sdk_there() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import app, runtail; print(runtail.__file__)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ROOT / "clients" / "python" / "runtail" / "__init__.py")


def test_a_job_works_on_the_oldest_python_without_a_server() -> None:
    python = shutil.which("python3.10")
    if python is None or subprocess.run([python, "-c", ""], check=False).returncode:
        pytest.skip("There is no Python 3.10 here; `make lint` checks the types for it.")
    code = f"""
import sys; sys.path.insert(0, {str(ROOT / "clients" / "python")!r})
from runtail import current_run, ToolError
run = current_run()
with run.step("Work"):
    assert run.tool("add", lambda a: a + 1, 1) == 2
    assert run.parallel(lambda one: one.stream(["a", "b"]), lambda one: one.exec(["/bin/echo", "c"])["stdout"])
assert 0 <= run.random() < 1 and run.now().tzinfo
"""
    subprocess.run([python, "-I", "-c", code], check=True)


def test_importing_the_sdk_imports_nothing_of_anybody_else() -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'clients' / 'python')!r}); import runtail; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    imported = {name.partition(".")[0] for name in done.stdout.split()} - {"__main__", "runtail"}
    assert imported <= sys.stdlib_module_names
