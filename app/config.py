"""Every setting of Runtail: its name, unit, default, and what 0 means. Read once, from the environment."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from app.errors import ConfigError

ALIASES = ("RUNTAIL_DATABASE_URL", "RUNTAIL_REDIS_URL")
"""What the `env` file of `runtail dev` exports. Where it is sourced, each wins over the name that others read too."""
HEARTBEAT_SECONDS = 15
STREAM_TTL_MIN_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one process. Build it with `from_env`; pass it on, never read the environment again."""

    database_url: str
    redis_url: str
    events_redis_url: str
    """Redis of the event log; the same as `redis_url` unless RQ is to have a Redis of its own."""
    port: int = 8000
    dev: bool = False
    """Requests without a key act as principal `dev`, on loopback only."""
    demo_agents: bool = False
    """Workers have the agents `emit` and `support`, with its tables; always so in development."""
    web_concurrency: int = 2
    workers: int = 1
    isolated_workers: int = 1
    worker_concurrency: int = 100
    """Runs that one worker process executes at the same time."""
    db_pool_size: int = 4
    """Postgres connections per process; a caller waits up to 5 s for one."""
    trusted_proxy_hops: int = 0
    """Proxies in front whose X-Forwarded-For is believed (Heroku: 1); 0 = none."""
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 1_000_000
    stream_heartbeat_seconds: int = HEARTBEAT_SECONDS
    stream_ttl_seconds: int = 3_600
    """How long a finished run's stream stays in Redis; at least 60. Afterwards windows are served from Postgres."""
    stream_max_seconds: int = 300
    """How long a window may stay open, ± 10 %; then it ends in order and its client comes back. 0 = for ever."""
    stream_max_lag_seconds: int = 30
    """How long a client may take to read up to where the log was; then its window is reset."""
    stream_max_per_user: int = 50
    """Open windows of one user; 0 = no limit."""
    stream_max_per_address: int = 200
    """Open windows of one client address; 0 = no limit."""
    replay_max_events: int = 5_000
    """Most events that an SSE window is behind before it gets a snapshot in their place; 0 = no limit."""
    replay_max_bytes: int = 1_000_000
    """Most bytes of events that an SSE window replays before it gets a snapshot instead of more; 0 = no limit."""
    on_disconnect_grace_seconds: int = 30
    """How long a run with `on_disconnect: cancel` may be without a window."""
    external_lease_seconds: int = 60
    """How long the writer of an external run may be silent; then the run has lost it."""
    external_lease_max_seconds: int = 7_200
    """The longest lease that such a writer may ask for; a longer one is cut to this."""
    external_claim_seconds: int = 86_400
    """How long an external run waits for a writer that comes later."""
    run_max_attempts: int = 5
    run_timeout_seconds: int = 3_600
    """Longest time one attempt of a run may take; 0 = no limit. A run's own `timeout_s` wins."""
    run_retention_days: int = 0
    """Whole days that a run is kept after its end, then it is erased; 0 = for ever."""
    drain_seconds: int = 20
    """Time that running agents get to finish when a worker is asked to stop; 0 = none."""

    @property
    def share_redis(self) -> bool:
        """The event log and RQ are in the same Redis."""
        return self.redis_url == self.events_redis_url

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Config":
        """Read the settings.

        :raises ConfigError: a setting is missing, not a number, or out of its range; the message names it.
        """
        number = _number_reader(environ)
        dev = _flag(environ, "RUNTAIL_DEV")
        redis_url = _required(environ, "REDIS_URL")
        tls = _tls(environ)
        return cls(
            database_url=_required(environ, "DATABASE_URL"),
            redis_url=tls(redis_url),
            events_redis_url=tls(environ.get("EVENTS_REDIS_URL") or redis_url),
            port=number("PORT", 8000, 1),
            dev=dev,
            demo_agents=dev or _flag(environ, "DEMO_AGENTS"),
            web_concurrency=number("WEB_CONCURRENCY", 2, 1),
            workers=number("RUNTAIL_WORKERS", 1, 1),
            isolated_workers=number("RUNTAIL_ISOLATED_WORKERS", 1, 1),
            worker_concurrency=number("RUNTAIL_WORKER_CONCURRENCY", 100, 1),
            db_pool_size=number("DB_POOL_SIZE", 4, 1),
            trusted_proxy_hops=number("TRUSTED_PROXY_HOPS", 0, 0),
            cors_origins=tuple(o.strip() for o in environ.get("CORS_ORIGINS", "").split(",") if o.strip()),
            max_body_bytes=number("MAX_BODY_BYTES", 1_000_000, 1),
            stream_heartbeat_seconds=number("STREAM_HEARTBEAT_SECONDS", HEARTBEAT_SECONDS, 1),
            stream_ttl_seconds=number("STREAM_TTL_SECONDS", 3_600, STREAM_TTL_MIN_SECONDS),
            stream_max_seconds=number("STREAM_MAX_SECONDS", 300, 0),
            stream_max_lag_seconds=number("STREAM_MAX_LAG_SECONDS", 30, 1),
            stream_max_per_user=number("STREAM_MAX_PER_USER", 50, 0),
            stream_max_per_address=number("STREAM_MAX_PER_ADDRESS", 200, 0),
            replay_max_events=number("REPLAY_MAX_EVENTS", 5_000, 0),
            replay_max_bytes=number("REPLAY_MAX_BYTES", 1_000_000, 0),
            on_disconnect_grace_seconds=number("ON_DISCONNECT_GRACE_SECONDS", 30, 1),
            external_lease_seconds=number("EXTERNAL_LEASE_SECONDS", 60, 1),
            external_lease_max_seconds=number("EXTERNAL_LEASE_MAX_SECONDS", 7_200, 1),
            external_claim_seconds=number("EXTERNAL_CLAIM_SECONDS", 86_400, 1),
            run_max_attempts=number("RUN_MAX_ATTEMPTS", 5, 1),
            run_timeout_seconds=number("RUN_TIMEOUT_SECONDS", 3_600, 0),
            run_retention_days=number("RUN_RETENTION_DAYS", 0, 0),
            drain_seconds=number("DRAIN_SECONDS", 20, 0),
        )


def _flag(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "") not in ("", "0")


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(f"RUNTAIL_{name}") or environ.get(name)
    if not value:
        raise ConfigError(f"{name} is not set. `runtail dev` starts embedded servers and sets it by itself.")
    return value


def _tls(environ: Mapping[str, str]) -> Callable[[str], str]:
    """What makes of a URL of Redis one that says whether a certificate is verified. The URL itself may say so too."""
    verify = environ.get("REDIS_TLS_VERIFY", "").strip() or "1"
    if verify not in ("0", "1"):
        raise ConfigError(f"REDIS_TLS_VERIFY must be 0 or 1, not {verify!r}.")

    def tls(url: str) -> str:
        if verify == "1" or not url.startswith("rediss://") or "ssl_cert_reqs" in url:
            return url
        return url + ("&" if "?" in url else "?") + "ssl_cert_reqs=none"

    return tls


def _number_reader(environ: Mapping[str, str]) -> Callable[[str, int, int], int]:
    def number(name: str, default: int, least: int) -> int:
        text = environ.get(name, "").strip()
        if not text:
            return default
        if not text.isascii() or not text.isdigit():
            raise ConfigError(f"{name} must be a whole number, not {text!r}.")
        if int(text) < least:
            raise ConfigError(f"{name} must be at least {least}, not {text}.")
        return int(text)

    return number
