"""TrustedOrigins: refuse requests that a web page of another site sent, directly or by DNS rebinding."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import OriginNotAllowed, SettingError
from server.gateway.middleware.cors import split_origins
from server.gateway.middleware.errors import error_response
from server.settings import Settings

#: A host name, IPv4 address or bracketed IPv6 address, and an optional port.
_AUTHORITY = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_*](?:[a-z0-9_.*-]*[a-z0-9_*])?)\.?(?::([0-9]{0,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
#: Probes and scrapers call pods by address. A page cannot rebind an address, only a name.
_PROBED = ("/health/", "/metrics")


class TrustedOrigins:
    """Check the Host header on a service without API keys, and the origin of every request that changes state.

    Without keys, a page that rebinds its own name to 127.0.0.1 could read prompts and images: Host then has that name.
    A page of another site can also send a form without reading the response. Browsers name its origin in headers that
    no script can set; other clients send neither header.
    """

    def __init__(self, app: ASGIApp, settings: Settings, hosts: list[tuple[str, str]]) -> None:
        """`hosts` are those of `allowed_hosts`: Starlette creates middleware when serving begins, too late to fail."""
        self.app, self._hosts = app, hosts
        self._any_host = settings.wants_keys
        public = urlsplit(settings.public_url)
        pages = split_origins(settings.cors_origins)
        self._any_page = "*" in pages
        self._pages = {_origin(page) for page in [*pages, f"{public.scheme}://{public.netloc}"] if page != "://"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                if not self._any_host:
                    self._check_host(scope["path"], headers.getlist("host"))
                if scope["method"] not in _SAFE_METHODS:
                    self._check_page(headers)
            except OriginNotAllowed as error:
                await error_response(scope, error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check_host(self, path: str, sent: list[str]) -> None:
        """Raise OriginNotAllowed unless the one Host header is a loopback name or a configured one."""
        text = sent[0] if len(sent) == 1 else ""
        name, port = _split(text)
        if name and (_is_loopback(name) or any(_matches(name, port, *host) for host in self._hosts)):
            return
        if path.startswith(_PROBED) and (not sent or _address(name) is not None):
            return
        shown = ascii(", ".join(sent)[:100]) if sent else "missing"
        raise OriginNotAllowed(
            f"The Host header is {shown}. Without API keys this service answers to loopback names only. The operator "
            f"can allow more names with FLUID_ALLOWED_HOSTS={name or 'name.example'}, or set up API keys.",
            param="Host",
        )

    def _check_page(self, headers: Headers) -> None:
        """Raise OriginNotAllowed if a page of another origin sent the request and FLUID_CORS_ORIGINS lacks it."""
        origin, site = headers.get("origin", ""), headers.get("sec-fetch-site", "").strip().lower()
        if self._any_page or (origin and _origin(origin) in self._pages):
            return
        if site:
            # The browser's own verdict; it holds behind a proxy that rewrites Host as well.
            if site in ("same-origin", "none"):
                return
        elif not origin or _is_same(origin, headers.get("host", "")):
            return
        page = f"a page of {origin[:100]!a}" if origin else f"another page (Sec-Fetch-Site: {site[:40]!a})"
        raise OriginNotAllowed(
            f"This request comes from {page}, which may not change anything here. The operator can allow it with "
            "FLUID_CORS_ORIGINS.",
            param="Origin" if origin else "Sec-Fetch-Site",
        )


def allowed_hosts(settings: Settings) -> list[tuple[str, str]]:
    """Return the host names of the settings, each with the port that it is limited to, or "".

    Raises:
        SettingError: an entry of FLUID_ALLOWED_HOSTS is a URL or has other characters than a host name.
    """
    own = [settings.host] if settings.host not in ("0.0.0.0", "::") else []
    texts = [*settings.allowed_hosts.split(","), *own, urlsplit(settings.public_url).hostname or ""]
    hosts = []
    for text in filter(None, map(str.strip, texts)):
        is_bare_ipv6 = text.count(":") > 1 and not text.startswith("[")
        name, port = _split(f"[{text.partition('%')[0]}]" if is_bare_ipv6 else text)
        if not name or "*" in name.removeprefix("*.").removeprefix("*"):
            raise SettingError(
                f"FLUID_ALLOWED_HOSTS={text!r} is not a host name. Use names such as images.example, *.example, "
                "192.168.1.5 or images.example:8000, separated by commas; * allows every name."
            )
        hosts.append((name, port))
    return hosts


def _split(authority: str) -> tuple[str, str]:
    """Split `NAME:PORT` in any case into (name without a final dot, port or ""); ("", "") if it is malformed."""
    found = _AUTHORITY.fullmatch(authority.strip().lower())
    return (found[1].strip("[]"), found[2] or "") if found else ("", "")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


@lru_cache(maxsize=64)  # clients send the same few names; ipaddress takes longer than the rest of this file
def _is_loopback(name: str) -> bool:
    address = _address(name)
    if address is None:
        return name == "localhost" or name.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return bool(address.is_loopback or (mapped is not None and mapped.is_loopback))


def _matches(name: str, port: str, allowed: str, allowed_port: str) -> bool:
    if allowed_port and port != allowed_port:
        return False
    if allowed.startswith("*."):
        return name.endswith(allowed[1:])
    return allowed in ("*", name) or (_address(name) is not None and _address(name) == _address(allowed))


def _origin(text: str) -> str:
    """Return an origin in lower case and without its default port, as text to compare."""
    scheme, _, authority = text.strip().lower().rstrip("/").partition("://")
    return f"{scheme}://{authority.removesuffix(':' + _DEFAULT_PORTS.get(scheme, ''))}" if authority else scheme


def _is_same(origin: str, host: str) -> bool:
    """Return true if the page was loaded from this Host. The scheme is unknown behind a proxy that ends TLS."""
    scheme, _, authority = origin.strip().lower().partition("://")
    default = _DEFAULT_PORTS.get(scheme)
    if default is None:
        return False
    (name, port), (own_name, own_port) = _split(authority), _split(host)
    return bool(name) and name == own_name and (port or default) == (own_port or default)
