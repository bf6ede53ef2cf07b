"""The services of a test session: real PostgreSQL and Redis, a real web process and worker."""

import itertools
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
from flask import Flask
from redis import Redis

from app.config import Config
from app.dev.services import EmbeddedServices
from app.factory import create_app
from app.storage.run_store import Principal, migrate
from app.wiring import Services
from tests.harness import Stack

# The background job of a shell ignores SIGINT, and so would every child of ours that a test sends one.
signal.signal(signal.SIGINT, signal.default_int_handler)

StackMaker = Callable[..., Stack]

MIGRATED = f"migrated_{secrets.token_hex(4)}"
"""The database of which others are copied."""
_migrated_on: set[str] = set()
"""Servers that have it."""
_migrating = threading.Lock()


def pytest_addoption(parser: pytest.Parser) -> None:
    """What tests/chaos and tests/soak play."""
    group = parser.getgroup("chaos", "the chaos suite")
    soak = parser.getgroup("soak", "the soak")
    soak.addoption("--soak-seconds", type=float, default=1_800, help="how long it is played")
    soak.addoption("--soak-seed", type=int, default=1, help="decides which agents misbehave, and how")
    group.addoption("--chaos-rounds", type=int, default=0, help="rounds of kills; 0: the short piece")
    group.addoption("--chaos-seed", type=int, default=1, help="decides what is killed and started, in which order")
    group.addoption("--chaos-runs", type=int, default=0, help="runs in flight, each with a window; 0: as the piece has")


THOROUGH = (
    "chaos/test_chaos.py",
    "test_window_fuzz.py",
    "test_external_machine.py",
    "test_outages.py",
    "test_bench.py",
    "test_heartbeat.py",
    "test_culprits.py",
    "test_neighbours.py",
    "test_failover_live.py",
    "test_hanging_redis.py",
    "test_store_errors.py",
    "test_long_folds.py",
    "client/test_repetitions.py",
    "deploy/test_processes.py",
    "model/test_exploration.py",
    "model/test_external_exploration.py",
    "test_watchdog.py",
    "test_early_cancel.py",
    "test_legacy_examples.py",
    "client/test_celery.py",
    "test_pace.py",
    "test_playback.py",
    "test_external_recovery.py",
    "test_isolated.py",
    "test_recovery.py",
    "client/test_job_alone.py",
    "test_devservices.py",
    "test_authors.py",
    "test_external_bounds.py",
    "test_cli.py",
    "test_agents_page.py",
    "test_dependencies.py",
)
"""Files whose tests are marked `thorough`: each takes a minute or more, and `make test` plays them all."""
LONGEST_FIRST = (
    *THOROUGH,
    "test_limits.py",
    "test_door.py",
    "test_hub.py",
    "test_cancel.py",
    "websocket/test_window.py",
    "test_export.py",
    "test_feed.py",
    "test_poison.py",
    "test_stopping.py",
    "test_other_servers.py",
    "test_multi_window.py",
    "client/test_jobs.py",
    "test_external_attacks.py",
    "test_worker.py",
    "test_durable.py",
)
"""Files that take a minute or so: begun last, one of them would keep everybody waiting."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; a file stays together."""
    order = {name: n for n, name in enumerate(LONGEST_FIRST)}
    here = Path(__file__).parent
    files = {item: item.path.relative_to(here).as_posix() for item in items}
    for item in items:
        if files[item] in THOROUGH:
            item.add_marker(pytest.mark.thorough)
    items.sort(key=lambda item: order.get(files[item], len(order)))


@pytest.fixture(scope="session")
def tmp_path_factory(tmp_path_factory: pytest.TempPathFactory) -> pytest.TempPathFactory:
    """pytest's, whose folders are root's alone where it runs the tests: an embedded PostgreSQL has another account."""
    if os.geteuid() == 0:
        make = tmp_path_factory.mktemp

        def passable(*arguments: Any, **more: Any) -> Path:
            made = make(*arguments, **more)
            made.chmod(0o711)
            return made

        tmp_path_factory.mktemp = passable  # type: ignore[method-assign]
        base = tmp_path_factory.getbasetemp()
        for folder in (base, *base.parents):
            if folder.name.startswith(("pytest-", "popen-")):
                folder.chmod(0o711)
    return tmp_path_factory


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """DATABASE_URL and REDIS_URL of a migrated PostgreSQL and a Redis: the environment's, else embedded ones."""
    with ExitStack() as stack:
        if os.environ.get("DATABASE_URL") and os.environ.get("REDIS_URL"):
            urls = {name: os.environ[name] for name in ("DATABASE_URL", "REDIS_URL")}
        else:
            embedded = stack.enter_context(EmbeddedServices(tmp_path_factory.mktemp("services")))
            urls = {"DATABASE_URL": embedded.database_url, "REDIS_URL": embedded.redis_url}
        migrate(urls["DATABASE_URL"])
        yield urls
        execute(urls["DATABASE_URL"], f"DROP DATABASE IF EXISTS {MIGRATED}")


@pytest.fixture(scope="session")
def config(environment: dict[str, str]) -> Config:
    """The settings of this process."""
    return Config.from_env(environment)


@pytest.fixture(scope="session")
def services(config: Config) -> Iterator[Services]:
    """The storage, as a web process has it."""
    services = Services.for_web(config)
    yield services
    services.close()


@pytest.fixture(scope="session")
def app(config: Config, services: Services) -> Flask:
    """The app as a web process has it, to ask for its routes."""
    return create_app(config, services)


@pytest.fixture
def principal() -> Principal:
    """The principal of development mode."""
    return Principal("dev", "dev", admin=True)


@pytest.fixture(scope="session")
def live(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One web process and one worker, shared by all tests that leave them as they are."""
    with Stack(environment, tmp_path_factory.mktemp("live")) as stack:
        stack.start_web()
        stack.start_worker()
        yield stack


@pytest.fixture
def stack(environment: dict[str, str], tmp_path: Path) -> Iterator[StackMaker]:
    """Makes stacks of a test's own, with settings of its own, on a PostgreSQL and a Redis database of their own."""
    with ExitStack() as opened:

        def make(**settings: str) -> Stack:
            urls = opened.enter_context(own_databases(environment))
            return opened.enter_context(Stack({**urls, **settings}, tmp_path))

        yield make


@pytest.fixture(scope="module")
def module_stack(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackMaker]:
    """As `stack`, for processes that all tests of a module share."""
    with ExitStack() as opened:

        def make(**settings: str) -> Stack:
            urls = opened.enter_context(own_databases(environment))
            return opened.enter_context(Stack({**urls, **settings}, tmp_path_factory.mktemp("stack")))

        yield make


@pytest.fixture(scope="module")
def apart(environment: dict[str, str]) -> Iterator[Services]:
    """The storage on databases that no process but this one looks at."""
    with own_databases(environment) as urls:
        services = Services.for_web(Config.from_env(urls))
        yield services
        services.close()


def _redis_numbers_of_this_job() -> range:
    """The jobs of pytest-xdist that use one Redis share its databases out; with embedded servers each has its own."""
    job = os.environ.get("PYTEST_XDIST_WORKER")
    if job is None or not os.environ.get("REDIS_URL"):
        return range(1, 16)
    first = 1 + 3 * (int(job.removeprefix("gw")) % 5)
    return range(first, first + 3)


_redis_numbers = itertools.cycle(_redis_numbers_of_this_job())


@contextmanager
def own_databases(environment: dict[str, str], *, migrated: bool = True) -> Iterator[dict[str, str]]:
    """URLs of an empty PostgreSQL database, which has all tables if it is `migrated`, and an empty Redis database."""
    queue = urlsplit(environment["REDIS_URL"])._replace(path=f"/{next(_redis_numbers)}").geturl()
    with Redis.from_url(queue) as redis:
        redis.flushdb()
    server, name = environment["DATABASE_URL"], f"test_{secrets.token_hex(4)}"
    execute(server, f"CREATE DATABASE {name} TEMPLATE {_migrated(server) if migrated else 'template1'}")
    try:
        yield {"DATABASE_URL": _on(server, name), "REDIS_URL": queue}
    finally:
        execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _migrated(server: str) -> str:
    """The name of a database that nobody is connected to, with all tables: to copy it is faster than to make them."""
    with _migrating:  # some tests make their stacks in threads
        if server not in _migrated_on:
            execute(server, f"DROP DATABASE IF EXISTS {MIGRATED}")  # one that could not be migrated
            execute(server, f"CREATE DATABASE {MIGRATED}")
            migrate(_on(server, MIGRATED))
            _migrated_on.add(server)
    return MIGRATED


def _on(server: str, database: str) -> str:
    return urlsplit(server)._replace(path=f"/{database}").geturl()


def execute(url: str, sql: str) -> None:
    """One statement outside a transaction."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        connection.cursor().execute(sql)
