"""Code that no agent names: it leaves a mark when it is called."""

import os
from pathlib import Path
from typing import Any


def mark(*_: Any, **__: Any) -> None:
    """Leave a mark."""
    Path(os.environ["FOREIGN_MARK"]).touch()


def mark_and_fail(*_: Any, **__: Any) -> None:
    """Leave a mark, and raise."""
    mark()
    raise ValueError
