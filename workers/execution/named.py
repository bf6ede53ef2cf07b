"""Calls the functions of agents through a frame that bears the run's id.

So any stack shows whose agent is on it, also one that is written when nothing of Python can be asked any more.
"""

import re
from collections.abc import Callable
from pathlib import Path
from types import FrameType, FunctionType
from typing import TypeVar

T = TypeVar("T")

_RUN = re.compile(r"run_[0-9A-Z]{26}")
_IN_DUMP = re.compile(rf'^  File ".*{re.escape(Path(__file__).name)}", line \S+ in ({_RUN.pattern})$', re.MULTILINE)
"""Other functions may have such names too: `run_forever` is asyncio's."""


def call_named(run_id: str, function: Callable[[], T]) -> T:
    """The function's result."""
    code = _call.__code__.replace(co_name=run_id, co_qualname=run_id)
    result: T = FunctionType(code, {})(function)
    return result


def _call(function: Callable[[], T]) -> T:
    return function()


def run_on(frame: FrameType | None) -> str | None:
    """The run whose agent, or a branch of it, is on the stack; None: no agent is."""
    while frame is not None:
        if frame.f_code.co_filename == __file__ and _RUN.fullmatch(frame.f_code.co_name):
            return frame.f_code.co_name
        frame = frame.f_back
    return None


def run_in_dump(dump: str) -> str | None:
    """As `run_on`, of a stack that faulthandler has written."""
    found = _IN_DUMP.search(dump)
    return found[1] if found else None
