"""Where a request comes from, as a browser or a proxy tells: what keeps other sites' pages and tunnels out."""

from typing import Final
from urllib.parse import urlsplit

from flask import request
from werkzeug.datastructures import Headers

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_OF_A_PROXY: Final = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "x-real-ip")
"""What proxies that are announced (TRUSTED_PROXY_HOPS) write."""
_OF_OTHERS: Final = frozenset(
    {"forwarded", "via", "client-ip", "true-client-ip", "x-client-ip", "x-cluster-client-ip", "x-original-for"}
    | {"x-originating-ip", "x-remote-addr", "x-remote-ip", "x-proxyuser-ip", "x-azure-clientip", "fly-client-ip"}
    | {"fastly-client-ip", "cdn-loop", "x-envoy-external-address", "x-appengine-user-ip"}
)
_PREFIXES_OF_OTHERS: Final = ("x-forwarded-", "x-original-forwarded-", "cf-", "ngrok-", "tailscale-", "x-tunnel-")


def is_foreign_page(allowed: tuple[str, ...]) -> bool:
    """Whether a page of another origin makes this request, which `allowed` does not name.

    A browser says so by `Origin`, and where it sends none (images, scripts, forms by GET) by `Sec-Fetch-Site`. A link
    that a person follows is none of these.
    """
    origin = request.headers.get("Origin")
    if origin is not None:
        return origin not in allowed and "*" not in allowed and not _is_own(origin)
    if request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
        return False
    return not (request.method in ("GET", "HEAD") and request.headers.get("Sec-Fetch-Mode") == "navigate")


def is_forwarded(headers: Headers, hops: int) -> bool:
    """Whether somebody else than the announced proxies has passed the request on: a tunnel, or another proxy.

    :param hops: so many proxies are announced.
    """
    forwarded_for = ",".join(headers.getlist("X-Forwarded-For"))
    if hops and len(forwarded_for.split(",")) > hops:
        return True
    names = (name.lower() for name in headers.keys())  # noqa: SIM118  # iterating gives pairs
    return any(
        name in _OF_OTHERS or name.startswith(_PREFIXES_OF_OTHERS) or name in _OF_A_PROXY
        for name in names
        if not (hops and name in _OF_A_PROXY)
    )


def _is_own(origin: str) -> bool:
    """The page is from where it sends this request. Whether that was over TLS is not known behind some proxies."""
    try:
        page = urlsplit(origin)
        port = page.port or _DEFAULT_PORTS[page.scheme]
        host = urlsplit(f"//{request.host}")
        same_port = port == host.port or (host.port is None and port in _DEFAULT_PORTS.values())
    except (KeyError, ValueError):
        return False
    return page.hostname is not None and page.hostname == host.hostname and same_port
