"""Finished images in a folder, with a real gateway and real workers: what is in Redis, and an outage under load."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import redis

from server.queue.keys import Keys
from server.storage.object_names import object_name
from tests.server.harness import Hold, Service, fluid, until

BODY = {"prompt": "an apple", "seed": 7, "n": 2, "num_inference_steps": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "results"
    path.mkdir()
    return path


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.png") if path.is_file())


def job_of(service: Service, job_id: str) -> dict[str, object]:
    answer = httpx.get(f"{service.settings.base_url}/v1/jobs/{job_id}")
    assert answer.status_code in (200, 202), answer.text
    return answer.json()  # type: ignore[no-any-return]


def image_of(service: Service, job_id: str, index: int = 0) -> httpx.Response:
    return httpx.get(f"{service.settings.base_url}/v1/jobs/{job_id}/images/{index}")


def test_images_lie_in_the_folder_and_only_there(new_service: Callable[..., Service], folder: Path) -> None:
    service = new_service(results=folder.as_uri())
    url = f"{service.settings.base_url}/v1/images/generations"
    answer = httpx.post(url, json=BODY, headers={"Idempotency-Key": "k1"}).json()
    stored = [base64.b64decode(each["b64_json"]) for each in answer["data"]]
    assert sorted(path.read_bytes() for path in files(folder)) == sorted(stored)
    links = httpx.post(url, json={**BODY, "response_format": "url"}).json()["data"]
    assert [httpx.get(each["url"]).content for each in links] == stored
    one = httpx.post(url, json={**BODY, "n": 1}, headers={"Accept": "image/png"})
    assert one.content == stored[0]
    keys = Keys(service.settings.namespace)
    with redis.Redis.from_url(service.settings.redis_url) as client:
        assert not list(client.scan_iter(f"{keys.root.replace('{', '[{]')}:result:*"))
        ended = [name.decode().split() for name in client.zrange(keys.ended_zset, 0, -1)]
    # Only the records are charged to Redis' memory: less than one image would take at most.
    assert len(ended) == 3 and all(0 < int(parts[-1]) < 2 * 1600 for parts in ended), ended
    done = fluid(service.settings, "doctor")
    assert done.returncode == 0 and f"finished images are written to {folder.as_uri()}" in done.stdout, done.stdout


@pytest.mark.slow
def test_an_outage_under_load_loses_no_job_and_costs_no_attempt(
    new_service: Callable[..., Service], folder: Path, hold: Hold
) -> None:
    """The folder becomes a file while jobs run: attempts end without counting, workers take nothing, readiness and
    doctor say why, finished images are a 503; all of it is over once the folder is back."""
    service = new_service(workers=2, results=folder.as_uri(), max_attempts=2, lease_s=8.0)
    base = service.settings.base_url

    def submit(prompt: str = "an apple") -> str:
        return str(service.client.submit(prompt, n=2, num_inference_steps=8)["id"])

    before = submit()
    until(lambda: job_of(service, before)["status"] == "succeeded", what="the first job")
    jobs = [submit() for _ in range(20)] + [submit(hold.prompt()) for _ in range(20)]
    until(lambda: len(files(folder)) > 6, what="some images")
    moved = folder.rename(folder.with_name("moved"))
    folder.write_text("not a folder")
    hold.release()
    jobs += [submit() for _ in range(5)]
    cause = "the store of finished images has lost its folder"

    def red() -> bool:
        ready = httpx.get(f"{base}/health/ready")
        return ready.status_code == 503 and cause in ready.json()["reason"]

    until(red, what="readiness")
    answer = image_of(service, before)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "storage_unavailable"
    assert str(folder) not in answer.text
    # Both workers give up what they hold: each attempt ends after the length of a lease.
    until(lambda: all(job_of(service, id)["status"] in ("queued", "succeeded") for id in jobs), what="requeueing")
    waiting = [id for id in jobs if job_of(service, id)["status"] == "queued"]
    assert waiting and not [id for id in waiting if job_of(service, id).get("error")]
    report = fluid(service.settings, "doctor")
    assert report.returncode == 1 and f"lost its folder: {folder.as_uri()}" in report.stdout, report.stdout
    waits = f"waiting, fake, 0 of 16 rows; {cause}"
    until(lambda: waits in fluid(service.settings, "doctor").stdout, what="the next heartbeat of a worker")

    folder.unlink()
    moved.rename(folder)
    until(lambda: all(job_of(service, id)["status"] == "succeeded" for id in jobs), what="all jobs")
    with redis.Redis.from_url(service.settings.redis_url, decode_responses=True) as client:
        keys = Keys(service.settings.namespace)
        assert {client.hget(keys.job_hash(id), "attempt") for id in jobs} == {"1"}
        assert client.hget(keys.counters_hash, "fenced") in (None, "0")
    assert {image_of(service, id, index).status_code for id in jobs for index in range(2)} == {200}
    until(lambda: httpx.get(f"{base}/health/ready").status_code == 200, what="readiness again")
    until(lambda: fluid(service.settings, "doctor").returncode == 0, what="the next heartbeats of both workers")
    metrics = httpx.get(f"{base}/metrics").text
    [failures] = [line for line in metrics.splitlines() if line.startswith("fluid_result_store_failures_total ")]
    assert float(failures.split()[1]) > 0


@pytest.mark.slow
def test_canceled_and_expired_images_are_deleted(
    new_service: Callable[..., Service], folder: Path, tmp_path: Path
) -> None:
    """A gateway sweeps when it starts, and every half minute."""
    namespace = uuid.uuid4().hex
    old = folder / object_name(namespace, "job_1", 1, 0, "png", time.time() - 7200)
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of a worker that died")
    service = new_service(results=folder.as_uri(), namespace=namespace, max_rows=1)
    until(lambda: not old.parent.parent.exists(), what="the sweep")
    prompt = Hold(tmp_path, seed=7).prompt()
    job = str(service.client.submit(prompt, n=3, seed=5, num_inference_steps=8)["id"])
    until(lambda: files(folder), what="its first image")
    httpx.post(f"{service.settings.base_url}/v1/jobs/{job}/cancel")
    until(lambda: not files(folder), what="deletion")
    assert job_of(service, job)["status"] == "canceled"
