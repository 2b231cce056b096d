"""Records of another type in Redis: left out of their list, logged and counted."""

import logging
from collections import Counter

import pytest

from server.errors import UnreadableRecord
from server.gateway.batches.files import FileStore
from server.gateway.batches.store import BatchStore
from server.gateway.metrics import GatewayMetrics, render
from server.gateway.pagination import page
from server.jobs import JobState
from server.queue.job_queue import JobQueue
from server.queue.statistics import QueueCounts
from server.records import skipped
from tests.server.harness import accept

pytestmark = pytest.mark.anyio


async def test_a_page_leaves_out_a_record_of_another_type(queue: JobQueue, caplog: pytest.LogCaptureFixture) -> None:
    """It was a 503 for the whole list, until the key was deleted by hand."""
    files = FileStore(queue, 60)
    batches = BatchStore(queue, files, 60)
    file = await files.add("", "x.jsonl", "batch", b"x")
    batch = await batches.create("", file.id, None, "")
    await accept(queue, "good")
    before, keys, redis = Counter(skipped), queue.keys, queue.redis
    for key, index in (
        (keys.job_hash, keys.jobs_zset),
        (keys.file_hash, keys.file_list),
        (keys.batch_hash, keys.batch_list),
    ):
        await redis.rpush(key("odd"), "x")
        await redis.zadd(index(""), {"odd": 1e12})
    with caplog.at_level(logging.WARNING):
        jobs = await page(queue, "", limit=10, after=None, status=None)
        assert [record.id for record in jobs.records] == ["good"]
        assert [each.id for each in (await files.list("", 10, None))[0]] == [file.id]
        assert [each.id for each in (await batches.list("", 10, None))[0]] == [batch.id]
    assert Counter(skipped) - before == {"job": 1, "file": 1, "batch": 1}
    assert sum("cannot read" in record.getMessage() for record in caplog.records) == 3
    for read in (queue.get("odd"), files.get("", "odd"), batches.get("", "odd")):
        with pytest.raises(UnreadableRecord):
            await read


def test_skipped_records_are_counted_from_zero() -> None:
    text = render(GatewayMetrics(), QueueCounts({}, {s.value: 0 for s in JobState}), [], {}, {}, 0.0).decode()
    for kind in ("job", "file", "batch", "heartbeat", "model"):
        assert f'fluid_unreadable_records_total{{record="{kind}"}}' in text
