"""Builds the Flask app."""

from flask import Flask
from flask_cors import CORS
from flask_swagger_ui import get_swaggerui_blueprint
from werkzeug.middleware.proxy_fix import ProxyFix

from app.api import meta, problems, runs
from app.api.context import Runtail
from app.auth import Authenticator
from app.config import Config
from app.console import page
from app.runs import Runs
from app.streaming.window import Windows
from app.wiring import Services

EXPOSED_HEADERS = ["X-Run-Id", "X-Session-Id", "Location"]


def create_app(config: Config, services: Services | None = None) -> Flask:
    """The app of one web process."""
    app = Flask("app", static_folder=None)
    services = services or Services.for_web(config)
    app.config.update(
        MAX_CONTENT_LENGTH=config.max_body_bytes,
        API_TITLE="Runtail",
        API_VERSION="v1",
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        OPENAPI_JSON_PATH="openapi.json",
    )
    app.extensions["runtail"] = Runtail(
        services=services,
        authenticator=Authenticator(services.registry, config.dev),
        runs=Runs(services),
        windows=Windows(services.history, config.stream_heartbeat_seconds),
    )
    api = problems.Api(app)
    for blueprint in (runs.blueprint, meta.blueprint):
        api.register_blueprint(blueprint)
    app.register_blueprint(page.blueprint)
    app.register_blueprint(get_swaggerui_blueprint("/docs", "/openapi.json", {"app_name": "Runtail"}))
    problems.register(app)
    if config.cors_origins:
        CORS(app, origins=list(config.cors_origins), expose_headers=EXPOSED_HEADERS)
    if config.trusted_proxy_hops:
        hops = config.trusted_proxy_hops
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    return app
