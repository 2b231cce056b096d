"""Errors of the service itself: a response like all others, and a line in the log under the request id."""

import json
import re
import socket
from dataclasses import replace

import httpx
import pytest

from server.gateway.app import create_app
from server.gateway.middleware.security_headers import SECURITY_HEADERS
from server.settings import Settings
from tests.server.harness import Service, until
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


HALF = "\ud800"  # as json.dumps spells it: LONE


@pytest.mark.parametrize(("image", "tool", "param"), [
    ([{"type": "input_image", "file_id": f"file-{HALF}"}], {}, "input"),
    ([], {HALF: None}, "tools"),
    ([], {"input_fidelity": HALF}, "tools"),
])  # fmt: skip
def test_half_a_surrogate_pair_is_rejected_at_any_depth(
    service: Service, image: list[dict[str, str]], tool: dict[str, str], param: str
) -> None:
    """Within a list or an object it came as far as a key of Redis, or the response: a 500."""
    said = {"role": "user", "content": [{"type": "input_text", "text": "x"}, *image]}
    answer = httpx.post(
        f"{service.settings.base_url}/v1/responses",
        content=json.dumps({"input": [said], "tools": [{"type": "image_generation", **tool}]}),
        headers={"Content-Type": "application/json"},
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/images/variations", "/v1/files"])
def test_a_client_that_hangs_up_within_its_form_is_no_fault_of_the_service(service: Service, path: str) -> None:
    """It was logged with a traceback and counted as a 500, which an alert watches; a JSON body was not."""

    def count(code: str) -> float:
        page = httpx.get(f"{service.settings.base_url}/metrics").text
        found = re.findall(rf'fluid_http_requests_total{{code="{code}",method="POST",route="{path}"}} (\S+)', page)
        return sum(map(float, found))

    refused, failed = count("400"), count("500")
    with socket.create_connection(("127.0.0.1", service.settings.port)) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9999\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-Disposition: form-data; "
        connection.sendall(head.encode())
    until(lambda: count("400") + count("500") > refused + failed, what="the request's end")
    assert count("500") == failed


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
