"""Errors of the service itself: a response like all others, and a line in the log under the request id."""

from dataclasses import replace

import httpx
import pytest

from server.gateway.app import create_app
from server.gateway.middleware.security_headers import SECURITY_HEADERS
from server.settings import Settings
from tests.server.harness import Service
from tests.server.inprocess import served

LONE = "\\ud800"


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/jobs"])
@pytest.mark.parametrize("field", ["style", "background", "moderation", "model", "size", "user", "webhook", "order"])
def test_half_a_surrogate_pair_is_rejected_in_every_text_field(service: Service, field: str, path: str) -> None:
    """Only `prompt` used to be checked: in any other text field it was a 500."""
    body = f'{{"prompt": "a", "{field}": "{LONE}"}}'.encode()
    answer = httpx.post(service.settings.base_url + path, content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


def test_half_a_surrogate_pair_is_rejected_as_a_parameter_name(service: Service) -> None:
    """The response used to repeat the name, which no response can carry: 500 instead of 'unknown parameter'."""
    answer = httpx.post(
        f"{service.settings.base_url}/v1/jobs",
        content=f'{{"prompt": "a", "{LONE}": 1}}'.encode(),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400 and "'\\ud800'" in answer.json()["error"]["message"]


def test_an_unexpected_exception_is_a_500_and_logged_under_its_id(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """The 500 was once made outside all middleware: it lacked the x-request-id that its own message names, the security
    headers, and the CORS headers without which a page cannot read it."""
    app = create_app(replace(settings, cors_origins="https://example.com"))

    @app.get("/v1/broken")
    async def broken() -> None:
        raise KeyError("unexpected")

    with served(app) as port:
        headers = {"x-request-id": "mine-1", "Origin": "https://example.com"}
        answer = httpx.get(f"http://127.0.0.1:{port}/v1/broken", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert answer.headers["x-request-id"] == "mine-1"
    assert answer.headers["access-control-allow-origin"] == "https://example.com"
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers.get_list(name) == [value]
    [logged] = [record for record in caplog.records if "mine-1" in record.getMessage()]
    assert logged.exc_info and isinstance(logged.exc_info[1], KeyError)
