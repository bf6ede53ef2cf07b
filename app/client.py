"""HTTP client of a Runtail server, for the command line: start, read, cancel, follow, decide, send input.

Responsible for coming back to a run by its cursor after whatever happens to the connection, so that every event
is given out once and in order. Not responsible for showing anything (`app.cli.render`).
"""

import ipaddress
import json
import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, Self
from urllib.parse import quote, urlsplit
from uuid import uuid4

import httpx

from app.protocol.events import TERMINAL
from app.protocol.reducer import ENDED

Envelope = dict[str, Any]

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 35.0
"""Above the longest that the server takes over an answer, which is a pool wait and a cancel's wait."""
SILENCE_SECONDS = 60.0
"""A window sends a heartbeat every 15 s by default: after this long without a byte its connection is dead."""
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.2, 5.0
"""Waits between attempts to reconnect; each is twice the one before, less up to half of it by chance."""
GIVE_UP_SECONDS = 300.0
"""How long a server may stay away while a run is followed."""
POST_ATTEMPTS = 4
EVENTS_PAGE = 1_000


class Refused(Exception):
    """The server answered with an error: the status, code and detail of its problem document."""

    def __init__(self, status: int, code: str, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{detail} ({code})")
        self.status = status
        self.code = code
        self.retry_after = retry_after
        """Seconds that the server asks to wait; 0: it does not say."""

    @property
    def passing(self) -> bool:
        """The same request may well succeed a little later."""
        return self.status >= 500 or self.status == 429


class Unreachable(Exception):
    """The server does not answer."""


class _Interrupted(Exception):
    """A window ended, or did not open, but the run goes on.

    :ivar wait: seconds that the server asks for.
    :ivar orderly: the server ended it, as it does now and then with every window.
    """

    def __init__(self, reason: str, wait: float = 0.0, *, orderly: bool = False) -> None:
        super().__init__(reason)
        self.wait = wait
        self.orderly = orderly


class Client:
    """Calls to one server. Every method may raise Refused and Unreachable."""

    def __init__(self, url: str, key: str | None = None, user: str | None = None) -> None:
        """
        :param url: where the server is, such as http://127.0.0.1:8000.
        :param key: an API key; a server in development mode needs none.
        :param user: act for this user of the key's tenant.
        """
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if user is not None:
            headers["Runtail-User"] = user
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers=httpx.Headers(headers, encoding="utf-8"),
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            trust_env=not _is_loopback(self.url),  # no proxy of the environment knows this machine's loopback
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def start(self, agent: str, input: Mapping[str, Any]) -> str:
        """Start a run; returns its id. An answer that got lost starts no second run: the attempts share a key."""
        headers = {"Idempotency-Key": uuid4().hex}
        answer = self._insist("/runs", {"agent": agent, "input": input}, headers)
        return str(answer["run_id"])

    def read(self, run_id: str) -> dict[str, Any]:
        """The run: its row, and its state as of now."""
        return self._ask("GET", _path(run_id))

    def runs(self, limit: int) -> list[dict[str, Any]]:
        """The newest runs of the caller, at most so many."""
        found: list[dict[str, Any]] = self._ask("GET", "/runs", params={"limit": limit})["runs"]
        return found

    def agents(self) -> list[dict[str, Any]]:
        """The agents that workers have, and with an `error` what they could not load."""
        found: list[dict[str, Any]] = self._ask("GET", "/agents")
        return found

    def cancel(self, run_id: str) -> dict[str, Any]:
        """Cancel a run; returns its row after that."""
        return self._ask("POST", _path(run_id, "/cancel"))

    def approvals(self, status: str, run_id: str | None = None) -> Iterator[dict[str, Any]]:
        """The approvals of that status that the caller may see, newest first; with a run id only that run's."""
        query = {"status": status, **({"run": run_id} if run_id else {})}
        while True:
            page = self._ask("GET", "/approvals", params=query)
            yield from page["approvals"]
            if page["next_cursor"] is None:
                return
            query["cursor"] = page["next_cursor"]

    def decide(self, run_id: str, approval_id: str, decision: str, comment: str | None) -> dict[str, Any]:
        """Decide an approval, `approved` or `denied`; returns it after that. Made again, it is the same decision."""
        path = _path(run_id, f"/approvals/{quote(approval_id, safe='')}")
        return self._insist(path, {"decision": decision, "comment": comment})

    def send_input(self, run_id: str, text: str) -> str:
        """Send a run an input; returns its id. An answer that got lost sends no second input."""
        answer = self._insist(_path(run_id, "/input"), {"text": text}, {"Idempotency-Key": uuid4().hex})
        return str(answer["input_id"])

    def events(self, run_id: str) -> Iterator[Envelope]:
        """Every event up to now, by pages."""
        cursor = 0
        while True:
            query = {"since_seq": cursor, "limit": EVENTS_PAGE}
            headers = {"Accept": "application/json"}
            page = self._ask("GET", _path(run_id, "/events"), params=query, headers=headers)
            yield from page["events"]
            if not page["events"]:
                return
            cursor = page["next_since_seq"]

    def follow(
        self, run_id: str, since: int = 0, on_trouble: Callable[[str | None], None] = lambda _: None
    ) -> Iterator[Envelope]:
        """What follows `since`, as it comes, up to the end of the run: every event once, and control frames.

        After a `stream.snapshot` the events go on from its seq. A lost connection, a server that restarts and
        one that is too busy are waited for, up to GIVE_UP_SECONDS.

        :param on_trouble: told the reason when the connection is lost, None when it is back.
        """
        with closing(self.follow_lines(run_id, since, on_trouble)) as lines:
            for envelope, _ in lines:
                yield envelope

    def follow_lines(
        self, run_id: str, since: int = 0, on_trouble: Callable[[str | None], None] = lambda _: None
    ) -> Generator[tuple[Envelope, bytes], None, None]:
        """As `follow`, each envelope with its own bytes, verbatim."""
        cursor, outage = since, _Outage(on_trouble)
        while True:
            try:
                with closing(self._window(run_id, cursor)) as window:
                    for line in window:
                        envelope = _parsed(line)
                        outage.over(progress=envelope is not None)
                        if envelope is None:
                            continue
                        cursor = _cursor_after(envelope, cursor)
                        yield envelope, line
                        if _is_last(envelope):
                            return
            except _Interrupted as interruption:
                outage.wait(interruption)

    def _window(self, run_id: str, cursor: int) -> Generator[bytes, None, None]:
        """One connection: the lines that follow the cursor, empty ones for heartbeats. Ends only by raising.

        :raises _Interrupted: the connection or the server did not last.
        """
        headers = {"Accept": "application/x-ndjson"}
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        query = {"since_seq": cursor}
        try:
            with self._http.stream(
                "GET", _path(run_id, "/events"), params=query, headers=headers, timeout=timeout
            ) as answer:
                if answer.status_code != httpx.codes.OK:
                    answer.read()
                    refused = _refusal(answer)
                    raise _Interrupted(str(refused), refused.retry_after) if refused.passing else refused
                yield from map(bytes.strip, _lines(answer.iter_bytes()))
        except httpx.RequestError as error:
            raise _Interrupted(f"The connection was lost: {_reason(error)}") from error
        raise _Interrupted("The server ended the stream.", orderly=True)

    def _insist(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """POST something that may be sent again, where the answer got lost or the server cannot do it just now."""
        for attempt in range(POST_ATTEMPTS):
            try:
                return self._ask("POST", path, headers=headers, json=body)
            except (Refused, Unreachable) as error:
                again = error.passing if isinstance(error, Refused) else _was_connected(error)
                if not again or attempt == POST_ATTEMPTS - 1:
                    raise
                time.sleep(_jittered(FIRST_RETRY_SECONDS * 2**attempt))
        raise AssertionError("unreachable")

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        try:
            answer = self._http.request(method, path, **request)
            if not answer.is_success:
                raise _refusal(answer)
            return answer.json()
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise Unreachable(f"{self.url} cannot be reached: {_reason(error)}") from error
        except ValueError as error:
            raise Unreachable(f"{self.url} is not a Runtail server: its answer is not JSON.") from error


class _Outage:
    """The time during which a followed run cannot be seen, and how long to wait before each next attempt."""

    def __init__(self, on_trouble: Callable[[str | None], None]) -> None:
        self._on_trouble = on_trouble
        self._since: float | None = None
        self._told = False
        self._delay = FIRST_RETRY_SECONDS
        self._opened = time.monotonic()

    def over(self, *, progress: bool) -> None:
        """Something came. Only progress shortens the next wait: a window may open and end at once."""
        if self._since is not None:
            self._since, self._opened = None, time.monotonic()
        if self._told:
            self._told = False
            self._on_trouble(None)
        if progress:
            self._delay = FIRST_RETRY_SECONDS

    def wait(self, interruption: _Interrupted) -> None:
        """Sleep until the next attempt.

        :raises Unreachable: the server has been away for too long.
        """
        now = time.monotonic()
        if self._since is None and now - self._opened > LAST_RETRY_SECONDS:
            self._delay = FIRST_RETRY_SECONDS
        if self._since is not None and now - self._since > GIVE_UP_SECONDS:
            raise Unreachable(f"The server has been away for {GIVE_UP_SECONDS:.0f} s. {interruption}")
        if not self._told and not (interruption.orderly and self._since is None):
            self._told = True
            self._on_trouble(str(interruption))
        self._since = self._since or now
        time.sleep(max(interruption.wait, _jittered(self._delay)))
        self._delay = min(self._delay * 2, LAST_RETRY_SECONDS)


def _parsed(line: bytes) -> Envelope | None:
    """The line's envelope; None for a heartbeat.

    :raises _Interrupted: it is neither.
    """
    try:
        envelope: Envelope | None = json.loads(line) if line else None
    except ValueError as error:
        raise _Interrupted("What came is not NDJSON.") from error
    return envelope


def _cursor_after(envelope: Envelope, cursor: int) -> int:
    """The cursor once this envelope was taken.

    :raises _Interrupted: it is not the next event; asking again from the cursor brings that.
    """
    if envelope["type"] == "stream.snapshot":
        return int(envelope["payload"]["seq"])
    if envelope["type"] == "stream.rejected":
        payload = envelope["payload"]
        raise _Interrupted(f"The server takes no more streams ({payload['code']}).", payload["retry_ms"] / 1_000)
    if "seq" not in envelope:
        return cursor
    if envelope["seq"] != cursor + 1:
        raise _Interrupted(f"Event {envelope['seq']} came after event {cursor}.")
    return int(envelope["seq"])


def _is_last(envelope: Envelope) -> bool:
    if envelope["type"] == "stream.snapshot":
        return envelope["payload"]["state"]["status"] in ENDED
    return envelope["type"] in TERMINAL


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The complete lines. What a broken connection left of the last one is no event."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _path(run_id: str, rest: str = "") -> str:
    return f"/runs/{quote(run_id, safe='')}{rest}"


def _refusal(answer: httpx.Response) -> Refused:
    retry_after = answer.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0
    try:
        problem = answer.json()
        return Refused(answer.status_code, str(problem["code"]), str(problem["detail"]), seconds)
    except (ValueError, KeyError, TypeError):  # not from Runtail: a proxy's page, or another server
        reason = answer.reason_phrase or "Error"
        code = f"http_{answer.status_code}"
        return Refused(answer.status_code, code, f"The server answered {answer.status_code} {reason}.", seconds)


def _reason(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return f"{text}." if text else f"{type(error).__name__}."


def _was_connected(error: Unreachable) -> bool:
    """Something was there and went away, as in a restart; nothing there at all is an answer for the caller."""
    cause = error.__cause__
    return isinstance(cause, httpx.TransportError) and not isinstance(
        cause, httpx.ConnectError | httpx.ConnectTimeout | httpx.UnsupportedProtocol
    )


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1)


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
