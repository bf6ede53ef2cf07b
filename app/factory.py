"""Builds the Flask app."""

import resource

from flask import Flask
from flask_cors import CORS
from flask_swagger_ui import get_swaggerui_blueprint
from werkzeug.middleware.proxy_fix import ProxyFix

from app.api import approvals, external, feed, inputs, meta, multi, problems, runs, websocket
from app.api.bodies import BoundedBodies
from app.api.context import NoVerb, Runtail
from app.api.one_send import OneSend
from app.api.queries import refuse_unknown
from app.config import Config
from app.console import page
from app.identity.keys import Authenticator
from app.storage.feed_log import FeedReader
from app.storage.history import History
from app.storage.log_reader import Doorbell, LogReader
from app.storage.redis_connections import connect
from app.streaming.admission import Admission
from app.streaming.feeds import Feeds
from app.streaming.hub import TailHub
from app.streaming.opening import Windows
from app.streaming.windows.base import Limits
from app.verbs.commands import Commands
from app.verbs.external import External
from app.verbs.runs import Runs
from app.wiring import Services

RESERVED_FILES = 500
"""Open files of a process that are not windows: its own, and requests under way."""
EXPOSED_HEADERS = ["X-Run-Id", "X-Session-Id", "Location", "ETag", "Retry-After", "Preference-Applied"]


def create_app(config: Config, services: Services | None = None) -> Flask:
    """The app of one web process."""
    app = Flask("app", static_folder=None)
    app.url_map.converters["no_verb"] = NoVerb
    app.url_map.merge_slashes = False  # it would redirect, with a page, where there is nothing
    services = services or Services.for_web(config)
    app.config.update(
        MAX_CONTENT_LENGTH=config.max_body_bytes,
        API_TITLE="Runtail",
        API_VERSION="v1",
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
    )
    windows = _windows(config, services)
    app.extensions["runtail"] = Runtail(
        services=services,
        authenticator=Authenticator(services.registry, config.dev),
        runs=Runs(services),
        commands=Commands(services),
        external=External(services),
        windows=windows,
        feeds=Feeds(FeedReader(connect(config.events_redis_url, max_connections=1)), services.store, windows),
    )
    api = problems.Api(app)
    for module in (runs, external, multi, feed, websocket, approvals, inputs, meta):
        api.register_blueprint(module.blueprint)
    app.register_blueprint(page.blueprint)
    app.register_blueprint(page.described(get_swaggerui_blueprint("/docs", "/openapi.json", {"app_name": "Runtail"})))
    problems.register(app)
    refuse_unknown(app, api.spec.to_dict())
    if config.cors_origins:
        CORS(app, origins=list(config.cors_origins), expose_headers=EXPOSED_HEADERS)
    # In this order: an answer is sent before the rest of a body is waited for.
    app.wsgi_app = BoundedBodies(OneSend(app.wsgi_app), config.max_body_bytes)  # type: ignore[method-assign]
    if config.trusted_proxy_hops:
        hops = config.trusted_proxy_hops
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    return app


def _windows(config: Config, services: Services) -> Windows:
    reader = LogReader(config.events_redis_url)
    admission = Admission(
        services.leases,
        max_per_user=config.stream_max_per_user,
        max_per_address=config.stream_max_per_address,
        max_windows=max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_FILES),
    )
    limits = Limits(
        heartbeat_seconds=config.stream_heartbeat_seconds,
        max_lag_seconds=config.stream_max_lag_seconds,
        max_seconds=config.stream_max_seconds,
        replay_max_events=config.replay_max_events,
        replay_max_bytes=config.replay_max_bytes,
    )
    hub = TailHub(reader, Doorbell(config.events_redis_url), History(services.store, reader))
    return Windows(hub, admission, services.history, limits, services.registry.good_keys)
