"""Links to images: they open without an API key, for anyone who has them, until they expire."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
import redis

from server.gateway.api_keys import hash_key
from server.gateway.signed_links import _signature
from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.keys import Keys
from tests.server.conftest import fake_settings
from tests.server.harness import Service, running_service, until

KEY = "fl-alice"


@pytest.fixture(scope="module")
def keyed(valkey: EmbeddedValkey) -> Iterator[Service]:
    settings = replace(
        fake_settings(valkey), api_keys=f"alice {hash_key(KEY)}", public_url="https://images.example/base/"
    )
    with running_service(settings) as running:
        yield running


def generate(service: Service, **changes: object) -> httpx.Response:
    body = {"prompt": "a cat", "quality": "low", "response_format": "url"} | changes
    headers = {"Authorization": f"Bearer {KEY}"}
    return httpx.post(f"{service.settings.base_url}/v1/images/generations", json=body, headers=headers)


def path_of(url: str) -> str:
    assert url.startswith("https://images.example/base/v1/jobs/")
    return url.removeprefix("https://images.example/base")


def test_a_link_opens_without_a_key(keyed: Service) -> None:
    """LangChain opens the `url` itself, without headers: with API keys it got 401."""
    path = path_of(generate(keyed).json()["data"][0]["url"])
    image = httpx.get(keyed.settings.base_url + path)
    assert (image.status_code, image.headers["content-type"]) == (200, "image/png")
    assert httpx.head(keyed.settings.base_url + path).status_code == 200
    assert httpx.get(keyed.settings.base_url + urlsplit(path).path).status_code == 401
    with_key = httpx.get(keyed.settings.base_url + path, headers={"Authorization": f"Bearer {KEY}"})
    assert with_key.content == image.content
    wrong_key = httpx.get(keyed.settings.base_url + path, headers={"Authorization": "Bearer fl-wrong"})
    assert wrong_key.status_code == 401


def test_a_link_opens_its_own_image_alone(keyed: Service) -> None:
    one, other = (path_of(each["url"]) for each in generate(keyed, n=2).json()["data"])
    query = urlsplit(one).query
    base = keyed.settings.base_url
    job = urlsplit(one).path.removesuffix("/images/0")
    found = parse_qs(query)
    later = f"expires={int(found['expires'][0]) + 1}&signature={found['signature'][0]}"
    for path, status in {
        f"{urlsplit(other).path}?{query}": 403,
        f"{urlsplit(one).path}?{later}": 403,
        f"{urlsplit(one).path}?signature={found['signature'][0]}": 403,
        f"{urlsplit(one).path}?expires=x&signature=%C3%A9": 403,
        f"{job}?{query}": 401,
        f"{job}/events?{query}": 401,
        f"/v1/jobs?{query}": 401,
    }.items():
        answer = httpx.get(base + path)
        assert answer.status_code == status, path
        if status == 403:
            assert answer.json()["error"]["code"] == "link_refused"
    assert httpx.post(f"{base}{job}/cancel?{query}").status_code == 401


def test_a_link_expires(keyed: Service) -> None:
    """By the clock of Redis, as everything that gateways agree on."""
    with redis.Redis.from_url(keyed.settings.redis_url) as client:
        before_s = client.time()[0]
    path = path_of(generate(keyed).json()["data"][0]["url"])
    expires = int(parse_qs(urlsplit(path).query)["expires"][0])
    with redis.Redis.from_url(keyed.settings.redis_url) as client:
        assert before_s + 3599 <= expires <= client.time()[0] + 3601
        secret = client.get(Keys(keyed.settings.namespace).link_secret)
    assert secret is not None and len(secret) == 64
    old = urlsplit(path).path
    answer = httpx.get(
        f"{keyed.settings.base_url}{old}?expires=1700000000&signature={_signature(secret, old, '1700000000')}"
    )
    assert (answer.status_code, answer.json()["error"]["param"]) == (403, "expires")


def test_streams_send_links_too(keyed: Service) -> None:
    text = generate(keyed, stream=True).text
    assert "signature=" in text and "https://images.example/base/v1/jobs/" in text


def test_without_keys_links_are_plain(service: Service) -> None:
    body = {"prompt": "a cat", "quality": "low", "response_format": "url"}
    answer = httpx.post(f"{service.settings.base_url}/v1/images/generations", json=body)
    assert "?" not in answer.json()["data"][0]["url"]


def test_reads_of_a_key_have_a_limit(new_service: Callable[..., Service]) -> None:
    """A key that polls without pause took the gateway's processor from all others; each has its own limit."""
    keys = f"alice {hash_key(KEY)}; bob {hash_key('fl-bob')}"
    service = new_service(workers=0, api_keys=keys, read_rate_limit=5)
    until(lambda: _get(service, KEY).status_code == 200)
    answers = [_get(service, KEY) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [200] * 4 + [429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 12
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert _get(service, "fl-bob").status_code == 200
    submitted = httpx.post(f"{service.settings.base_url}/v1/files", headers={"Authorization": f"Bearer {KEY}"})
    assert submitted.status_code == 400


def _get(service: Service, key: str) -> httpx.Response:
    try:
        return httpx.get(f"{service.settings.base_url}/v1/files", headers={"Authorization": f"Bearer {key}"})
    except httpx.TransportError:
        return httpx.Response(0)


def test_a_link_may_be_shown_by_other_pages(keyed: Service) -> None:
    """Browsers blocked it in an <img> of any other origin, allowed ones of FLUID_CORS_ORIGINS too."""
    path, key = path_of(generate(keyed).json()["data"][0]["url"]), {"Authorization": f"Bearer {KEY}"}
    name = "cross-origin-resource-policy"
    assert httpx.get(f"{keyed.settings.base_url}{path}").headers[name] == "cross-origin"
    plain = httpx.get(f"{keyed.settings.base_url}{urlsplit(path).path}", headers=key)
    assert plain.status_code == 200 and plain.headers[name] == "same-origin"
