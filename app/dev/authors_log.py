"""What workers' logs say to the authors of agents, as it is written: `runtail dev` shows it in the terminal.

Responsible for the logger's name, and for picking its records out of growing files. Not responsible for writing them
(`workers`).
"""

import re
from pathlib import Path

LOGGER = "runtail.agents"
_HEADER = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ (\S+) ")
"""How a record begins; the lines of a traceback that follow it belong to it."""


class AuthorsLog:
    """One log file, read from its beginning. It may not be there yet, and it may be begun anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._rest = b""
        self._showing = False

    def news(self) -> str:
        """The lines of new records, complete ones only; empty when there are none."""
        *lines, self._rest = (self._rest + self._more()).split(b"\n")
        return "".join(line.decode(errors="replace") + "\n" for line in lines if self._is_shown(line))

    def _more(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                if self._path.stat().st_size < self._read:
                    self._read = 0
                file.seek(self._read)
                more = file.read()
        except FileNotFoundError:
            return b""
        self._read += len(more)
        return more

    def _is_shown(self, line: bytes) -> bool:
        if header := _HEADER.match(line):
            self._showing = header[1] == LOGGER.encode()
        return self._showing
