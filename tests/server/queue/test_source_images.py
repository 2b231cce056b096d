"""The lifetime of source images: until the job ends in any state, and no longer."""

import asyncio

import pytest

from server.images.compositing import Source, pack
from server.jobs import Edit, JobError, JobInput, JobState
from server.model_info import ModelInfo
from server.queue import source_images
from server.queue.job_queue import JobQueue, Submission
from server.queue.lease_queue import LeaseQueue
from server.queue.registry import Registry
from server.settings import Settings
from server.worker.engine.fake import FAKE_ENGINE
from server.worker.engine.loader import load_engine
from server.worker.loop import Worker
from tests.server.harness import fluid, job_input, take, until_async

pytestmark = pytest.mark.anyio
IMAGE, SHA256 = pack(bytes(32 * 32 * 3), bytes([255]) * 512 + bytes(512))


def edit_of(job_id: str) -> JobInput:
    return job_input(edit=Edit(job_id, SHA256, feather=1))


async def accepted(queue: JobQueue, job_id: str) -> None:
    await source_images.store(queue, job_id, IMAGE)
    assert 0 < await queue.redis.ttl(queue.keys.input_bytes(job_id)) <= source_images.UNCLAIMED_S
    await queue.enqueue(Submission(job_id, edit_of(job_id), "job", source=IMAGE))
    assert await queue.redis.ttl(queue.keys.input_bytes(job_id)) == -1


async def test_a_repeated_submission_leaves_the_accepted_image(queue: JobQueue, leases: LeaseQueue) -> None:
    """A gateway that stalled while it repeated a batch's step gave the image of a waiting job 60 seconds to live."""
    await accepted(queue, "job_1")
    for _ in range(2):
        await queue.enqueue(Submission("job_1", edit_of("job_1"), "job", source=IMAGE))
        assert await queue.redis.ttl(queue.keys.input_bytes("job_1")) == -1
    await leases.finish(await take(leases), JobState.SUCCEEDED)
    await queue.enqueue(Submission("job_1", edit_of("job_1"), "job", source=IMAGE))
    assert await queue.redis.exists(queue.keys.input_bytes("job_1")) == 0


@pytest.mark.parametrize("end", ["canceled waiting", "succeeded", "failed"])
async def test_the_image_is_deleted_with_the_job(queue: JobQueue, leases: LeaseQueue, end: str) -> None:
    """Leaked images would fill Redis; one deleted too early fails a job that waited long."""
    await accepted(queue, "job_1")
    if end == "canceled waiting":
        await queue.cancel("job_1")
    else:
        lease = await take(leases)
        assert lease.input == edit_of("job_1")
        assert await source_images.load(leases, lease.input) == IMAGE
        await leases.requeue(lease)
        assert await source_images.load(leases, lease.input) == IMAGE
        error = JobError("x", "y") if end == "failed" else None
        await leases.finish(await take(leases), JobState(end), error=error)
    ttl = await queue.redis.ttl(queue.keys.input_bytes("job_1"))
    assert 0 < ttl <= queue.ttl_s if end == "failed" else ttl == -2


async def test_a_dead_letter_is_replayed_with_its_image(
    queue: JobQueue, leases: LeaseQueue, settings: Settings
) -> None:
    """The replay is a new job whose image is stored under the id of the first."""
    await accepted(queue, "job_1")
    await leases.finish(await take(leases), JobState.FAILED, error=JobError("x", "y"))
    replayed = await asyncio.to_thread(fluid, settings, "dlq", "replay", "job_1")
    assert replayed.returncode == 0, replayed.stderr
    lease = await take(leases)
    assert lease.job_id != "job_1"
    assert await source_images.load(leases, lease.input) == IMAGE


async def test_a_job_without_its_image_fails_at_once_with_a_reason(
    queue: JobQueue, leases: LeaseQueue, settings: Settings
) -> None:
    """Further attempts would not find it either, and generating without it would give another image."""
    await accepted(queue, "job_1")
    await source_images.delete(queue, "job_1")
    await accepted(queue, "job_2")
    await queue.redis.set(queue.keys.input_bytes("job_2"), b"junk")
    worker = Worker(settings, leases, Registry(queue.redis, settings.namespace), lambda _: load_engine(settings))
    running = asyncio.create_task(worker.run())

    async def ended() -> bool:
        return all([(await queue.get(job)).state.terminal for job in ("job_1", "job_2")])

    await until_async(ended)
    worker.stop()
    await running
    for job, message in (("job_1", "gone; send the request again"), ("job_2", "")):
        record = await queue.get(job)
        assert (record.state, record.attempt) == (JobState.FAILED, 1)
        assert record.error is not None and message in record.error.message


def test_packed_images_are_validated(settings: Settings) -> None:
    """A corrupt image must not become a corrupt edit, and a decompression bomb must not fill the memory."""
    info = ModelInfo.from_mapping(load_engine(Settings(engine=FAKE_ENGINE)).info())
    source = Source.unpack(IMAGE, edit_of("a"), info)
    assert source.known.kept == bytes(8) + b"\1" * 8
    larger, _ = pack(bytes(32 * 32 * 3), bytes(1 << 24))
    for data, job in ((larger, edit_of("a")), (pack(bytes(9), None)[0], edit_of("a")), (IMAGE, job_input())):
        with pytest.raises(ValueError):
            Source.unpack(data, job, info)
