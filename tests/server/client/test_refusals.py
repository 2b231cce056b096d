"""Settings of a client that cannot work are refused at once, and errors that no retry can cure are not retried."""

import ssl
from http.server import BaseHTTPRequestHandler

import httpx
import pytest

from server.client import AsyncFluidClient, FluidClient
from server.client.retries import is_permanent
from server.errors import ServiceError
from tests.server.harness import http_server


@pytest.mark.parametrize("key", ["fl-s3cret\n", "fl-s3cret\r", "fl-s3crét", " fl-s3cret", "fl s3cret", "fl-s3cret\x00"])
@pytest.mark.parametrize("kind", [FluidClient, AsyncFluidClient])
@pytest.mark.parametrize("from_environment", [True, False])
def test_a_key_that_no_header_can_carry_is_refused_at_once(
    key: str, kind: type, from_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trailing newline cost 42 s of silent retries, and then the key stood in the error."""
    if from_environment:
        if "\x00" in key:
            pytest.skip("no environment variable can hold it")
        monkeypatch.setenv("FLUID_API_KEY", key)
    with pytest.raises(ServiceError, match="API key") as refused:
        kind(api_key=None if from_environment else key)
    assert "s3cr" not in repr(refused.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://[::1", "", "http://x:port"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    """It was retried for as long as a service that does not answer."""
    with pytest.raises(ServiceError, match="URL"):
        FluidClient(url)


def test_errors_that_no_retry_can_cure_are_told_apart() -> None:
    """A request that cannot be sent, and TLS that fails the same way each time."""
    untrusted = httpx.ConnectError("certificate verify failed")
    untrusted.__cause__ = ssl.SSLCertVerificationError()
    for failure in (httpx.LocalProtocolError("x"), httpx.UnsupportedProtocol("x"), untrusted):
        assert is_permanent(failure)
    for failure in (None, httpx.ConnectError("refused"), httpx.ReadTimeout("x"), httpx.RemoteProtocolError("x")):
        assert not is_permanent(failure)


def test_a_tls_error_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    """https:// to a port that speaks HTTP fails the same way each time."""
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("retried"))
    with http_server(BaseHTTPRequestHandler) as plain:
        client = FluidClient(f"https://127.0.0.1:{plain.server_port}")
        with client, pytest.raises(ServiceError, match="SSL"):
            client.models()


def test_the_password_of_a_url_is_not_shown() -> None:
    """Basic authentication of a proxy in front of the service."""
    client = FluidClient("http://me:s3cret@127.0.0.1:9", max_retries=0)
    with client, pytest.raises(ServiceError, match="me") as failed:
        client.models()
    assert "s3cret" not in str(failed.value)
