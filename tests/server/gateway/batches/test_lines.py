"""Lines of a batch: each counts once whoever works on it, and none is left behind when the batch is canceled."""

from __future__ import annotations

import json
import time

import pytest

from server.batch_format import Line, parse_line
from server.errors import InvalidRequest, JobCanceled, UnknownJob, UnreadableRecord
from server.gateway.batches.files import FileStore
from server.gateway.batches.record import Batch
from server.gateway.batches.runner import PAUSE_S, BatchRunner
from server.gateway.batches.store import BatchStore
from server.jobs import JobState
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from tests.server.harness import take

LINES = 600  # several reads of lines, and more than may be unfinished
REFUSED = InvalidRequest("no", param="prompt")


async def started(queue: JobQueue, store: BatchStore, runner: BatchRunner) -> Batch:
    """A batch of LINES lines whose first has become a job, and no other yet."""
    texts = [json.dumps({"custom_id": f"line-{i}", "body": {"prompt": "a cat"}}) for i in range(LINES)]
    file = await FileStore(queue, 3600).add("", "in.jsonl", "batch", "\n".join(texts).encode())
    batch = await store.create("", file.id, None, "")
    await runner.advance(batch.id)
    batch = await store.get("", batch.id)
    line = (await store.lines(batch, 0, 1))[0]
    await runner._submit(batch, 0, parse_line(line))
    assert await store.pass_line(batch, 0)
    return batch


async def reject_the_others(store: BatchStore, batch: Batch) -> None:
    for number in range(1, LINES):
        await store.pass_line(batch, number, REFUSED)


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["canceled", "expired"])
async def test_a_line_far_behind_the_cursor_is_canceled(
    queue: JobQueue, store: BatchStore, runner: BatchRunner, how: str
) -> None:
    """Only the last 256 lines were: with an earlier one that no worker served, the batch stayed "cancelling", or ran on
    after its 24 hours, and was walked through four times a second."""
    batch = await started(queue, store, runner)
    await reject_the_others(store, batch)
    if how == "canceled":
        await store.cancel("", batch.id)
    else:
        await queue.redis.hset(queue.keys.batch_hash(batch.id), "expires_at", time.time() - 1)
    await runner.advance(batch.id)
    assert (await queue.get(batch.job_id(0))).state is JobState.CANCELED
    batch = await store.get("", batch.id)
    assert batch.status == {"canceled": "cancelled", "expired": "expired"}[how]
    assert batch.to_openai()["request_counts"] == {"total": LINES, "completed": 0, "failed": LINES}


@pytest.mark.anyio
async def test_a_canceled_batch_waits_for_a_line_that_runs(
    queue: JobQueue, leases: LeaseQueue, store: BatchStore, runner: BatchRunner
) -> None:
    """Its worker sees the flag within a step; the batch ends after that, and a later call looks at no line again."""
    batch = await started(queue, store, runner)
    lease = await take(leases)
    await reject_the_others(store, batch)
    await store.cancel("", batch.id)
    for _ in range(2):
        await runner.advance(batch.id)
        batch = await store.get("", batch.id)
        assert (batch.status, batch.settled) == ("cancelling", 0)
    await leases.finish(lease, JobState.CANCELED)
    await runner.advance(batch.id)
    batch = await store.get("", batch.id)
    assert (batch.status, batch.settled) == ("cancelled", LINES)


@pytest.mark.anyio
async def test_a_rejected_line_counts_once(queue: JobQueue, store: BatchStore, runner: BatchRunner) -> None:
    """Its error and its count were two commands: a gateway that died between them left a batch that never ended, and a
    count that was sent again after a lost reply ended one that still ran."""
    batch = await started(queue, store, runner)
    for _ in range(3):
        assert await store.pass_line(batch, 1, REFUSED)
    batch = await store.get("", batch.id)
    assert (batch.cursor, batch.rejected, batch.unfinished) == (2, 1, 1)


@pytest.mark.anyio
async def test_a_gateway_that_was_frozen_moves_no_cursor_back(
    queue: JobQueue, store: BatchStore, runner: BatchRunner
) -> None:
    """It set the cursor to its own line, and the results of a completed batch lost all lines after that one."""
    batch = await started(queue, store, runner)
    await reject_the_others(store, batch)
    assert await store.pass_line(batch, 3)
    assert (await store.get("", batch.id)).cursor == LINES
    await queue.cancel(batch.job_id(0))
    await runner.advance(batch.id)
    batch = await store.get("", batch.id)
    assert (batch.status, batch.cursor, batch.rejected) == ("completed", LINES, LINES - 1)
    assert not await store.pass_line(batch, 0, REFUSED)
    after = await store.get("", batch.id)
    assert (after.cursor, after.rejected) == (LINES, LINES - 1)
    assert len([line async for line in store.results(after, errors=True)]) == LINES


@pytest.mark.anyio
async def test_no_line_follows_a_cancel(queue: JobQueue, store: BatchStore, runner: BatchRunner) -> None:
    """A step in progress went on to submit up to 64 lines of a batch that had been canceled."""
    batch = await started(queue, store, runner)
    await store.cancel("", batch.id)
    await runner._submit_lines(await store.get("", batch.id))
    batch = await store.get("", batch.id)
    assert (batch.cursor, batch.unfinished) == (1, 1)
    await runner.advance(batch.id)
    assert (await store.get("", batch.id)).status == "cancelled"


@pytest.mark.anyio
async def test_a_line_is_not_queued_behind_the_end_of_its_batch(
    queue: JobQueue, store: BatchStore, runner: BatchRunner
) -> None:
    """One gateway was reading the images of a line while another one ended the canceled batch: its job was queued after
    that, nobody canceled it, and it counted beyond the lines."""
    batch = await started(queue, store, runner)
    line = parse_line((await store.lines(batch, 1, 2))[0])
    await store.cancel("", batch.id)
    await runner.advance(batch.id)
    assert (await store.get("", batch.id)).status == "cancelled"
    with pytest.raises(JobCanceled, match="takes no more lines"):
        await runner._submit(batch, 1, line)
    with pytest.raises(UnknownJob):
        await queue.get(batch.job_id(1))


@pytest.mark.anyio
async def test_a_batch_that_waits_reads_one_line(
    queue: JobQueue, store: BatchStore, runner: BatchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read up to 64 of them, 32 MiB, four times a second, to be refused at the first."""
    batch = await store.get("", (await started(queue, store, runner)).id)
    asked: list[tuple[int, int]] = []
    whole = store.lines

    async def lines(batch: Batch, first: int, end: int) -> list[str]:
        asked.append((first, end))
        return await whole(batch, first, end)

    monkeypatch.setattr(runner._store, "lines", lines)
    queue.limits["max_batch_lines"] = 1
    await runner._submit_lines(batch)
    assert asked == [(1, 2)]
    queue.limits["max_batch_lines"] = 1000
    asked.clear()
    await runner._submit_lines(batch)
    assert asked == [(1, 2), (2, 64)] and (await store.get("", batch.id)).cursor == 64


@pytest.mark.anyio
async def test_an_unreadable_record_pauses_a_batch(
    queue: JobQueue, store: BatchStore, runner: BatchRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway of an earlier version tried such a line again four times a second, for as long as the upgrade took."""
    batch = await started(queue, store, runner)
    cursor = (await store.get("", batch.id)).cursor

    async def unreadable(batch: Batch, number: int, line: Line) -> None:
        raise UnreadableRecord("of a later version")

    monkeypatch.setattr(runner, "_submit", unreadable)
    await queue.redis.zadd(queue.keys.batches_zset, {batch.id: time.time() + 3600})
    await runner.advance(batch.id)
    assert (await store.get("", batch.id)).cursor == cursor
    assert await queue.redis.zscore(queue.keys.batches_zset, batch.id) > time.time() + PAUSE_S / 2
