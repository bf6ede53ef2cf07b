"""An exported log: a file of envelopes, one per line, with a seal as its last line. Pure: bytes in, values out.

docs/protocol.md gives the format, so that anybody can check such a file. A seal shows that a file is what was
exported, or which of its events is not. It does not show who wrote it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from app.errors import RuntailError
from app.protocol.digest import digest
from app.protocol.events import CONTROL_SCHEMAS, SCHEMAS, TERMINAL, VERSION, clean, clean_text, dumps, validate
from app.protocol.reducer import Envelope, Fold, State, initial
from app.protocol.state import output_of

SEAL_TYPE: Final = "export.seal"
LINE_HEX: Final = 16
"""Hex digits of a line's SHA-256 that stand in the seal: enough to tell which line is another."""
LINE_MAX_BYTES: Final = 64_000_000
"""Above any event, and above the seal of three million."""
_MEMBERS: Final = {"v": int, "seq": int, "run_id": str, "type": str, "ts": str, "payload": dict}


class Broken(Exception):
    """The file is not what was exported, or no exported log at all; the message says where."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a file that is in order holds."""

    run_id: str
    events: int
    digest: str
    sealed: bool
    """False: only the digest says that the log is whole, and it does not cover everything."""


class Sealer:
    """Takes the lines of a log in their order, and makes the seal."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        """The beginning of each line's SHA-256, in hex."""
        self._all = hashlib.sha256()

    def add(self, line: bytes) -> None:
        """The next line, without its newline."""
        self.lines.append(hashlib.sha256(line).hexdigest()[:LINE_HEX])
        self._all.update(line + b"\n")

    @property
    def sha256(self) -> str:
        """Of all the lines, their newlines included; hex."""
        return self._all.hexdigest()

    def seal(self, run_id: str, digest: str) -> bytes:
        """The last line, without its newline. The same log has the same seal, byte for byte."""
        payload = {"events": len(self.lines), "digest": digest, "lines": self.lines, "sha256": self.sha256}
        return dumps({"v": VERSION, "type": SEAL_TYPE, "run_id": run_id, "payload": payload}).encode()


def check(lines: Iterable[bytes]) -> Checked:
    """Check a file: its seal, each line, and that the log is whole and folds to the digest that it ends with.

    A file without a seal, such as a window that was kept, is checked by its digest alone.

    :param lines: each with its newline; read once, one at a time. One above LINE_MAX_BYTES may be cut off there.
    :raises Broken: something is wrong; what is told is the first thing.
    """
    log, last = _Log(), b""
    for number, line in enumerate(lines, 1):
        if len(line) > LINE_MAX_BYTES:
            raise Broken(f"Line {number} is longer than {LINE_MAX_BYTES // 1_000_000} MB: this is no exported log.")
        if last:
            log.add(last)
        last = line
    if not last:
        raise Broken("The file is empty.")
    if not last.endswith(b"\n"):
        raise Broken(f"The file ends in the middle of line {log.count + 1}: it was cut off, and has no seal.")
    seal = _parsed(last)
    if seal is not None and seal.get("type") == SEAL_TYPE:
        return log.sealed(last[:-1], seal)
    log.add(last)
    return log.unsealed()


def envelopes(lines: Iterable[bytes]) -> Iterator[Envelope]:
    """The events of a file that `check` has found in order."""
    for line in lines:
        envelope = _parsed(line)
        if envelope is not None and "seq" in envelope:
            yield envelope


class _Log:
    """The lines of a file as far as it was read, and what is wrong with them."""

    def __init__(self) -> None:
        self.count = 0
        self._sealer = Sealer()
        self._fold: Fold | None = None
        self._digest: str | None = None
        """Once the run has ended."""
        self._problem: str | None = None
        """The first one; what comes after it is not folded."""

    def add(self, line: bytes) -> None:
        """The next line, with its newline."""
        self.count += 1
        self._sealer.add(line[:-1])
        if self._problem is None and (problem := self._take(line)):
            self._problem = self._told(problem)

    def _take(self, line: bytes) -> str | None:
        if line == b"\n":  # a window's heartbeat
            return None
        envelope = _parsed(line)
        if envelope is None:
            return "is not JSON in UTF-8"
        if "seq" not in envelope and envelope.get("type") in CONTROL_SCHEMAS:
            return "is a snapshot in place of events" if envelope["type"] == "stream.snapshot" else None
        try:
            _check_shape(envelope)
            self._move_on(envelope)
        except (ValueError, RuntailError) as error:
            return f"does not fit: {error}"
        return None

    def _move_on(self, envelope: Envelope) -> None:
        fold = self._fold = self._fold or Fold(initial(envelope["run_id"]))
        state = fold.state
        computed = digest(state, output_of(state, envelope["payload"])) if envelope["type"] in TERMINAL else None
        fold.apply(envelope)
        if computed is not None:
            if envelope["payload"]["digest"] != computed:
                raise ValueError(f"it gives another digest than {computed}")
            self._digest = computed

    def _told(self, problem: str) -> str:
        if self._state is None:
            return f"This is no exported log: line {self.count} {problem}."
        if self._digest is not None:
            return f"Line {self.count}, after the end of the run, is not the seal that was exported."
        return f"Event {self._state['last_seq'] + 1} is not what was exported: line {self.count} {problem}."

    def sealed(self, line: bytes, seal: Mapping[str, Any]) -> Checked:
        """The log with this seal.

        :raises Broken: it is not what was sealed, or is not in order by itself.
        """
        claimed, actual = _line_hashes(seal), self._sealer.lines
        # A change to the log shows in both; where only one differs, it is the seal that was changed.
        if claimed is not None and claimed != actual and seal["payload"].get("sha256") != self._sealer.sha256:
            raise Broken(_difference(claimed, actual))
        checked = self._whole(sealed=True)
        if line != self._sealer.seal(checked.run_id, checked.digest) or checked.events != self.count:
            raise Broken("The seal is not what was exported.")
        return checked

    def unsealed(self) -> Checked:
        """The log without a seal.

        :raises Broken: it is not a whole run's.
        """
        return self._whole(sealed=False)

    def _whole(self, *, sealed: bool) -> Checked:
        if self._problem is not None:
            raise Broken(self._problem)
        if self._state is None:
            raise Broken("There is no event in the file.")
        if self._digest is None:
            raise Broken(f"There is no end of the run, and no seal that fits: it stops after event {self._last}.")
        return Checked(self._state["run_id"], self._last, self._digest, sealed)

    @property
    def _state(self) -> State | None:
        return self._fold.state if self._fold else None

    @property
    def _last(self) -> int:
        return self._state["last_seq"] if self._state else 0


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None: it is none."""
    try:
        value = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _check_shape(envelope: Mapping[str, Any]) -> None:
    """That the envelope can be folded and shown.

    :raises ValueError, RuntailError: it cannot.
    """
    for name, kind in _MEMBERS.items():
        if type(envelope.get(name)) is not kind:
            raise ValueError(f"{name} is missing, or of another type")
    if envelope["v"] != VERSION:
        raise ValueError(f"version {envelope['v']} is not known here")
    if datetime.fromisoformat(envelope["ts"]).tzinfo is None:
        raise ValueError("ts has no time zone")
    clean(envelope["payload"])
    if clean_text(envelope["run_id"]) != envelope["run_id"]:
        raise ValueError("run_id is no text that a log may hold")
    if envelope["type"] in SCHEMAS:
        validate(envelope["type"], envelope["payload"])


def _line_hashes(seal: Mapping[str, Any]) -> list[str] | None:
    """What the seal says of each line; None: it says nothing that could be compared."""
    payload = seal.get("payload")
    found = payload.get("lines") if isinstance(payload, dict) else None
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else None


def _difference(claimed: list[str], actual: list[str]) -> str:
    """What has become of the first line that is not as it was; `claimed` and `actual` differ."""
    pairs = enumerate(zip(claimed, actual, strict=False))
    at = next((index for index, (was, came) in pairs if was != came), min(len(claimed), len(actual)))
    if at == len(actual):
        return f"Event {at + 1} is missing."
    if actual[at] in claimed[:at]:
        return f"Event {claimed.index(actual[at]) + 1} is there twice."
    if actual[at] in claimed:
        other = claimed.index(actual[at])
        swapped = actual[other : other + 1] == claimed[at : at + 1]
        return f"Events {at + 1} and {other + 1} are swapped." if swapped else f"Event {at + 1} is missing."
    if at == len(claimed) or actual[at + 1 : at + 2] == claimed[at : at + 1]:
        return f"Line {at + 1} was added: it was not exported."
    return f"Event {at + 1} is not what was exported."
