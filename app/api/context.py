"""What views reach for: the app's parts, and the principal of the request."""

import re
from dataclasses import dataclass
from typing import cast

import flask_smorest
from flask import current_app, g, request

from app.api.parsing import StrictParser
from app.auth import Authenticator, Caller
from app.commands import Commands
from app.runs import Runs
from app.storage.run_store import Principal
from app.streaming.windows import Windows
from app.wiring import Services

_PORT = re.compile(r":\d*\Z")


class Blueprint(flask_smorest.Blueprint):
    """flask-smorest's, with strict JSON bodies."""

    ARGUMENTS_PARSER = StrictParser()


@dataclass(frozen=True, slots=True)
class Runtail:
    """The parts of one app."""

    services: Services
    authenticator: Authenticator
    runs: Runs
    commands: Commands
    windows: Windows


def runtail() -> Runtail:
    """The parts of the current app."""
    return cast(Runtail, current_app.extensions["runtail"])


def principal() -> Principal:
    """Who makes this request.

    :raises Unauthorized: nobody we know.
    """
    if "principal" not in g:
        host = _PORT.sub("", request.host)
        caller = Caller(request.headers.get("Authorization"), request.remote_addr, host)
        g.principal = runtail().authenticator.principal(caller)
    return cast(Principal, g.principal)


def require_principal() -> None:
    """Before each request of a blueprint: from somebody unknown not even a body is read. Preflights carry no key.

    :raises Unauthorized: nobody we know.
    """
    if request.method != "OPTIONS":
        principal()
