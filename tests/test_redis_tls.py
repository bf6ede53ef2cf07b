"""Redis over TLS: a certificate that nobody vouches for is refused, unless a setting says otherwise."""

import contextlib
import time
from collections.abc import Iterator

import pytest

from app.config import Config
from app.errors import ConfigError, StoreUnavailable
from app.streaming.hub import SWEEP_SECONDS
from app.wiring import Services
from tests.conftest import StackMaker
from tests.log_author import LogAuthor
from tests.raw_client import RawClient
from tests.tls_relay import tls_relay

RINGS = 10


@pytest.fixture(scope="module")
def tls_url(environment: dict[str, str]) -> Iterator[str]:
    """The session's Redis behind TLS, with a certificate of its own making."""
    with tls_relay(environment["REDIS_URL"]) as url:
        yield url


@contextlib.contextmanager
def _services(environment: dict[str, str], **settings: str) -> Iterator[Services]:
    with contextlib.closing(Services.for_web(Config.from_env({**environment, **settings}))) as services:
        yield services


@pytest.mark.parametrize("name", ["REDIS_URL", "EVENTS_REDIS_URL"])
def test_a_certificate_that_nobody_vouches_for_is_refused(environment: dict[str, str], tls_url: str, name: str) -> None:
    with _services(environment, **{name: tls_url}) as services, pytest.raises(StoreUnavailable):
        services.log.ping() if name == "EVENTS_REDIS_URL" else services.queue.waiting()


def test_it_is_taken_where_a_setting_says_so(environment: dict[str, str], tls_url: str) -> None:
    with _services(environment, REDIS_URL=tls_url, REDIS_TLS_VERIFY="0") as services:
        services.log.ping()
        services.queue.waiting()


def test_a_url_that_says_how_to_verify_is_left_as_it_is(environment: dict[str, str], tls_url: str) -> None:
    with _services(environment, REDIS_URL=f"{tls_url}?ssl_cert_reqs=none") as services:
        services.log.ping()
    url = f"{tls_url}?ssl_cert_reqs=required"
    with _services(environment, REDIS_URL=url, REDIS_TLS_VERIFY="0") as services, pytest.raises(StoreUnavailable):
        services.log.ping()


@pytest.mark.parametrize("value", ["no", "false", "2", "-1"])
def test_a_flag_is_0_or_1(environment: dict[str, str], value: str) -> None:
    with pytest.raises(ConfigError, match="REDIS_TLS_VERIFY"):
        Config.from_env({**environment, "REDIS_TLS_VERIFY": value})


def test_windows_get_every_event_through_it(stack: StackMaker, tls_url: str) -> None:
    """Many rings at once, and events longer than what one record of TLS holds."""
    server = stack(REDIS_URL=tls_url, REDIS_TLS_VERIFY="0")
    server.start_web()
    authors = [LogAuthor(server) for _ in range(20)]
    with contextlib.ExitStack() as opened:
        clients = [opened.enter_context(RawClient(server.port)).ask(author.path) for author in authors]
        for client in clients:
            client.until(b"run.created")
        began = time.monotonic()
        for seq in range(2, 2 + RINGS):
            authors[0].append()
            clients[0].until(b'"seq":%d' % seq)
        assert time.monotonic() - began < RINGS * SWEEP_SECONDS / 2, "it rang: a sweep would have taken a second each"
        for _ in range(10):
            for author in authors:
                author.append(3)
        for author in authors:
            author.append(text="x" * 100_000)
            author.end()
        for author, client in zip(authors, clients, strict=True):
            assert client.to_the_end().seqs == list(range(1, author.head + 1))
