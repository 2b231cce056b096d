"""Answers of something else than the service: every failure of the clients is a ServiceError."""

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from server.client import FluidClient
from server.client.protocol import multipart
from server.errors import ServiceError
from tests.server.harness import http_server


def test_options_of_a_form_may_be_none_or_tuples() -> None:
    """An edit sent "None" and "(0.0, 0.5)", where a generation sends nothing and a list."""
    form = multipart(b"", None, {"seed": None, "guidance_interval": (0.0, 0.5), "n": 2})
    assert form["data"] == {"guidance_interval": [0.0, 0.5], "n": "2", "response_format": "b64_json"}


@pytest.fixture(params=[b"<html>Log in</html>", b"[1, 2]", b"\xff", b""])
def elsewhere(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a web server that answers everything with 200."""

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.send_header("content-length", str(len(request.param)))
            self.end_headers()
            self.wfile.write(request.param)

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    with http_server(Elsewhere) as server:
        yield f"http://127.0.0.1:{server.server_port}"


CALLS: list[Callable[[FluidClient], object]] = [
    lambda client: client.generate("a cat"), lambda client: client.job("job_x"), lambda client: client.models(),
    lambda client: client.submit("a cat"), lambda client: client.batch("batch_x"),
]  # fmt: skip


def test_another_web_server_is_told_from_the_service(elsewhere: str) -> None:
    """A login page that answers 200 was a JSONDecodeError, and a traceback in the commands."""
    with FluidClient(elsewhere, max_retries=0) as client:
        for call in CALLS:
            with pytest.raises(ServiceError, match="without a JSON object: is it the address of a Fluid Serve"):
                call(client)
