"""A service without keys is safe to leave running while one browses: neither DNS rebinding nor forms of other sites."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import httpx
import openai
import pytest

from server.errors import SettingError
from server.gateway.api_keys import hash_key
from server.gateway.app import create_app
from server.settings import Settings
from tests.server.inprocess import served

GENERATE, JOBS = "/v1/images/generations", "/v1/jobs"
EVIL = "http://evil.example"
KEY = "fl-alice"


@contextmanager
def gateway(settings: Settings, **changes: object) -> Iterator[httpx.Client]:
    with (
        served(create_app(replace(settings, **changes))) as port,  # type: ignore[arg-type]
        httpx.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        yield client


@pytest.fixture
def http(settings: Settings) -> Iterator[httpx.Client]:
    with gateway(settings) as client:
        yield client


def refusal(answer: httpx.Response) -> str:
    """The header that the error names; "" if the request was not refused for its origin."""
    if answer.status_code != 403:
        return ""
    error = answer.json()["error"]
    assert error["code"] == "origin_not_allowed"
    assert ("FLUID_ALLOWED_HOSTS" if error["param"] == "Host" else "FLUID_CORS_ORIGINS") in error["message"]
    assert answer.headers["x-request-id"] and answer.headers["x-content-type-options"] == "nosniff"
    return str(error["param"])


def test_only_loopback_names_are_answered_without_keys(http: httpx.Client) -> None:
    """Any Host was answered, so a page that rebinds its name to 127.0.0.1 could read every prompt and image."""
    for host in (
        "localhost", "LOCALHOST:8000", "localhost.", "app.localhost:3000", "127.0.0.1", "127.8.9.1:1", "[::1]",
        "[::1]:8000", "[::ffff:127.0.0.1]",
    ):  # fmt: skip
        assert http.get("/v1/jobs", headers={"Host": host}).status_code == 200, host
    for host in (
        "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "192.168.1.5:8000",
        "[2001:db8::1]", "localhost@evil.example", "evil.example,localhost", "[::1", "0.0.0.0", "2130706433", "*", "",
    ):  # fmt: skip
        for path in ("/v1/jobs", "/v1/models", "/", "/docs", "/openapi.json", "/v1/nothing"):
            assert refusal(http.get(path, headers={"Host": host})) == "Host", (host, path)


def test_probes_come_by_address_and_without_a_name(http: httpx.Client) -> None:
    """Kubernetes and Prometheus call a pod by its address, which no page can rebind; HTTP/1.0 probes send no Host."""
    for path in ("/health/live", "/metrics"):
        for host in ("10.1.2.3:8000", "[2001:db8::1]:8000", "localhost"):
            assert http.get(path, headers={"Host": host}).status_code == 200
        assert refusal(http.get(path, headers={"Host": "evil.example"})) == "Host"


def test_requests_without_or_with_two_hosts_or_in_absolute_form(http: httpx.Client) -> None:
    """The host of an absolute URL wins over the header, and two headers are none."""

    def ask(head: str) -> int:
        with socket.create_connection((http.base_url.host, http.base_url.port or 0), timeout=60) as connection:
            connection.sendall(f"{head}\r\nConnection: close\r\n\r\n".encode())
            return int(connection.recv(65536).split()[1])

    assert ask("GET /v1/jobs HTTP/1.0") == 403
    assert ask("GET /health/live HTTP/1.0") == 200
    assert ask("GET /v1/jobs HTTP/1.1\r\nHost: localhost\r\nHost: evil.example") in (400, 403)
    assert ask("GET http://evil.example/v1/jobs HTTP/1.1\r\nHost: localhost") == 403
    assert ask("GET http://localhost:80/v1/jobs HTTP/1.1\r\nHost: evil.example") == 200


@pytest.mark.parametrize(
    ("changes", "allowed", "refused"),
    [
        ({"allowed_hosts": "images.example, *.lan"}, ["images.example:81", "a.b.LAN"], ["lan", "x.images.example"]),
        ({"allowed_hosts": "a.example:81,2001:db8::1"}, ["a.example:81", "[2001:DB8:0::1]:9"], ["a.example"]),
        ({"allowed_hosts": "*"}, ["evil.example"], []),
        ({"public_url": "https://pics.example:8443/x"}, ["pics.example"], ["evil.example"]),
        ({"api_keys": f"alice {hash_key(KEY)}"}, ["evil.example", "192.168.1.5"], []),
    ],
)
def test_configured_hosts(
    settings: Settings, changes: dict[str, object], allowed: list[str], refused: list[str]
) -> None:
    """Keys are proof enough, since no browser adds them by itself; without them the operator names the hosts."""
    with gateway(settings, **changes) as http:
        key = {"Authorization": f"Bearer {KEY}"}
        assert [http.get("/v1/jobs", headers={"Host": host} | key).status_code for host in allowed] == [200] * len(
            allowed
        )
        assert [http.get("/v1/jobs", headers={"Host": host}).status_code for host in refused] == [403] * len(refused)


@pytest.mark.parametrize("text", ["http://images.example", "a b", "images.*", "a.example/x"])
def test_a_host_that_can_never_match_stops_the_start(settings: Settings, text: str) -> None:
    with pytest.raises(SettingError, match="FLUID_ALLOWED_HOSTS"), gateway(settings, allowed_hosts=text):
        pass


FOREIGN = [
    {"Origin": EVIL}, {"Origin": "null"}, {"Origin": "http://localhost:1"}, {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"}, {"Origin": EVIL, "Sec-Fetch-Site": "Cross-Site"}, {"Origin": "file://"},
]  # fmt: skip


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_other_origins_change_nothing(http: httpx.Client, headers: dict[str, str]) -> None:
    """A form of any page could upload to /v1/files and generate on /v1/images/variations: browsers send those without
    asking. Reading is left to the browser, which shows such a page nothing."""
    form = {"files": {"file": b"{}"}, "data": {"purpose": "batch"}}
    calls: list[Callable[[], httpx.Response]] = [
        lambda: http.post("/v1/files", headers=headers, **form),  # type: ignore[arg-type]
        lambda: http.post("/v1/images/variations", headers=headers, files={"image": b"x"}),
        lambda: http.post("/v1/images/edits", headers=headers, files={"image": b"x"}),
        lambda: http.post(GENERATE, headers=headers, json={"prompt": "x"}),
        lambda: http.post("/v1/jobs/job_1/cancel", headers=headers),
        lambda: http.put("/v1/jobs/my-job-12345", headers=headers, json={"prompt": "x"}),
        lambda: http.delete("/v1/files/file-1", headers=headers),
    ]
    for call in calls:
        assert refusal(call()) in ("Origin", "Sec-Fetch-Site")
    assert http.get(JOBS, headers=headers).json()["data"] == []


def test_own_pages_and_programs_are_served(http: httpx.Client) -> None:
    """The playground, also behind a proxy that rewrites Host, and clients that are no browsers."""
    own = f"http://127.0.0.1:{http.base_url.port}"
    port = http.base_url.port
    for headers in (
        {},
        {"Origin": own},
        {"Origin": own, "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://pics.example", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": f"http://LOCALHOST:{port}", "Host": f"localhost:{port}"},
        {"Origin": "https://localhost", "Host": "localhost:443"},
        {"Origin": f"http://[::1]:{port}", "Host": f"[::1]:{port}"},
    ):
        assert http.post("/v1/jobs/nope/cancel", headers=headers).status_code == 404, headers
    with openai.OpenAI(base_url=f"{own}/v1", api_key="unused", max_retries=0) as client:
        assert list(client.files.list()) == []


@pytest.mark.parametrize(
    ("changes", "origin", "status"),
    [
        ({"cors_origins": "https://app.example/"}, "https://APP.example", 404),
        ({"cors_origins": "https://app.example:443"}, "https://app.example", 404),
        ({"cors_origins": "https://app.example"}, "http://app.example", 403),
        ({"cors_origins": "https://app.example"}, EVIL, 403),
        ({"cors_origins": "*"}, "null", 404),
        ({"public_url": "http://pics.example"}, "http://pics.example", 404),
    ],
)
def test_the_operator_can_allow_pages(settings: Settings, changes: dict[str, object], origin: str, status: int) -> None:
    with gateway(settings, **changes) as http:
        headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site"}
        assert http.post("/v1/jobs/nope/cancel", headers=headers).status_code == status
