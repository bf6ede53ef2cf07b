"""Who is calling: a principal from an API key, or `dev` in development mode."""

import time
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import ip_address

from app.errors import OriginNotAllowed, StoreUnavailable, Unauthorized
from app.storage.run_store import Principal, Registry, hash_key

DEV = Principal(tenant_id="dev", user_id="dev", admin=True, writer=True)
KEY_CACHE_SECONDS = 5.0
"""How long a key that was found is not looked up again: for so long one that was removed still opens doors."""
KEY_CACHE_MAX = 10_000
"""Keys that are remembered; beyond it the one that was looked up first is forgotten."""


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request without a key says about where it comes from."""

    address: str | None
    host: str
    """The Host header without its port."""
    forwarded: bool = False
    """A tunnel or an unknown proxy has passed the request on: it may come from anywhere."""
    foreign_page: bool = False
    """A browser sends it for a page of another origin."""


class KnownKeys:
    """The keys of the registry, by their hashes. A storm of requests with one key asks Postgres once.

    Only keys that were found are remembered: one that was just made works at once.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._found: dict[str, tuple[float, Principal]] = {}
        self._asking: dict[str, Future[Principal | None]] = {}

    def principal(self, key: str) -> Principal | None:
        """Whose key this is, or None.

        :raises StoreUnavailable: the keys cannot be read.
        """
        hashed = hash_key(key)
        expires, found = self._found.get(hashed, (0.0, None))
        if found is not None and time.monotonic() < expires:
            return found
        asking = self._asking.get(hashed)
        return self._ask(key, hashed) if asking is None else asking.result()

    def _ask(self, key: str, hashed: str) -> Principal | None:
        """Ask Postgres, for everybody who comes with this key meanwhile."""
        answer: Future[Principal | None] = Future()
        self._asking[hashed] = answer
        try:
            principal = self._registry.principal(key)
        except BaseException as error:  # what stops this request is not to stop the others
            answer.set_exception(error if isinstance(error, StoreUnavailable) else StoreUnavailable())
            raise
        finally:
            del self._asking[hashed]
        self._remember(hashed, principal)
        answer.set_result(principal)
        return principal

    def _remember(self, hashed: str, principal: Principal | None) -> None:
        self._found.pop(hashed, None)
        if principal is None:
            return
        while len(self._found) >= KEY_CACHE_MAX:
            del self._found[next(iter(self._found))]
        self._found[hashed] = (time.monotonic() + KEY_CACHE_SECONDS, principal)


class Authenticator:
    """Keys against their hashes. In development mode a caller on this machine needs none."""

    def __init__(self, registry: Registry, dev: bool) -> None:
        self._keys = KnownKeys(registry)
        self._dev = dev

    def without_key(self, caller: Caller) -> Principal:
        """Who calls without a key: in development the developer.

        :raises Unauthorized: a key is needed.
        :raises OriginNotAllowed: in development, a page of another site wants to act as the developer.
        """
        if self._dev and _is_local(caller):
            return _developer(caller)
        raise Unauthorized("Send `Authorization: Bearer KEY`; `runtail keys create` makes a key.")

    def with_key(self, authorization: str) -> Principal:
        """Who calls with a key.

        :param authorization: the header.
        :raises Unauthorized: it holds no key that is known.
        :raises StoreUnavailable: the keys cannot be read.
        """
        scheme, _, key = authorization.partition(" ")
        found = self._keys.principal(key.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            raise Unauthorized("The API key is not known.")
        return found


def _developer(caller: Caller) -> Principal:
    """A browser sends requests without a key for whatever page is open in it, also such that change something."""
    if caller.foreign_page:
        raise OriginNotAllowed("In development a page of another origin needs a key, or CORS_ORIGINS to name it.")
    return DEV


def _is_local(caller: Caller) -> bool:
    """From this machine and addressed as this machine: not by a tunnel, nor by a foreign name that resolves to it."""
    if caller.forwarded:
        return False
    return _is_loopback(caller.address) and (caller.host == "localhost" or _is_loopback(caller.host))


def _is_loopback(text: str | None) -> bool:
    try:
        return ip_address((text or "").strip("[]")).is_loopback
    except ValueError:
        return False
