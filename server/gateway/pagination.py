"""Pagination of jobs, newest first, over an index per owner and state: a page costs the same however many jobs there
are in any state."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from redis.exceptions import ResponseError

from server.errors import InvalidRequest, UnreadableRecord
from server.jobs import JobRecord, JobState
from server.queue.job_queue import JobQueue
from server.queue.redis_client import wrong_type
from server.records import readable, skip

T = TypeVar("T")
#: Reads of one page: records may expire, and jobs change their state, between index and record.
MAX_READS = 3

#: Jobs in these states share an index, which spares work at each of their steps. They are as few as rows of workers.
SHARED_INDEX = {JobState.STARTING.value: "running", JobState.PROCESSING.value: "running"}


@dataclass(frozen=True, slots=True)
class Page:
    records: list[JobRecord]
    last_id: str | None  #: cursor of the next page, which begins after this id
    has_more: bool


def ids_after(ids: list[str], after: str | None, what: str) -> list[str]:
    """Return the ids that follow `after`, or all ids; for lists that are short enough to be read whole.

    Raises:
        InvalidRequest: `after` is not in the list.
    """
    if after is None:
        return ids
    if after not in ids:
        raise InvalidRequest(f"'after' {after[:100]!r} is not the id of a {what} in this list.", param="after")
    return ids[ids.index(after) + 1 :]


async def read_listed(
    ids: list[str], read: Callable[[str], Awaitable[T]], *, limit: int, what: str, unknown: type[Exception]
) -> tuple[list[T], bool]:
    """Return the first `limit` records of a list, and whether more follow.

    Left out are those that expired between the reads of the list and of the record, where `read` raises `unknown`, and
    unreadable ones.
    """
    found: list[T] = []
    for each in ids:
        try:
            found.append(await read(each))
        except unknown:
            continue
        except UnreadableRecord as error:
            skip(f"a {what}", error)
        if len(found) > limit:
            break
    return found[:limit], len(found) > limit


async def page(queue: JobQueue, owner: str, *, limit: int, after: str | None, status: str | None) -> Page:
    """Return up to `limit` jobs accepted before the job `after`, in any state or only in `status`.

    Raises:
        InvalidRequest: `after` is not the id of a job in the list.
    """
    every_job, below = queue.keys.jobs_zset(owner), "+inf"
    index = every_job if status is None else queue.keys.state_jobs_zset(owner, SHARED_INDEX.get(status, status))
    if after is not None:
        sequence = await queue.redis.zscore(every_job, after)
        if sequence is None:
            raise InvalidRequest(f"'after' {after[:100]!r} is not the id of a job in this list.", param="after")
        below = f"({sequence:.0f}"
    found: list[JobRecord] = []
    last_id = after
    for _ in range(MAX_READS):
        batch = await queue.redis.zrevrangebyscore(index, below, "-inf", 0, limit + 1, withscores=True)
        for (job_id, sequence), raw in zip(
            batch, await _records(queue, [name for name, _ in batch[:limit]]), strict=False
        ):
            if len(found) == limit:
                return Page(found, last_id, True)
            last_id, below = job_id, f"({sequence:.0f}"
            if raw and status in (None, raw.get("state")):  # a record that has just expired is empty
                found += readable("a job", [raw], JobRecord.from_fields)
        if len(found) == limit or len(batch) <= limit:
            return Page(found, last_id, len(batch) > limit)
    return Page(found, last_id, True)


async def _records(queue: JobQueue, job_ids: list[str]) -> list[dict[str, str]]:
    """The fields of each job; none of one that has expired, or that no version of the service has written."""
    async with queue.redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hgetall(queue.keys.job_hash(job_id))
        answers = await pipe.execute(raise_on_error=False)
    return [_fields(job_id, answer) for job_id, answer in zip(job_ids, answers, strict=True)]


def _fields(job_id: str, answer: Any) -> dict[str, str]:
    if isinstance(answer, ResponseError):
        answer = wrong_type(answer, f"Job {job_id[:100]!r}")
    if isinstance(answer, UnreadableRecord):
        skip("a job", answer)
        return {}
    if isinstance(answer, Exception):
        raise answer
    return cast("dict[str, str]", answer)
