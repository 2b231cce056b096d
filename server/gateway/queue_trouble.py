"""The true reason why the queue fails, for 503 responses and for the operator's log."""

import asyncio
import logging
import random
import shutil
import time
from collections.abc import AsyncIterator
from functools import partial

from redis.exceptions import ConnectionError, RedisError

from server.background import RepeatedFailure
from server.errors import StorageUnavailable
from server.queue.job_queue import JobQueue
from server.queue.redis_client import explain, find_problems, read_maxmemory, redis_time
from server.settings import Settings
from server.storage.object_names import owner_of
from server.storage.object_store import ObjectStore
from server.storage.reasons import remedy

log = logging.getLogger(__name__)
STORE_CHECK_S = 30.0  #: between two listings of a store that works
SWEEP_S = 60.0  #: at most of one sweep of a store; the next one goes on
UNNAMED_S = 3600.0  #: between two searches for uploads that no record names
CHECK_S = 60.0  #: between two checks of a Redis that answers
SOON_S = 2.0  #: between two checks of one that does not
FULL_DISK_BYTES = 8 << 20  #: less is left where Valkey cannot open its files any more


def reason(settings: Settings, error: RedisError) -> str:
    """Return how the sentence "The queue ..." ends. It names no address, user or password."""
    meaning, _ = explain(error)
    if meaning == "does not answer" and isinstance(error, ConnectionError) and _is_embedded(settings):
        return _embedded_reason(settings)
    return meaning


def _is_embedded(settings: Settings) -> bool:
    """Return whether Redis is the Valkey that `fluid serve` runs with the data folder of the same settings."""
    try:
        address = (settings.data_path / "address").read_text().strip()
    except OSError:
        address = ""
    return settings.redis_url in (f"unix://{settings.data_path / 'valkey.sock'}", address)


def _embedded_reason(settings: Settings) -> str:
    try:
        full = shutil.disk_usage(settings.data_path).free < FULL_DISK_BYTES
    except OSError:
        full = False
    if full:
        return "is down: the disk of its data folder is full"
    return "is down: the embedded Valkey is not running, and the log of `fluid serve` says why"


async def watch_redis(queue: JobQueue) -> None:
    """Log what is wrong with Redis, at the start and whenever it changes: a 2xx may promise more than Redis keeps. Also
    learn how much memory it may use, which is what FLUID_MAX_MIB=0 follows."""
    told: set[str] = set()
    while True:
        try:
            problems = await find_problems(queue.redis, queue.keys.probe, queue.replicated)
            queue.set_maxmemory(await read_maxmemory(queue.redis))
        except RedisError as error:
            meaning, remedy = explain(error)
            found, pause_s = {f"the queue {meaning} ({error}). {remedy}"}, SOON_S
        else:
            found, pause_s = {f"{problem.text}. {problem.remedy}" for problem in problems}, CHECK_S
        for text in sorted(found - told):
            log.warning("Redis: %s", text)
        told = found
        await asyncio.sleep(pause_s)


async def watch_store(queue: JobQueue, longest_s: float) -> None:
    """List the store of finished images: that shows whether it answers, and which hours of objects have expired. Delete
    those, and uploads that nothing needs any more. Any number of gateways may do it.

    Args:
        longest_s: how long a file may be needed; an older upload that no record names is a lost one.
    """
    failure = RepeatedFailure(log)
    due_at, unnamed_at = 0.0, time.monotonic() + random.uniform(0, UNNAMED_S)
    search: AsyncIterator[list[str]] | None = None  # goes on after a round that ended it
    while True:
        if queue.store is not None and (queue.store.trouble or time.monotonic() >= due_at):
            due_at = time.monotonic() + STORE_CHECK_S
            try:
                now = await redis_time(queue.redis)
                await _sweep(queue, queue.store, now)
                if search is None and time.monotonic() >= unnamed_at:
                    search = queue.store.old_uploads(now - longest_s)
                if search is not None and await _delete_unnamed(queue, queue.store, search):
                    search, unnamed_at = None, time.monotonic() + UNNAMED_S
                queue.store.trouble = ""
                failure.over()
            except StorageUnavailable as error:
                search = None
                failure.warn(f"{error.message} {remedy(error.reason)}")
            except RedisError as error:
                search = None
                failure.warn(f"finished images are not swept: {error}")
        await asyncio.sleep(SOON_S * random.uniform(0.75, 1.25))  # so that gateways do not delete the same objects


async def _sweep(queue: JobQueue, store: ObjectStore, now: float) -> None:
    """Delete images and uploads side by side: a share that is slow with, or fails at, one of them must not keep the
    other ones for longer than SWEEP_S."""
    until = time.monotonic() + SWEEP_S
    sweeps = _delete_images(store, now, until), _delete_uploads(queue, store, now, until)
    for ended in await asyncio.gather(*sweeps, return_exceptions=True):
        if ended is not None:
            raise ended


async def _delete_images(store: ObjectStore, now: float, until: float) -> None:
    for hour in await store.expired(now):
        if deleted := await store.delete_hour(hour, until):
            log.info("deleted %d expired images of %s", deleted, hour)


async def _delete_uploads(queue: JobQueue, store: ObjectStore, now: float, until: float) -> None:
    """Delete uploads whose time is over. A name leaves the list after its object, which no other upload ever has."""
    listed = queue.keys.discarded_zset
    while names := await queue.redis.zrangebyscore(listed, "-inf", now, start=0, num=store.at_once):
        await store.delete_many(names)
        await queue.redis.zrem(listed, *names)
        if time.monotonic() >= until:
            return


async def _delete_unnamed(queue: JobQueue, store: ObjectStore, old: AsyncIterator[list[str]]) -> bool:
    """Delete those of some old uploads that no record names, for SWEEP_S at most; return true at the end of them.

    Such are those of writes that timed out and went on, after their deletion; and all of a Redis that lost its data.
    """
    keys, deleted, at_end, until = queue.keys, 0, True, time.monotonic() + SWEEP_S
    async for names in old:
        async with queue.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hget(keys.job_hash(owner_of(name)), "source_object")
                pipe.hget(keys.file_object_hash(owner_of(name)), "name")
                pipe.zscore(keys.discarded_zset, name)
            found = await pipe.execute(raise_on_error=False)
        of_each = zip(names, found[::3], found[1::3], found[2::3], strict=True)
        unnamed = [name for name, *named in of_each if not any(map(partial(_may_name, name), named))]
        await store.remove_uploads(unnamed)
        deleted += len(unnamed)
        if time.monotonic() >= until:
            at_end = False
            break
    if deleted:
        log.info("deleted %d uploads that no record names", deleted)
    return at_end


def _may_name(name: str, found: object) -> bool:
    """True of a record's field with the name, a time at which it is deleted, and an error in place of either."""
    return found is not None and (not isinstance(found, str) or found == name)
