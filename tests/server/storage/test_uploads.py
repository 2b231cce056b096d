"""Source images of edits and uploaded files in the store of FLUID_RESULTS: where they lie, until when, and outages."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.batch_format import EDITS_URL
from server.errors import RateLimited, StorageUnavailable, UnknownFile
from server.errors.limits import MIB
from server.gateway.batches.edit_lines import EditLine
from server.gateway.batches.files import FileStore
from server.gateway.batches.runner import BatchRunner
from server.gateway.batches.store import BatchStore
from server.gateway.fleet import Fleet
from server.gateway.metrics import GatewayMetrics
from server.gateway.queue_trouble import _sweep
from server.gateway.requests.client_mapping import NO_MAPPING
from server.images.compositing import pack
from server.jobs import Edit, JobError, JobState, Output
from server.metrics import Tally
from server.queue import source_images
from server.queue.job_queue import JobQueue, Submission
from server.queue.lease_queue import LeaseQueue
from server.queue.redis_client import redis_time
from server.queue.registry import Registry
from server.queue.statistics import usage_by_owner
from server.storage.object_names import expires_at, object_name
from server.worker.results import ResultWriter
from server.worker.scheduling.held_job import HeldJob
from tests.server.gateway.routes.test_edits import gradient, mask, png
from tests.server.harness import Hold, Service, job_input, take, until

TTL_S = 3600
IMAGE, SHA256 = pack(bytes(32 * 32 * 3), bytes([255]) * 512 + bytes(512))
anyio = pytest.mark.anyio


def uploads(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.glob("*=uploads/*"))


async def sweep(queue: JobQueue, after_s: float = 0.0) -> None:
    assert queue.store is not None
    await _sweep(queue, queue.store, await redis_time(queue.redis) + after_s)


@anyio
async def test_files_lie_in_the_folder_as_long_as_they_are_needed(stored: JobQueue, folder: Path) -> None:
    files = FileStore(stored, TTL_S)
    data = b"0123456789" * 60_000
    file = await files.add("ann", "in", "batch", data)
    assert uploads(folder) == [data] and not await stored.redis.exists(stored.keys.file_bytes(file.id))
    assert await files.content(file.id) == data
    assert b"".join([chunk async for chunk in files.chunks(file)]) == data
    assert await files.lines(file.id, [3, 5, 10]) == ["34", "56789"]
    with pytest.raises(UnknownFile):
        await files.get("bob", file.id)
    # The key's limit counts the file, that of Redis' memory its record alone.
    assert {each.owner: each.stored_bytes for each in await usage_by_owner(stored)} == {"ann": len(data) + 1024}
    assert await stored.redis.hget(stored.keys.counters_hash, "stored_bytes") == "1024"
    stored.memory_limits |= {"max_key_bytes": MIB, "max_bytes": 4096}
    with pytest.raises(RateLimited):
        await files.add("ann", "in", "batch", data)
    other = await files.add("bob", "in", "batch", data, 600)
    await files.delete("ann", file.id)
    await sweep(stored)
    assert len(uploads(folder)) == 1 and await files.content(other.id) == data
    await sweep(stored, 500)
    assert len(uploads(folder)) == 1
    await sweep(stored, 601)
    assert uploads(folder) == [] and not await stored.redis.exists(stored.keys.discarded_zset)
    assert await stored.redis.hget(stored.keys.stored_bytes_hash, "ann") is None


@anyio
async def test_a_source_image_in_the_folder_ends_with_its_job(
    stored: JobQueue, stored_leases: LeaseQueue, folder: Path
) -> None:
    def edit_of(job_id: str) -> Submission:
        return Submission(job_id, job_input(edit=Edit(job_id, SHA256, feather=1)), "job", source=IMAGE)

    for _ in range(2):  # the second one's image is not the job's
        await stored.enqueue(edit_of("job_1"))
    await sweep(stored, source_images.UNCLAIMED_S + 1)
    assert uploads(folder) == [IMAGE] and not await stored.redis.exists(stored.keys.input_bytes("job_1"))
    lease = await take(stored_leases)
    assert await source_images.load(stored_leases, lease.input) == IMAGE
    await stored_leases.requeue(lease)
    await sweep(stored, 10 * TTL_S)  # a job may wait for any time
    await stored_leases.finish(await take(stored_leases), JobState.FAILED, error=JobError("x", "y"))
    await sweep(stored)
    assert await source_images.load(stored_leases, lease.input) == IMAGE, "a replay needs it"
    await sweep(stored, stored.ttl_s + 1)
    assert uploads(folder) == []
    await stored.enqueue(edit_of("job_2"))
    await stored_leases.finish(await take(stored_leases), JobState.SUCCEEDED)
    await sweep(stored, 50)
    assert uploads(folder) == [IMAGE], "a failover that loses the end runs the job again"
    await sweep(stored, 61)
    assert uploads(folder) == []
    # One that was to be deleted before its job was accepted is not relied on.
    name = await source_images.store(stored, "job_3", IMAGE)
    await stored.redis.zadd(stored.keys.discarded_zset, {name: 1})
    with pytest.raises(StorageUnavailable):
        await stored._enqueue(edit_of("job_3"), source_object=name)
    unstored = folder.rename(folder.with_name("moved"))
    with pytest.raises(StorageUnavailable):
        await stored.enqueue(edit_of("job_4"))
    unstored.rename(folder)
    assert not await stored.redis.exists(stored.keys.job_hash("job_4"))


@anyio
@pytest.mark.parametrize("in_folder", [True, False])
async def test_a_batch_keeps_its_files_and_waits_for_the_folder(
    queue: JobQueue, stored: JobQueue, folder: Path, *, in_folder: bool
) -> None:
    """The images that lines name are deleted while the batch waits: their turn comes later."""
    queue = stored if in_folder else queue
    files = FileStore(queue, TTL_S)
    store, fleet = BatchStore(queue, files, TTL_S), Fleet(Registry(queue.redis, queue.keys.namespace))
    runner = BatchRunner(queue, fleet, files, store, TTL_S, GatewayMetrics().bugs)
    images = [(await files.add(owner, "a.png", "vision", png(gradient()))).id for owner in ("ann", "bob")]
    bodies = [{"prompt": "a cat", "images": [{"file_id": each}]} for each in images]
    lines = [json.dumps({"custom_id": str(i), "url": EDITS_URL, "body": body}) for i, body in enumerate(bodies)]
    file = await files.add("ann", "in", "batch", "\n".join(lines).encode())
    batch = await store.create("ann", file.id, None, "", EDITS_URL)
    if in_folder:
        folder.rename(folder.with_name("moved"))
        await runner.advance(batch.id)
        assert (await store.get("ann", batch.id)).status == "validating"
        folder.with_name("moved").rename(folder)
    await runner.advance(batch.id)
    for name, owner in ((images[0], "ann"), (images[1], "bob"), (file.id, "ann")):
        await files.delete(owner, name)
    if in_folder:
        await sweep(queue)
        folder.rename(folder.with_name("moved"))
        await runner.advance(batch.id)
        assert (await store.get("ann", batch.id)).cursor == 0
        folder.with_name("moved").rename(folder)
    await runner.advance(batch.id)
    found = await store.get("ann", batch.id)
    assert (found.status, found.cursor, found.rejected) == ("in_progress", 2, 1), "bob's image is not ann's"
    edit, other, models = EditLine.of(bodies[0]), replace(found, id="batch_2"), await fleet.models()
    with pytest.raises(UnknownFile):
        await edit.load("j", other, files, models, "fake", NO_MAPPING)
    await queue.cancel(f"{batch.id}_0")
    await runner.advance(batch.id)
    assert (await store.get("ann", batch.id)).status == "completed"
    for each in images:
        assert not await queue.redis.exists(queue.keys.file_bytes(each), queue.keys.file_object_hash(each))
    if in_folder:
        await sweep(queue, 61)
        assert uploads(folder) == ["\n".join(lines).encode()], "the results need the lines"


@anyio
async def test_images_of_a_long_job_expire_by_its_end(
    stored_leases: LeaseQueue, stored: JobQueue, folder: Path
) -> None:
    """Their time began when they were stored: those of a job of hours were swept while its record named them."""
    await stored.enqueue(Submission("job_1", job_input(n=2), "job"))
    lease = await take(stored_leases)
    job, writer = HeldJob(lease, 0.0, deque()), ResultWriter(stored_leases, Tally(), "w1", 1.0)
    now, assured = await redis_time(stored_leases.redis), stored_leases.store
    assert assured is not None
    for index, stored_at in ((0, now - 2 * TTL_S), (1, now)):
        ends = stored_at + stored_leases.result_ttl_s(lease)
        name = object_name(assured.namespace, lease.job_id, lease.token, index, "png", ends)
        await assured.put(name, b"x")
        job.outputs[index] = Output(index, 7, 32, 32, "png", 1, "sha", lease.token, name)
    before = dict(job.outputs)
    await writer.extend(job)
    assert job.outputs[1] == before[1] and job.outputs[0].location != before[0].location
    assert (expires_at(job.outputs[0].location) or 0) > now + stored_leases.result_ttl_s(lease)
    await sweep(stored, TTL_S)
    assert await assured.get(job.outputs[0].location) == b"x" and await assured.get(before[0].location) is None
    # In Redis the finish itself does it.
    lease = replace(lease, input=replace(lease.input, n=1))
    key = stored_leases.keys.result_bytes("job_1", lease.token, 0)
    await stored_leases.redis.set(key, b"x", ex=60)
    await stored_leases.finish(lease, JobState.SUCCEEDED, outputs=[Output(0, 7, 32, 32, "png", 1, "sha", lease.token)])
    assert await stored_leases.redis.ttl(key) > stored_leases.ttl_s


@pytest.mark.slow
def test_an_outage_under_load_loses_no_edit_and_no_batch(
    new_service: Callable[..., Service], folder: Path, hold: Hold
) -> None:
    service = new_service(workers=2, results=folder.as_uri(), max_attempts=2, lease_s=8.0)
    with httpx.Client(base_url=service.settings.base_url) as http:

        def edit() -> httpx.Response:
            return http.post("/v1/images/edits", data=form, files={"image": png(gradient()), "mask": png(mask())})

        def upload(name: str, purpose: str, data: bytes) -> httpx.Response:
            return http.post("/v1/files", files={"file": (name, data)}, data={"purpose": purpose})

        form = {"prompt": "a cat", "seed": "4"}
        first = edit().json()["data"][0]["b64_json"]
        names = [upload(name, "vision", png(made)).json()["id"] for name, made in (("a", gradient()), ("b", mask()))]
        body = {"prompt": "a cat", "seed": 4, "image": names[0], "mask": names[1]}
        lines = [json.dumps({"custom_id": str(i), "url": EDITS_URL, "body": body}) for i in range(10)]
        held = body | {"prompt": hold.prompt()}
        lines += [json.dumps({"custom_id": str(i), "url": EDITS_URL, "body": held}) for i in range(10, 40)]
        file = upload("in", "batch", "\n".join(lines).encode()).json()["id"]
        made = {"input_file_id": file, "endpoint": EDITS_URL, "completion_window": "24h"}
        batch = http.post("/v1/batches", json=made).json()["id"]

        def status() -> dict[str, Any]:
            return dict(http.get(f"/v1/batches/{batch}").json())

        # The others are held, and their sources are written: a write in this moment would make the folder anew.
        until(lambda: status()["request_counts"]["completed"] == 10, what="the lines that are not held")
        until(lambda: len(http.get("/v1/jobs?limit=100").json()["data"]) == 41, what="all lines to be queued")
        moved = folder.rename(folder.with_name("moved"))
        hold.release()
        until(lambda: http.get("/health/ready").status_code == 503, what="readiness")
        for answer in (upload("c", "vision", b"x"), http.get(f"/v1/files/{file}/content")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable"), answer.text
        assert http.get(f"/v1/files/file-out-{batch}/content").status_code == 503
        assert edit().status_code == 503
        assert not http.get("/v1/jobs?status=failed").json()["data"]
        moved.rename(folder)
        until(lambda: status()["status"] == "completed", what="the batch")
        assert status()["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
        output = [json.loads(line) for line in http.get(f"/v1/files/file-out-{batch}/content").text.splitlines()]
        assert len(output) == 40
        until(lambda: http.get("/health/ready").status_code == 200, what="workers that take jobs again")
        form["prompt"] = hold.prompt()
        again = edit()
        assert again.status_code == 200, again.text
        expected = {first, again.json()["data"][0]["b64_json"]}
        assert {line["response"]["body"]["data"][0]["b64_json"] for line in output} == expected
        jobs = http.get("/v1/jobs?limit=100").json()["data"]
        assert {job["attempt"] for job in jobs} == {1}
