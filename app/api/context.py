"""What views reach for: the app's parts, and the principal of the request."""

import re
from dataclasses import dataclass
from typing import cast

import flask_smorest
from flask import current_app, g, request
from werkzeug.routing import Map, UnicodeConverter

from app.api.origins import is_foreign_page, is_forwarded
from app.api.parsing import StrictParser
from app.errors import InvalidRequest, ScopeRequired
from app.identifiers import no_run
from app.identity.keys import Authenticator, Caller
from app.storage.run_store import Principal
from app.streaming.feeds import Feeds
from app.streaming.opening import Windows
from app.verbs.commands import Commands
from app.verbs.external import External
from app.verbs.runs import Runs
from app.wiring import Services

USER_HEADER = "Runtail-User"
USER_MAX_CHARS = 128
WATCHED = "runs.events"
"""The one endpoint that a `watch_token` opens."""

_PORT = re.compile(r":\d*\Z")


class Blueprint(flask_smorest.Blueprint):
    """flask-smorest's, with strict JSON bodies."""

    ARGUMENTS_PARSER = StrictParser()


class NoVerb(UnicodeConverter):
    """The id of a run in /runs/{run_id}, which is not /runs/cancel: that path has the methods of its own only."""

    def __init__(self, map: Map) -> None:
        super().__init__(map)
        self.regex = rf"(?!cancel\Z){self.regex}"


@dataclass(frozen=True, slots=True)
class Runtail:
    """The parts of one app."""

    services: Services
    authenticator: Authenticator
    runs: Runs
    commands: Commands
    external: External
    windows: Windows
    feeds: Feeds


def runtail() -> Runtail:
    """The parts of the current app."""
    return cast(Runtail, current_app.extensions["runtail"])


def principal() -> Principal:
    """Who makes this request.

    :raises Unauthorized: nobody we know.
    :raises ScopeRequired: `Runtail-User` names another user, and the key may not act for any.
    :raises RunNotFound: the `watch_token` is not this run's.
    """
    if "principal" not in g:
        g.principal = _watcher() or _acting(_caller())
    return cast(Principal, g.principal)


def _caller() -> Principal:
    authenticator, config = runtail().authenticator, runtail().services.config
    authorization = request.headers.get("Authorization")
    if authorization is not None:
        return authenticator.with_key(authorization)
    caller = Caller(
        address=request.remote_addr,
        host=_PORT.sub("", request.host),
        forwarded=is_forwarded(request.headers, config.trusted_proxy_hops),
        foreign_page=is_foreign_page(config.cors_origins),
    )
    return authenticator.without_key(caller)


def _acting(caller: Principal) -> Principal:
    """The user that the caller acts for."""
    sent = request.headers.get(USER_HEADER)
    if sent is None:
        return caller
    if not caller.writer:
        raise ScopeRequired(f"A key that may send {USER_HEADER} is made by `runtail keys create --write`.")
    try:
        user = sent.encode("latin-1").decode()  # WSGI has every byte as a character
    except UnicodeError:
        user = ""
    if not (0 < len(user) <= USER_MAX_CHARS and user.isprintable()):
        raise InvalidRequest(f"{USER_HEADER}: 1 to {USER_MAX_CHARS} printable characters in UTF-8.")
    return Principal(caller.tenant_id, user, admin=False, writer=True, key_id=caller.key_id)


def _watcher() -> Principal | None:
    """The user whose run is read, for who has the run's token to watch it and no key."""
    if request.endpoint != WATCHED or "Authorization" in request.headers:
        return None
    token = request.args.get("watch_token")
    if token is None:
        return None
    run_id = cast(dict[str, str], request.view_args)["run_id"]
    found = runtail().external.watcher(run_id, token)
    if found is None:
        raise no_run(run_id)
    return found


def require_principal() -> None:
    """Before each request of a blueprint: from somebody unknown not even a body is read. Preflights carry no key.

    :raises Unauthorized: nobody we know.
    """
    if request.method != "OPTIONS":
        principal()
