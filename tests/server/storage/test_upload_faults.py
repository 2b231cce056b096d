"""Uploads where something goes wrong: refusals, writes that are late or cut short, slow shares, wrong workers."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from server.batch_format import EDITS_URL
from server.errors import QueueFull, RateLimited, StorageUnavailable, UnknownFile
from server.gateway.batches.files import UNREADY_S, FileStore
from server.gateway.batches.runner import BatchRunner
from server.gateway.batches.store import BatchStore
from server.gateway.fleet import Fleet
from server.gateway.metrics import GatewayMetrics
from server.gateway.queue_trouble import _delete_unnamed, _sweep
from server.jobs import Edit, JobError, JobState
from server.queue.job_queue import JobQueue, Submission
from server.queue.lease_queue import LeaseQueue
from server.queue.redis_client import redis_time
from server.queue.registry import Registry
from server.queue.statistics import usage_by_owner
from server.storage.object_names import object_name
from server.storage.object_store import IN_FOLDER_AT_ONCE, ObjectStore
from tests.server.gateway.routes.test_edits import gradient, png
from tests.server.harness import accept, job_input, take
from tests.server.storage.test_uploads import IMAGE, SHA256, sweep, uploads

pytestmark = pytest.mark.anyio
TTL_S = 3600


def edit_of(job_id: str, **changes: object) -> Submission:
    return Submission(job_id, job_input(edit=Edit(job_id, SHA256, feather=1), **changes), "job", source=IMAGE)


def counted(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """The calls of these methods of every store from now on."""
    calls: list[str] = []

    def count(name: str) -> None:
        method = getattr(ObjectStore, name)

        async def call(self: ObjectStore, *args: object) -> object:
            calls.append(name)
            return await method(self, *args)

        monkeypatch.setattr(ObjectStore, name, call)

    for name in names:
        count(name)
    return calls


def runner_of(queue: JobQueue) -> tuple[FileStore, BatchStore, BatchRunner]:
    files = FileStore(queue, TTL_S)
    store, fleet = BatchStore(queue, files, TTL_S), Fleet(Registry(queue.redis, queue.keys.namespace))
    return files, store, BatchRunner(queue, fleet, files, store, TTL_S, GatewayMetrics().bugs)


async def edits_of_one_file(files: FileStore, count: int) -> tuple[str, str]:
    """An image, and a file of lines that name it."""
    image = (await files.add("ann", "a.png", "vision", png(gradient()))).id
    body = {"prompt": "a cat", "image": image}
    lines = [json.dumps({"custom_id": str(i), "url": EDITS_URL, "body": body}) for i in range(count)]
    return image, (await files.add("ann", "in", "batch", "\n".join(lines).encode())).id


@pytest.mark.parametrize("in_folder", [True, False])
async def test_a_refused_or_repeated_edit_stores_no_image(
    queue: JobQueue, stored: JobQueue, folder: Path, monkeypatch: pytest.MonkeyPatch, *, in_folder: bool
) -> None:
    """The image was written first, and deleted again after the refusal of a full queue or of a key's limit."""
    queue = stored if in_folder else queue
    puts = counted(monkeypatch, "put")
    queue.limits["max_queue"] = 1
    await queue.enqueue(edit_of("job_1"))
    await queue.enqueue(edit_of("job_1"))
    with pytest.raises(QueueFull):
        await queue.enqueue(edit_of("job_2"))
    queue.limits["max_queue"] = 9
    queue.memory_limits["max_key_bytes"] = len(IMAGE)
    with pytest.raises(RateLimited):
        await queue.enqueue(edit_of("job_3", owner="ann"))
    assert puts == ["put"] * in_folder and uploads(folder) == [IMAGE] * in_folder
    for job_id in ("job_2", "job_3"):
        assert not await queue.redis.exists(queue.keys.job_hash(job_id), queue.keys.input_bytes(job_id))


async def test_edits_of_a_batch_that_wait_for_room_touch_no_store(
    stored: JobQueue, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step of a batch that a limit held up, four a second, read, decoded and wrote the image of its next line."""
    files, store, runner = runner_of(stored)
    _, file = await edits_of_one_file(files, 3)
    batch = await store.create("ann", file, None, "", EDITS_URL)
    await runner.advance(batch.id)
    stored.limits["max_batch_lines"] = 1
    calls = counted(monkeypatch, "put", "get")
    for _ in range(5):
        await runner.advance(batch.id)
    assert calls == ["get", "put"] and (await store.get("ann", batch.id)).cursor == 1
    await stored.cancel(f"{batch.id}_0")
    await runner.advance(batch.id)
    assert calls == ["get", "put"] * 2 and (await store.get("ann", batch.id)).cursor == 2
    # The size of an image is known once it is decoded: where memory is used up, the next step is seconds away.
    stored.limits["max_batch_lines"] = 9
    stored.memory_limits["max_key_bytes"] = 1
    due = stored.keys.batches_zset
    await stored.redis.zadd(due, {batch.id: await redis_time(stored.redis) + 15})  # claimed
    await runner.advance(batch.id)
    due_at = await stored.redis.zscore(due, batch.id)
    assert len(calls) == 4 and due_at and 3 < due_at - await redis_time(stored.redis) < 6
    # A cancel makes it due at once, also while it is in the middle of a step.
    await stored.redis.zadd(due, {batch.id: 1})
    await runner.advance(batch.id)
    assert await stored.redis.zscore(due, batch.id) == 1


async def test_uploads_that_no_record_names_are_deleted_once_they_are_old(stored: JobQueue, folder: Path) -> None:
    """A write that timed out, was deleted and then went on left its object for ever; so did one whose process was
    killed, under a name that the library neither lists nor deletes."""
    assert stored.store is not None
    files = FileStore(stored, TTL_S)
    await files.add("ann", "in", "batch", b"named by a file")
    await stored.enqueue(edit_of("job_1"))
    await stored.enqueue(edit_of("job_2"))
    await stored.cancel("job_2")  # its image is still to be deleted
    here = next(folder.glob("*=uploads"))
    named = sorted(here.iterdir())
    lost = [here / "file-0123-00", here / "job_1-11", here / f"{named[0].name}#1", here / "odd"]
    young = here / "job_9-00"
    for path in (*lost, young):
        path.write_bytes(b"x")
    for path in (*lost, *named):
        os.utime(path, (1e9, 1e9))
    await stored.redis.set(stored.keys.job_hash("odd"), "of another type")
    damaged = here / "odd-00"
    damaged.write_bytes(b"x")
    os.utime(damaged, (1e9, 1e9))
    assert await _delete_unnamed(stored, stored.store, stored.store.old_uploads(time.time() - 60))
    assert sorted(here.iterdir()) == sorted([*named, young, damaged])
    # The same in an hour of images that has passed: it was listed again and again.
    image = folder / object_name(stored.store.namespace, "job_1", 1, 0, "png", 1e9)
    image.parent.mkdir(parents=True)
    image.with_name(image.name + "#7").write_bytes(b"x")
    assert await stored.store.delete_hour(str(image.parent.parent.relative_to(folder))) == 0
    assert not image.parent.parent.exists()


@pytest.mark.parametrize("in_folder", [True, False])
async def test_a_file_without_content_is_none_and_vanishes(
    queue: JobQueue, stored: JobQueue, folder: Path, monkeypatch: pytest.MonkeyPatch, *, in_folder: bool
) -> None:
    """A gateway that was killed between record and content left a file that was listed for a day, and was a 404."""

    class Killed(BaseException):
        pass

    async def die(*args: object, **options: object) -> None:
        raise Killed

    queue = stored if in_folder else queue
    files = FileStore(queue, TTL_S)
    good = await files.add("ann", "good", "batch", b"x" * 2000)
    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "put", die)
        patched.setattr(files._redis, "set", die)
        with pytest.raises(Killed):
            await files.add("ann", "bad", "batch", b"x" * 1000)
    [bad] = set(await queue.redis.zrange(queue.keys.file_list("ann"), 0, -1)) - {good.id}
    assert await files.list("ann", 10, None) == ([good], False)
    with pytest.raises(UnknownFile):
        await files.get("ann", bad)
    for key, name in ((queue.keys.file_hash, bad), (queue.keys.file_object_hash, bad)):
        assert await queue.redis.ttl(key(name)) <= UNREADY_S
    for key in (queue.keys.file_hash, queue.keys.file_object_hash if in_folder else queue.keys.file_bytes):
        assert UNREADY_S < await queue.redis.ttl(key(good.id)) <= TTL_S + 1
    # What it counted, and its place in the list, are free as soon as its time is over.
    for name, at in await queue.redis.zrange(queue.keys.stored_zset, 0, -1, withscores=True):
        await queue.redis.zadd(queue.keys.stored_zset, {name: at - UNREADY_S})
    await queue.sweep()
    assert await queue.redis.zrange(queue.keys.file_list("ann"), 0, -1) == [good.id]
    assert [each.stored_bytes for each in await usage_by_owner(queue)] == [2000 + 1024]


async def test_the_object_of_a_failed_upload_is_deleted_a_minute_later(
    stored: JobQueue, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its deletion was due at once, and a write that was only late came after it."""

    async def late(self: ObjectStore, name: str, data: bytes) -> None:
        raise StorageUnavailable("does not answer within 10 s")

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "put", late)
        with pytest.raises(StorageUnavailable):
            await FileStore(stored, TTL_S).add("ann", "a", "batch", b"x")
    [(name, at)] = await stored.redis.zrange(stored.keys.discarded_zset, 0, -1, withscores=True)
    assert at > await redis_time(stored.redis) + 50 and not await stored.redis.exists(stored.keys.stored_bytes_hash)
    await sweep(stored)
    assert stored.store is not None
    await stored.store.put(name, b"x")
    await sweep(stored, 61)
    assert uploads(folder) == []


async def test_uploads_that_cannot_be_deleted_keep_no_image(
    stored: JobQueue, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand uploads were deleted by one call, whose time was over on a slow share, each time before the images."""
    assert stored.store is not None
    now, sizes = await redis_time(stored.redis), list[int]()

    async def refuse(self: ObjectStore, names: list[str]) -> None:
        sizes.append(len(names))
        raise StorageUnavailable("does not answer within 10 s")

    await stored.redis.zadd(stored.keys.discarded_zset, {f"n=uploads/file-{i}-0": 0 for i in range(120)})
    image = object_name(stored.store.namespace, "job_1", 1, 0, "png", now - 7200)
    await stored.store.put(image, b"x")
    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "delete_many", refuse)
        with pytest.raises(StorageUnavailable):
            await _sweep(stored, stored.store, now)
    assert sizes == [IN_FOLDER_AT_ONCE] and not await stored.store.exists(image)
    # A sweep that takes long leaves the rest to the next one.
    monkeypatch.setattr("server.gateway.queue_trouble.SWEEP_S", 0.0)
    await _sweep(stored, stored.store, now)
    assert await stored.redis.zcard(stored.keys.discarded_zset) == 120 - IN_FOLDER_AT_ONCE


async def test_files_of_a_batch_are_released_after_its_end_and_not_before(queue: JobQueue) -> None:
    """A gateway that stalled while it validated kept files for two days that the batch, which had been canceled, never
    released; its late failure released those of a batch that another gateway had begun."""
    files, store, runner = runner_of(queue)
    image, file = await edits_of_one_file(files, 2)
    readers = queue.keys.file_readers_zset(image)
    stale = await store.create("ann", file, None, "", EDITS_URL)
    await runner.advance(stale.id)
    assert await queue.redis.zrange(readers, 0, -1) == [stale.id]
    await runner._fail(stale, "late", "late", None)
    assert (await store.get("ann", stale.id)).status == "in_progress"
    await queue.run("batch_files", {"id": stale.id, "files": [image]})
    assert await queue.redis.zrange(readers, 0, -1) == [stale.id]
    # The gateway that ended it died before it had released all: another one's turn does.
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(BatchStore, "forget", _nothing)
        await store.transition(stale, "cancelled", expected=("in_progress",))
    assert await queue.redis.zscore(queue.keys.batches_zset, stale.id) is not None
    await runner.advance(stale.id)
    assert not await queue.redis.exists(readers, queue.keys.batch_files_zset(stale.id))
    assert await queue.redis.zscore(queue.keys.batches_zset, stale.id) is None
    await store.keep_files(stale, [image])
    assert not await queue.redis.exists(readers, queue.keys.batch_files_zset(stale.id))


async def _nothing(*args: object) -> None:
    pass


async def test_source_images_count_towards_their_key_wherever_they_lie(
    stored: JobQueue, stored_leases: LeaseQueue
) -> None:
    """In a store they counted nothing: a key could fill it with images of waiting edits."""

    async def used() -> tuple[int, int]:
        total = await stored.redis.hget(stored.keys.counters_hash, "stored_bytes")
        return sum([each.stored_bytes for each in await usage_by_owner(stored)]), int(total or 0)

    await accept(stored, "job_0", owner="ann", edit=Edit("job_x", SHA256, feather=1))
    record = (await used())[1]
    for job_id in ("job_1", "job_2", "job_3"):
        await stored.enqueue(edit_of(job_id, owner="ann"))
    assert await used() == (4 * record + 3 * len(IMAGE), 4 * record)
    await stored.cancel("job_0")
    await stored.cancel("job_1")
    ended = [await take(stored_leases) for _ in range(2)]
    await stored_leases.finish(ended[0], JobState.SUCCEEDED)
    assert await used() == (4 * record + len(IMAGE), 4 * record)
    await stored_leases.finish(ended[1], JobState.FAILED, error=JobError("x", "y"))
    assert await used() == (4 * record + len(IMAGE), 4 * record), "a replay needs it, and it is kept"
    stored.memory_limits["max_key_bytes"] = 5 * record + 2 * len(IMAGE) - 1
    with pytest.raises(RateLimited, match="FLUID_MAX_KEY_MIB"):
        await stored.enqueue(edit_of("job_4", owner="ann"))
    for listed in (stored.keys.stored_zset, stored.keys.ended_zset):
        for name in await stored.redis.zrange(listed, 0, -1):
            await stored.redis.zadd(listed, {name: 1})
    stored.memory_limits["max_key_bytes"] = 0
    await accept(stored, "job_5", owner="ann", edit=Edit("job_x", SHA256, feather=1))
    await stored.sweep()
    assert await used() == (record, record)
