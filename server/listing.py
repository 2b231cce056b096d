"""Pages of jobs, newest first: an index per owner, so that the cost is that of a page and not of the backlog."""

from dataclasses import dataclass

from server.errors import InvalidRequest
from server.jobs import JobRecord
from server.queue import Queue

#: With a filter, most records looked at for one answer; the cursor goes on from there.
MOST_LOOKED_AT = 1000


@dataclass(frozen=True, slots=True)
class Page:
    records: list[JobRecord]
    last_id: str | None  #: where the next page begins: after this one
    has_more: bool


async def page(queue: Queue, owner: str, *, limit: int, after: str | None, status: str | None) -> Page:
    """Up to `limit` jobs accepted before the one called `after`, all or those in one state.

    Raises:
        InvalidRequest: `after` is not the id of a job in the list.
    """
    index, below = queue.keys.list_zset(owner), "+inf"
    if after is not None:
        sequence = await queue.redis.zscore(index, after)
        if sequence is None:
            raise InvalidRequest(f"'after' {after[:100]!r} is not the id of a job in this list.", param="after")
        below = f"({sequence:.0f}"
    found: list[JobRecord] = []
    last_id, looked_at = after, 0
    while len(found) < limit and looked_at < MOST_LOOKED_AT:
        batch = await queue.redis.zrevrangebyscore(index, below, "-inf", 0, limit + 1, withscores=True)
        for job_id, sequence in batch[:limit]:
            last_id, below, looked_at = job_id, f"({sequence:.0f}", looked_at + 1
            raw = None
            if len(found) < limit:
                raw = await queue.redis.hgetall(queue.keys.job_hash(job_id))
            if raw and status in (None, raw["state"]):
                found.append(JobRecord.from_fields(raw))
                if len(found) == limit:
                    break
        if len(batch) <= limit and len(found) < limit:
            return Page(found, last_id, False)
    more = await queue.redis.zrevrangebyscore(index, below, "-inf", 0, 1)
    return Page(found, last_id, bool(more))
