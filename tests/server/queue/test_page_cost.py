"""What listing jobs costs Redis, counted on a Valkey of its own: other tests' processes would be counted too."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.gateway import pagination
from server.jobs import JobState
from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.job_queue import JobQueue
from server.queue.lease_queue import LeaseQueue
from server.settings import Settings
from tests.server.conftest import fake_settings
from tests.server.harness import accept, take

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    with EmbeddedValkey(tmp_path) as valkey:
        yield fake_settings(valkey)


async def calls(queue: JobQueue) -> int:
    stats = await queue.redis.info("commandstats")
    return sum(each["calls"] for name, each in stats.items() if not name.startswith(("cmdstat_info", "cmdstat_config")))


async def test_a_page_of_one_state_costs_the_page(queue: JobQueue, leases: LeaseQueue) -> None:
    """`?limit=1&status=aborted` cost 2,042 commands, because it looked through a thousand records of other states."""
    for number in range(300):
        await accept(queue, f"job{number}", owner="ann")
    await queue.cancel("job7")
    await queue.cancel("job3")
    before = await calls(queue)
    found = await pagination.page(queue, "ann", limit=1, after=None, status="canceled")
    rest = await pagination.page(queue, "ann", limit=1, after=found.last_id, status="canceled")
    none = await pagination.page(queue, "ann", limit=1, after=None, status="aborted")
    assert await calls(queue) - before <= 12
    assert [record.id for record in found.records + rest.records] == ["job7", "job3"]
    assert (found.has_more, rest.has_more, none.records, none.has_more) == (True, False, [], False)
    lease = await take(leases)
    for state in ("starting", "failed"):
        [record] = (await pagination.page(queue, "ann", limit=5, after=None, status=state)).records
        assert (record.id, record.state) == (lease.job_id, state)
        await leases.finish(lease, JobState.FAILED)
