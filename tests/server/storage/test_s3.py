"""Finished images in a bucket of moto's server: an outage under load, presigned links, and credentials in no text."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import redis

from benchmarks.options.s3_server import NoServer, moto_server, s3_server
from server.queue.keys import Keys
from tests.server.harness import Hold, Service, fluid, until

pytestmark = pytest.mark.slow
SECRET = "plantedSecretOfTheBucket"
ACCESS_KEY = "PLANTEDACCESSKEYID"
CAUSE = "the store of finished images does not answer"


def lifecycle_of_the_docs(bucket: str, root: str) -> None:
    """The server takes the rules of docs/deploy.md and returns them, and each object is under one of them."""
    text = (Path(__file__).parents[3] / "docs/deploy.md").read_text()
    found = re.search(r"```json\s+(\{\"Rules\": .*?)```", text, re.DOTALL)
    assert found is not None
    rules = [{**each, "Prefix": each["Filter"]["Prefix"]} for each in json.loads(found[1])["Rules"]]
    for rule in rules:
        rule["Prefix"] = re.sub("^prefix/fluid", root, rule["Prefix"])
    text = "".join(
        f"<Rule><ID>{rule['ID']}</ID><Filter><Prefix>{rule['Prefix']}</Prefix></Filter><Status>{rule['Status']}</Status>"
        f"<Expiration><Days>{rule['Expiration']['Days']}</Days></Expiration></Rule>"
        for rule in rules
    )
    xml = f"<LifecycleConfiguration>{text}</LifecycleConfiguration>"
    httpx.put(f"{bucket}?lifecycle", content=xml).raise_for_status()
    returned = httpx.get(f"{bucket}?lifecycle").text
    assert re.findall(r"<Prefix>(.*?)</Prefix>", returned) == [rule["Prefix"] for rule in rules]
    assert re.findall(r"<Days>(.*?)</Days>", returned) == [str(rule["Expiration"]["Days"]) for rule in rules]
    keys = re.findall(r"<Key>(.*?)</Key>", httpx.get(f"{bucket}?list-type=2").text)
    assert {next(rule["ID"] for rule in rules if key.startswith(rule["Prefix"])) for key in keys} == {
        "fluid-images",
        "fluid-uploads",
    }


@pytest.fixture(autouse=True)
def _moto_can_be_installed() -> None:
    try:
        moto_server()
    except NoServer as error:
        pytest.skip(str(error))


def test_a_bucket_that_is_away_under_load(
    new_service: Callable[..., Service],
    hold: Hold,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    texts: list[str] = []
    with s3_server("pictures") as relay:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        place = {"results": "s3://pictures/some/prefix", "result_links": "presigned"}
        service = new_service(workers=2, max_attempts=2, lease_s=8.0, **place)
        base = service.settings.base_url

        def read(path: str) -> httpx.Response:
            answer = httpx.get(base + path)
            texts.append(answer.text)
            return answer

        def submit(prompt: str = "an apple") -> str:
            return str(service.client.submit(prompt, num_inference_steps=8)["id"])

        body = {"prompt": "an apple", "num_inference_steps": 8, "response_format": "url"}
        [image] = httpx.post(f"{base}/v1/images/generations", json=body).json()["data"]
        assert (
            image["url"].startswith(f"http://127.0.0.1:{relay.port}/pictures/some/prefix/")
            and SECRET not in image["url"]
        )
        found = httpx.get(image["url"])
        assert found.headers["content-type"] == "image/png" and found.content.startswith(b"\x89PNG")

        jobs = [submit() for _ in range(10)] + [submit(hold.prompt()) for _ in range(30)]
        until(lambda: "succeeded" in {service.client.job(id)["status"] for id in jobs}, what="the first job")
        relay.stop()
        hold.release()
        jobs += [submit() for _ in range(5)]
        until(lambda: CAUSE in read("/health/ready").text, what="readiness")
        done = next(id for id in jobs if service.client.job(id)["status"] == "succeeded")
        assert read(f"/v1/jobs/{done}/images/0").json()["error"]["code"] == "storage_unavailable"
        report = fluid(service.settings, "doctor")
        assert report.returncode == 1 and "does not answer: s3://pictures/some/prefix" in report.stdout, report.stdout
        until(lambda: not [i for i in jobs if service.client.job(i)["status"] in ("starting", "processing")])
        assert "queued" in {service.client.job(id)["status"] for id in jobs}
        relay.start()
        until(lambda: {service.client.job(id)["status"] for id in jobs} == {"succeeded"}, what="all jobs")
        assert {httpx.get(f"{base}/v1/jobs/{id}/images/0").status_code for id in jobs} == {200}
        with redis.Redis.from_url(service.settings.redis_url, decode_responses=True) as client:
            keys = Keys(service.settings.namespace)
            assert {client.hget(keys.job_hash(id), "attempt") for id in jobs} == {"1"}
        until(lambda: read("/health/ready").status_code == 200, what="readiness again")
        upload = {"file": ("a", b"x"), "purpose": (None, "vision")}
        file = httpx.post(f"{base}/v1/files", files=upload).json()["id"]
        assert httpx.get(f"{base}/v1/files/{file}/content").content == b"x"
        lifecycle_of_the_docs(f"http://127.0.0.1:{relay.port}/pictures", f"some/prefix/{service.settings.namespace}")
        read("/metrics")
        well = fluid(service.settings, "doctor")
        assert well.returncode == 0 and "finished images are written to s3://pictures/some/prefix" in well.stdout
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKWRONG" + ACCESS_KEY)
        texts += [report.stdout, report.stderr, well.stdout, well.stderr, fluid(service.settings, "doctor").stdout]
        service.close()
    texts += list(capfd.readouterr())
    assert not [text for text in texts if SECRET in text or ACCESS_KEY in text]
