"""CORS for named origins, and neither prompts nor keys in any log."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from server.client import FluidClient
from server.errors import ServiceError
from server.gateway.api_keys import hash_key
from server.launcher import subprocesses
from server.settings import Settings
from tests.server.harness import Service, child_env, status_of, until

ALICE = "fl-alice"


def test_only_pages_of_named_origins_may_call(new_service: Callable[..., Service]) -> None:
    """A browser's preflight request carries no key: it must not get a 401."""
    page = "https://app.example"
    service = new_service(
        workers=0, api_keys=f"alice {hash_key(ALICE)}", cors_origins=f"{page}, http://localhost:3000/"
    )
    url = f"{service.settings.base_url}/v1/models"
    until(lambda: status_of(f"{service.settings.base_url}/health/live") == 200)
    preflight = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-stainless-os",
    }
    allowed = httpx.options(url, headers=preflight | {"Origin": page})
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == page
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    assert httpx.options(url, headers=preflight | {"Origin": "https://evil.example"}).status_code == 400
    refused = httpx.get(url, headers={"Origin": "http://localhost:3000"})
    assert refused.status_code == 401 and "access-control-allow-origin" in refused.headers, (
        "the page cannot read the error"
    )
    assert "x-ratelimit-remaining-requests" in refused.headers["access-control-expose-headers"]
    other = httpx.get(url, headers={"Origin": "https://evil.example", "Authorization": f"Bearer {ALICE}"})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize("log_prompts", ["no", "yes"])
def test_no_log_has_keys_and_prompts_only_on_request(settings: Settings, tmp_path: Path, log_prompts: str) -> None:
    """Everything the processes print at debug level while they generate, fail, reject, cancel and stream."""
    settings = replace(settings, api_keys=f"alice {hash_key(ALICE)}", log_prompts=log_prompts, log_level="debug")
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "server.cli"]
        roles = [
            subprocess.Popen([*command, role], env=child_env(settings), stdout=log, stderr=log)
            for role in ("gateway", "worker")
        ]
        try:
            with FluidClient(settings.base_url, api_key=ALICE, max_retries=0) as client:
                until(lambda: status_of(f"{settings.base_url}/health/ready") == 200)
                _use_everything(client)
        finally:
            for role in roles:
                subprocesses.stop(role, grace_s=10)
    output = (tmp_path / "log").read_text()
    assert "succeeded in" in output and ALICE not in output
    assert (SECRET_WORD in output) == (log_prompts == "yes")


SECRET_WORD = "xylophone"


def _use_everything(client: FluidClient) -> None:
    prompt = f"a {SECRET_WORD}"
    image = client.generate(prompt, quality="low")[0].data
    list(client.stream(prompt, quality="low"))
    client.vary(image, prompt=prompt)
    client.cancel(client.submit(prompt, num_inference_steps=64)["id"])
    with pytest.raises(ServiceError):
        client.generate(f"[raise] {prompt}")
    with pytest.raises(ServiceError):
        client.generate(prompt, size=SECRET_WORD)
    with pytest.raises(ServiceError):
        client.generate(prompt, **{SECRET_WORD: 1})


@pytest.mark.parametrize("keys", ["", f"alice {hash_key(ALICE)}"], ids=["without keys", "with keys"])
def test_a_gateway_on_the_network_without_keys_logs_a_warning(settings: Settings, tmp_path: Path, keys: str) -> None:
    open_to_all = replace(settings, host="0.0.0.0", api_keys=keys)
    with (tmp_path / "log").open("wb") as log:
        gateway = subprocess.Popen(
            [sys.executable, "-m", "server.cli", "gateway"], env=child_env(open_to_all), stdout=log, stderr=log
        )
        try:
            until(lambda: status_of(f"{open_to_all.base_url}/health/live") == 200)
        finally:
            subprocesses.stop(gateway, grace_s=10)
    assert ("WITHOUT API KEYS" in (tmp_path / "log").read_text()) == (not keys)
