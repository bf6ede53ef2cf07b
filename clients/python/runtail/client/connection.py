"""Requests to one server, from whichever process asks. Knows retries and problem documents, no routes."""

import ipaddress
import logging
import os
import random
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import httpx

from runtail.errors import Refused, Unreachable

CONNECT_SECONDS = 5.0
ASK_SECONDS = 20.0
"""How long a call may take, its attempts together: longer than the server takes over an answer, and shorter than the
30 s after which gunicorn kills a worker that waits."""
ATTEMPTS = 4
"""Of a request that may be made again, which every one here may: it changes nothing, or carries a key."""
FIRST_PAUSE, LAST_PAUSE = 0.2, 5.0
"""Seconds between attempts; each pause is twice the one before, less up to half of it by chance."""

_ours: ContextVar[bool] = ContextVar("runtail_ours", default=False)
"""The request is ours, and not one that the application makes with httpx."""


class _Unlogged(httpx.Client):
    """httpx logs each request: of a stream of tokens that is a line every 50 ms, and its URL may hold a watch token."""

    def send(self, *args: Any, **kwargs: Any) -> httpx.Response:
        token = _ours.set(True)
        try:
            return super().send(*args, **kwargs)
        finally:
            _ours.reset(token)


def _is_not_ours(record: logging.LogRecord) -> bool:
    return not _ours.get()


logging.getLogger("httpx").addFilter(_is_not_ours)


class Connection:
    """The way to one server.

    Its sockets are made by the process that uses them, and so it works in processes forked from the one that made it.
    """

    def __init__(self, url: str, seconds: float) -> None:
        """
        :param url: where the server is, such as http://127.0.0.1:8000.
        :param seconds: how long `ask` may take.
        """
        self.url = url.rstrip("/")
        self._seconds = seconds
        self._made: tuple[int, httpx.Client] | None = None

    @property
    def http(self) -> httpx.Client:
        """This process' own client."""
        made, pid = self._made, os.getpid()
        if made is None or made[0] != pid:
            # One that was inherited is left alone: closing it would say goodbye on the parent's connections.
            made = self._made = (pid, self._make())
        return made[1]

    def _make(self) -> httpx.Client:
        return _Unlogged(
            base_url=self.url,
            timeout=httpx.Timeout(self._seconds, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=1.0),
            trust_env=not _is_loopback(self.url),  # a proxy of the environment does not know this machine's loopback
        )

    def close(self) -> None:
        """Close this process' sockets. A later request opens new ones."""
        made, self._made = self._made, None
        if made is not None and made[0] == os.getpid():
            made[1].close()

    def ask(self, method: str, path: str, headers: Mapping[str, str], **request: Any) -> dict[str, Any]:
        """A JSON answer. Asked again where it got lost, or the server cannot give it just now.

        :raises Refused, Unreachable: at the last attempt too.
        """
        deadline = time.monotonic() + self._seconds
        for pause in pauses(ATTEMPTS - 1):
            try:
                return self._ask_once(method, path, headers, request, deadline)
            except (Refused, Unreachable) as error:
                pause = max(pause, min(error.retry_after, LAST_PAUSE))
                if not error.passing or time.monotonic() + pause >= deadline:
                    raise
            time.sleep(pause)
        return self._ask_once(method, path, headers, request, deadline)

    def _ask_once(
        self, method: str, path: str, headers: Mapping[str, str], request: Mapping[str, Any], deadline: float
    ) -> dict[str, Any]:
        left = max(0.0, deadline - time.monotonic())
        timeout = httpx.Timeout(left, connect=min(left, CONNECT_SECONDS))
        try:
            answer = self.http.request(method, path, headers=encoded(headers), timeout=timeout, **request)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise Unreachable(f"{self.url} cannot be reached: {reason(error)}") from error
        if not answer.is_success:
            raise refusal(answer)
        try:
            found: dict[str, Any] = answer.json()
            return found
        except ValueError as error:
            raise Unreachable(f"{self.url} is no Runtail server: its answer is not JSON.") from error


def encoded(headers: Mapping[str, str]) -> httpx.Headers:
    """As they are sent: a user's name may be of any script."""
    return httpx.Headers(headers, encoding="utf-8")


def pauses(times: int) -> list[float]:
    """Seconds to wait between attempts."""
    return [jittered(min(LAST_PAUSE, FIRST_PAUSE * 2**n)) for n in range(times)]


def jittered(seconds: float) -> float:
    """So long, less up to half of it by chance: clients that lost the server together do not come back together."""
    return seconds * random.uniform(0.5, 1)


def refusal(answer: httpx.Response) -> Refused:
    """The error that an answer is."""
    after = answer.headers.get("Retry-After", "")
    seconds = float(after) if after.isascii() and after.isdigit() else 0.0
    try:
        problem = answer.json()
        return Refused(answer.status_code, str(problem["code"]), str(problem["detail"]), seconds)
    except (ValueError, KeyError, TypeError):  # from a proxy, or another server
        code, detail = f"http_{answer.status_code}", f"The server answered {answer.status_code}."
        return Refused(answer.status_code, code, detail, seconds)


def reason(error: Exception) -> str:
    """A sentence about a failed request."""
    return f"{str(error).strip().rstrip('.') or type(error).__name__}."


def _is_loopback(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
