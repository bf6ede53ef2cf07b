"""What a scenario plays on: real PostgreSQL and Redis in a folder of its own, runs, servers, writers, load clients.

Responsible for making and clearing these. Not responsible for what a scenario does with them.
"""

import os
import secrets
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urlsplit

import psycopg2
import redis

from app.config import Config
from app.dev.services import EmbeddedServices
from app.errors import StoreUnavailable
from app.identifiers import new_id
from app.protocol.ending import Ending
from app.protocol.events import encode
from app.protocol.reducer import initial, reduce
from app.storage.event_log import Append
from app.storage.run_store import NewRun, Principal, migrate
from app.wiring import Services
from bench.load import Load, Windows
from bench.processes import Child, eventually, ports_to, python
from bench.servers import RuntailWeb, Server, clean_environment
from bench.ticks import TYPE, tick

AGENTS = Path(__file__).parent / "agents"
DEV = Principal("dev", "dev", admin=True)
BATCH = 500
UNLIMITED = {"STREAM_MAX_PER_USER": "0", "STREAM_MAX_PER_ADDRESS": "0", "STREAM_MAX_SECONDS": "0"}
"""All windows of a benchmark are one user's, and none may end by its age while it is counted."""
UNCAPPED = {**UNLIMITED, "REPLAY_MAX_EVENTS": "0", "REPLAY_MAX_BYTES": "0"}
"""Every event is replayed; no snapshot takes the place of many."""
LAZY_COMMITS = "options=-c%20synchronous_commit%3Doff"
WORKER = python("-m", "workers")
WORKER_SECONDS = 30
CLIENTS_GONE_SECONDS = 15
SETTLED_SECONDS = 60


class Stage:
    """The stores, for the length of a `with` block."""

    def __init__(self) -> None:
        self._exit = ExitStack()
        self.folder = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="runtail-bench-")))
        self.folder.chmod(0o711)  # started by root, PostgreSQL has an account of its own, which has to pass through
        self.embedded = EmbeddedServices(self.folder / "services")

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.push(self._exit)
            self._exit.enter_context(self.embedded)
            migrate(self.embedded.database_url)
            # Thousands of runs are made; how durably matters to nobody.
            made = {**self.urls, "DATABASE_URL": f"{self.embedded.database_url}?{LAZY_COMMITS}"}
            self.services = Services.for_web(Config.from_env(made))
            self._exit.callback(self.services.close)
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    @property
    def urls(self) -> dict[str, str]:
        """The stores, as the environment of a process."""
        return {"DATABASE_URL": self.embedded.database_url, "REDIS_URL": self.embedded.redis_url}

    # Runs.

    def runs(self, count: int) -> list[str]:
        """Ids of fresh pending runs with their `run.created`, which no worker is told of."""
        made = [self._create() for _ in range(count)]
        for first in range(0, count, BATCH):
            self.services.log.append_all(made[first : first + BATCH])
        return [append.run_id for append in made]

    def _create(self) -> Append:
        run_id = new_id("run")
        created = encode(run_id, 1, "run.created", {"agent": "emit", "input_preview": None})
        state = reduce(initial(run_id), created.envelope())
        new = NewRun(run_id, DEV, "ses_bench", "emit", {}, {}, "continue", None, None, "", state)
        self.services.store.create(new, created)
        return Append(run_id, 0, [created], archived=1)

    def live_run(self, events: int, payload_bytes: int) -> str:
        """A run that has so many events in Redis and goes on."""
        (run_id,) = self.runs(1)
        ticks = [tick(run_id, seq, payload_bytes) for seq in range(2, events + 1)]
        for first in range(0, len(ticks), BATCH):
            self.services.log.append(Append(run_id, 0, ticks[first : first + BATCH], archived=1))
        return run_id

    def finished_run(self, events: int, payload_bytes: int) -> str:
        """A run that has ended with so many events in Postgres, and whose stream in Redis is gone."""
        (run_id,) = self.runs(1)
        claimed = self.services.ownership.claim(run_id, "bench")
        assert claimed
        _, writer = claimed
        for seq in range(2, events):
            writer.add(TYPE, tick(run_id, seq, payload_bytes).envelope()["payload"])
        self.services.ownership.finish(writer, Ending.completed(None))
        self.services.log.delete(run_id)
        return run_id

    # Processes.

    def web(
        self,
        settings: Mapping[str, str] = UNLIMITED,
        *,
        auth: bool = False,
        processes: int = 1,
        kind: type[RuntailWeb] = RuntailWeb,
    ) -> RuntailWeb:
        """Runtail's web, not started yet; with `auth` every window needs a key."""
        modes = {} if auth else {"RUNTAIL_DEV": "1"}
        common = {"WEB_CONCURRENCY": str(processes), **modes}
        web = kind(self.folder, {})
        web.environment = {**self.urls, **common, "PORT": str(web.port), **settings}
        return web

    def baseline(self, kind: type[Server]) -> Server:
        """Another server, not started yet."""
        return kind(self.folder, self.urls)

    def key(self) -> str:
        """The header of an API key that owns the runs."""
        return f"Authorization: Bearer {self.services.registry.create_key(DEV)}"

    @contextmanager
    def worker(self, concurrency: int = 100, environment: Mapping[str, str] = MappingProxyType({})) -> Iterator[Child]:
        """A worker that executes runs, so many at once; it has the benchmarks' agents too."""
        env = {**self.worker_environment(concurrency), **environment}
        with Child("worker", WORKER, self.folder, env) as child:
            eventually(lambda: " is ready: " in child.err.read_text(), WORKER_SECONDS, "Readiness of the worker")
            yield child

    def worker_environment(self, concurrency: int) -> dict[str, str]:
        """The environment of a worker that executes so many runs at once and has the benchmarks' agents too."""
        limits = {"RUNTAIL_WORKERS": "1", "RUNTAIL_WORKER_CONCURRENCY": str(concurrency)}
        env = {**clean_environment(), **self.web().environment, **limits}
        return {**env, "PYTHONPATH": os.pathsep.join([env["PYTHONPATH"], str(AGENTS)])}

    def wait_open(self, load: Load, server: Server, runs: Sequence[str]) -> float:
        """Wait until all windows are open and set up. Returns the seconds that their opening took."""
        seconds = load.wait_open(lambda: server.wake(runs))
        eventually(lambda: server.settled(load.windows.windows), SETTLED_SECONDS, f"The set-up of {server.name}")
        return seconds

    def load(self, server: Server, runs: Sequence[str], windows: int, clients: int = 1, **more: Any) -> Load:
        """A load client for windows on these runs, not opened yet."""
        asked = {"since": server.since, "seq": server.seq, **more}
        return Load(Windows(server.port, [server.path(run) for run in runs], windows, **asked), self.folder, clients)

    def writer(
        self, server: Server, runs: Sequence[str], rate: float, per_run: int, payload_bytes: int, *, end: bool = False
    ) -> Child:
        """A writer process, started: `per_run` events of each run, 0: until it is told a line."""
        listed = self.folder / f"runs-{secrets.token_hex(3)}"
        listed.write_text("\n".join(runs))
        command = [*server.writer_command(), f"--url={server.writer_url()}", f"--runs={listed}"]
        command += [f"--rate={rate}", f"--per-run={per_run}", f"--payload-bytes={payload_bytes}"]
        return Child("writer", command + (["--end"] if end else []), self.folder, {**clean_environment(), **self.urls})

    # The stores' own figures.

    def head(self, run_id: str) -> int:
        """Seq of the last event in Redis."""
        with suppress(StoreUnavailable):
            return self.services.log.head(run_id)
        return self.services.log.head(run_id)  # after a restart of Redis the first connection is a dead one

    def redis_commands(self, pids: Sequence[int]) -> Counter[str]:
        """The Redis connections of these processes, by the last command of each."""
        ports = ports_to(pids, urlsplit(self.embedded.redis_url).port or 0)
        with redis.Redis.from_url(self.embedded.redis_url) as client:
            clients: list[dict[str, str]] = client.client_list()
        return Counter(c["cmd"] for c in clients if int(c["addr"].rpartition(":")[2]) in ports)

    def redis_has(self, key: str) -> bool:
        """Whether Redis has that key now."""
        with redis.Redis.from_url(self.embedded.redis_url) as client:
            return bool(client.exists(key))

    def transactions(self) -> int:
        """Transactions of the database so far. Waits until its clients have left: only then all of theirs count."""
        self.services.database.close()
        eventually(lambda: not self._other_clients(), CLIENTS_GONE_SECONDS, "The end of all clients of PostgreSQL")
        sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        return int(self.ask(sql))

    def _other_clients(self) -> int:
        clients = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        return int(self.ask(f"SELECT count(*) {clients}"))

    def tidy(self) -> None:
        """Have PostgreSQL do now what it would do by itself at some moment."""
        with closing(psycopg2.connect(self.embedded.database_url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute("VACUUM (ANALYZE)")
            cursor.execute("CHECKPOINT")

    def ask(self, sql: str, *values: Any) -> Any:
        """The first row's first column."""
        with closing(psycopg2.connect(self.embedded.database_url)) as connection, connection.cursor() as cursor:
            cursor.execute(sql, values)
            row = cursor.fetchone()
            assert row
            return row[0]

    def versions(self) -> dict[str, str]:
        """Of the two servers."""
        with redis.Redis.from_url(self.embedded.redis_url) as client:
            found = str(client.info("server")["redis_version"])
        return {"redis": found, "postgresql": str(self.ask("SHOW server_version"))}
