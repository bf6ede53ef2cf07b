"""Who is calling: a principal from an API key, or `dev` in development mode."""

from dataclasses import dataclass
from ipaddress import ip_address

from app.errors import Unauthorized
from app.storage.run_store import Principal, Registry

DEV = Principal(tenant_id="dev", user_id="dev", admin=True)


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request says about where it comes from."""

    authorization: str | None
    address: str | None
    host: str
    """The Host header without its port."""


@dataclass(frozen=True, slots=True)
class Authenticator:
    """Keys against their hashes. In development mode a caller on this machine needs none."""

    registry: Registry
    dev: bool

    def principal(self, caller: Caller) -> Principal:
        """
        :raises Unauthorized: no key, or one that is unknown.
        :raises StoreUnavailable: the keys cannot be read.
        """
        if caller.authorization is None:
            if self.dev and _is_local(caller):
                return DEV
            raise Unauthorized("Send `Authorization: Bearer KEY`; `runtail keys create` makes a key.")
        scheme, _, key = caller.authorization.partition(" ")
        found = self.registry.principal(key.strip()) if scheme.lower() == "bearer" else None
        if found is None:
            raise Unauthorized("The API key is not known.")
        return found


def _is_local(caller: Caller) -> bool:
    """From this machine and addressed as this machine: a foreign page whose name resolves to it is not."""
    return _is_loopback(caller.address) and (caller.host == "localhost" or _is_loopback(caller.host))


def _is_loopback(text: str | None) -> bool:
    try:
        return ip_address((text or "").strip("[]")).is_loopback
    except ValueError:
        return False
