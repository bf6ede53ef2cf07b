"""Programs that some tests need and pip has not: nginx, node, gcc and the like."""

import os
import shutil
from typing import NoReturn

import pytest


def needed(program: str, path: str | None = None) -> str:
    """The path of a program. Without it the test is skipped, except in CI, where it fails."""
    found = shutil.which(program, path=path)
    if found is None:
        give_up(f"There is no {program} on PATH.")
    return found


def give_up(sentence: str) -> NoReturn:
    """Skip the test with that sentence: something is missing on this machine. In CI nothing may be: there it fails."""
    if os.environ.get("CI"):
        pytest.fail(sentence)
    pytest.skip(sentence)
