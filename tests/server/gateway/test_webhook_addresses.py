"""Which addresses webhooks may be sent to: the public internet only, unless the operator allows more."""

import asyncio
import socket
import threading
from typing import Any

import pytest

from server.errors import InvalidRequest
from server.gateway.webhook_addresses import PrivateAddress, check_url, is_public, resolve_address
from tests.server.harness import PATIENCE_S

pytestmark = pytest.mark.anyio


async def test_names_that_resolve_to_private_addresses_are_rejected() -> None:
    """`localhost`, or any name that its owner points at 10.0.0.1, is inside the operator's network."""
    with pytest.raises(PrivateAddress, match="private"):
        await resolve_address("http://localhost:80/", private=False)
    address = await resolve_address("https://localhost:8443/a?b=c", private=True)
    assert address.url.host in ("127.0.0.1", "::1") and address.url.path == "/a"
    assert (address.host_header, address.sni_hostname) == ("localhost:8443", "localhost")
    for url in ("http://10.1.2.3/", "http://169.254.169.254/latest", "http://[::ffff:10.0.0.1]/"):
        with pytest.raises(InvalidRequest):
            check_url(url, private=False)


async def test_lookups_that_hang_delay_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """All shared the loop's few threads, with the names of Redis: one key's silent name servers stopped everyone."""
    hang, whole = threading.Event(), socket.getaddrinfo

    def look_up(host: str, *args: Any, **named: Any) -> Any:
        if host.endswith(".slow.test"):
            hang.wait(PATIENCE_S)
        return whole("127.0.0.1", *args, **named)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    slow = [asyncio.create_task(resolve_address(f"http://{n}.slow.test/", private=True)) for n in range(40)]
    try:
        assert (await resolve_address("http://fast.test/", private=True)).url.host == "127.0.0.1"
        assert not any(task.done() for task in slow)
    finally:
        hang.set()
    assert len(await asyncio.gather(*slow)) == 40


@pytest.mark.parametrize(
    "address",
    ["64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::1", "fec0::1", "::127.0.0.1",
     "::ffff:0:127.0.0.1", "::ffff:127.0.0.1", "224.0.0.1", "ff0e::1"],
)  # fmt: skip
def test_tunnels_to_private_addresses_are_rejected(address: str) -> None:
    """Python calls translated, tunnelled and multicast addresses global: NAT64 of the cloud's metadata used to pass."""
    assert not is_public(address)
    with pytest.raises(InvalidRequest, match="private address"):
        check_url(f"http://[{address}]/" if ":" in address else f"http://{address}/", private=False)


@pytest.mark.parametrize("address", ["93.184.215.14", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_accepted(address: str) -> None:
    """The guard must not reject every address that looks unusual."""
    assert is_public(address)


@pytest.mark.parametrize("url", ["http://a..b/", "http://example.com/\x01", f"http://{'a' * 70}.com/"])
def test_malformed_urls_are_rejected(url: str) -> None:
    """Such URLs used to be accepted, although no attempt could ever succeed."""
    with pytest.raises(InvalidRequest, match="not a valid URL"):
        check_url(url, private=True)
