"""Addresses that webhooks may be sent to: a guard against server-side request forgery (SSRF).

Without it, any caller who may queue a job could make the gateway send requests into the operator's own network.
"""

import asyncio
import ipaddress
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from server.errors import InvalidRequest

#: Ranges that Python calls global although they lead elsewhere: tunnels and translations (NAT64, 6to4, Teredo, ...)
#: whose far end may be an address of the private network.
_TUNNELS = tuple(
    ipaddress.ip_network(each)
    for each in (
        "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "fec0::/10", "::/96", "::ffff:0:0:0/96",
    )
)  # fmt: skip


class PrivateAddress(Exception):
    """The host of a webhook resolves to an address that is not public."""


def is_public(address: str) -> bool:
    """Return whether this IP address is a public unicast address, and not a tunnel to a private one.

    Raises:
        ValueError: it is not an IP address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    return ip.is_global and not ip.is_multicast and not any(ip in tunnel for tunnel in _TUNNELS)


def check_url(url: str, *, private: bool) -> None:
    """Check a webhook's URL as far as possible without resolving its host; `private` allows private addresses.

    Raises:
        InvalidRequest: nothing could ever be delivered there.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        httpx.URL(url).raw_host.decode().encode("idna")  # as the HTTP client and the resolver will parse it
    except (ValueError, httpx.InvalidURL) as error:
        raise InvalidRequest(f"'webhook' is not a valid URL: {error}.", param="webhook") from error
    if parts.scheme not in ("http", "https") or not host or parts.username is not None:
        raise InvalidRequest(
            "'webhook' must be an http or https URL without a user name, for example https://example.com/hook.",
            param="webhook",
        )
    try:
        public = is_public(host)
    except ValueError:
        return  # a host name: it is resolved and checked at each delivery
    if not private and not public:
        raise InvalidRequest("'webhook' must not be a private address (FLUID_WEBHOOK_PRIVATE).", param="webhook")


@dataclass(frozen=True, slots=True)
class ResolvedAddress:
    """A checked IP address to connect to, with the host name for the Host header and for TLS."""

    url: httpx.URL
    host_header: str
    sni_hostname: str


async def _lookup(host: str, port: int) -> list[tuple[Any, ...]]:
    """socket.getaddrinfo in a thread of its own, which a canceled delivery leaves behind until it ends.

    The loop's own pool is small, and shared with the names of Redis: a few hosts whose name servers never answer would
    hold up everyone. Threads are as many as deliveries, plus those whose lookup outlives its delivery.

    Raises:
        OSError: the name does not resolve.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[tuple[Any, ...]]] = loop.create_future()

    def settle(found: list[tuple[Any, ...]] | Exception) -> None:
        if not answer.done():
            answer.set_exception(found) if isinstance(found, Exception) else answer.set_result(found)

    def look_up() -> None:
        try:
            found: list[tuple[Any, ...]] | Exception = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            found = error
        with suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=look_up, name="webhook-lookup", daemon=True).start()
    return await answer


async def resolve_address(url: str, *, private: bool) -> ResolvedAddress:
    """Resolve the host once and return the very address that was checked: a moment later its name could mean another.

    Raises:
        PrivateAddress: one of the addresses is not public.
        OSError: the name does not resolve.
    """
    target = httpx.URL(url)
    port = target.port or (443 if target.scheme == "https" else 80)
    found = await _lookup(target.host, port)
    addresses = [str(info[4][0]).split("%")[0] for info in found]
    if not private and not all(map(is_public, addresses)):
        raise PrivateAddress(f"{target.host} is {addresses[0]}, a private address (FLUID_WEBHOOK_PRIVATE)")
    return ResolvedAddress(target.copy_with(host=addresses[0]), target.netloc.decode(), target.host)
