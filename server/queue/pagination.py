"""Pages of jobs, newest first: an index per owner, so that the cost is that of a page and not of the backlog."""

from dataclasses import dataclass
from typing import cast

from server.errors import InvalidRequest
from server.jobs import JobRecord
from server.queue.job_queue import JobQueue

#: With a filter, most records looked at for one answer; the cursor goes on from there.
MOST_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class Page:
    records: list[JobRecord]
    last_id: str | None  #: where the next page begins: after this one
    has_more: bool


def ids_after(ids: list[str], after: str | None, what: str) -> list[str]:
    """Of a list that is short enough to be read whole: those behind the one called `after`, or all.

    Raises:
        InvalidRequest: `after` is not in the list.
    """
    if after is None:
        return ids
    if after not in ids:
        raise InvalidRequest(f"'after' {after[:100]!r} is not the id of a {what} in this list.", param="after")
    return ids[ids.index(after) + 1 :]


async def page(queue: JobQueue, owner: str, *, limit: int, after: str | None, status: str | None) -> Page:
    """Up to `limit` jobs accepted before the one called `after`, all or those in one state.

    Raises:
        InvalidRequest: `after` is not the id of a job in the list.
    """
    index, below = queue.keys.jobs_zset(owner), "+inf"
    if after is not None:
        sequence = await queue.redis.zscore(index, after)
        if sequence is None:
            raise InvalidRequest(f"'after' {after[:100]!r} is not the id of a job in this list.", param="after")
        below = f"({sequence:.0f}"
    found: list[JobRecord] = []
    last_id = after
    for _ in range(MOST_LOOKED_AT // limit):
        batch = await queue.redis.zrevrangebyscore(index, below, "-inf", 0, limit + 1, withscores=True)
        for (job_id, sequence), raw in zip(
            batch, await _records(queue, [name for name, _ in batch[:limit]]), strict=False
        ):
            if len(found) == limit:
                return Page(found, last_id, True)
            last_id, below = job_id, f"({sequence:.0f}"
            if raw and status in (None, raw["state"]):  # a record that has just expired is empty
                found.append(JobRecord.from_fields(raw))
        if len(found) == limit or len(batch) <= limit:
            return Page(found, last_id, len(batch) > limit)
    return Page(found, last_id, True)


async def _records(queue: JobQueue, job_ids: list[str]) -> list[dict[str, str]]:
    async with queue.redis.pipeline(transaction=False) as pipe:
        for job_id in job_ids:
            pipe.hgetall(queue.keys.job_hash(job_id))
        return cast("list[dict[str, str]]", await pipe.execute())
