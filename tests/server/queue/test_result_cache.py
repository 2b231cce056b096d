"""The result cache's transitions in Redis: what is found, by which owner, and until when."""

from dataclasses import replace

import pytest

from server.errors import KeyReused
from server.jobs import JobState, Output
from server.queue.job_queue import JobQueue, Outcome, Submission
from server.queue.lease_queue import LeaseQueue
from server.settings import Settings
from tests.server.harness import job_input, take

pytestmark = pytest.mark.anyio
FILE = b"an image"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, result_cache_s=600)


def submission(name: str, owner: str = "ann", key: str = "", checkpoint: str = "new", body: str = "") -> Submission:
    job = job_input(owner=owner)
    return Submission(name, job, "sync", key, body or name, cache_key="hash", checkpoint=checkpoint)


async def end(leases: LeaseQueue, state: JobState = JobState.SUCCEEDED, checkpoint: str = "new") -> None:
    lease = await take(leases)
    output = Output(0, 7, 32, 32, "png", len(FILE), "sha", lease.token)
    outputs, files = ([output], {0: FILE}) if state is JobState.SUCCEEDED else ([], None)
    assert await leases.finish(lease, state, outputs=outputs, files=files, checkpoint=checkpoint)


async def test_only_an_ended_success_of_the_same_owner_is_found(queue: JobQueue, leases: LeaseQueue) -> None:
    first = await queue.enqueue(submission("job_1"))
    assert first.outcome is Outcome.NEW
    assert await queue.cached(submission("job_2")) is None, "the original is unfinished"
    await end(leases)
    found = await queue.cached(submission("job_2"))
    assert found and (found.job_id, found.outcome) == ("job_1", Outcome.CACHED)
    assert await queue.cached(submission("job_2", owner="bob")) is None
    assert await queue.cached(submission("job_2", owner="")) is None
    queue.limits["max_queue"] = 0
    assert (await queue.enqueue(submission("job_3"))).outcome is Outcome.CACHED, "a hit takes no place in the queue"
    assert await queue.cached(replace(submission("job_4"), cache_key="other")) is None
    await queue.redis.delete(queue.keys.job_hash("job_1"))
    assert await queue.cached(submission("job_2")) is None, "the original's retention is over"


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELED])
async def test_a_job_without_images_is_not_found(queue: JobQueue, leases: LeaseQueue, state: JobState) -> None:
    await queue.enqueue(submission("job_1"))
    await end(leases, state)
    assert await queue.cached(submission("job_2")) is None


async def test_the_weights_that_generated_count(queue: JobQueue, leases: LeaseQueue) -> None:
    """A reload between acceptance and generation must not file the new weights' image under the old ones."""
    await queue.enqueue(submission("job_1", checkpoint="old"))
    await end(leases, checkpoint="new")
    assert await queue.cached(submission("job_2", checkpoint="old")) is None
    assert await queue.cached(submission("job_2", checkpoint="new")) is not None


async def test_an_entry_lives_no_longer_than_its_job(queue: JobQueue, leases: LeaseQueue) -> None:
    await queue.enqueue(submission("job_1"))
    await end(leases)
    entry = queue.keys.result_cache("ann", "hash", "new")
    assert 590 <= await queue.redis.ttl(entry) <= 600
    await queue.redis.hset(queue.keys.job_hash("job_1"), "expires_at", "1")
    assert await queue.cached(submission("job_2")) is None, "about to expire: the images might be gone when it is sent"
    leases.ttl_s = 100
    await queue.enqueue(submission("job_3"))
    await end(leases)
    assert await queue.redis.ttl(entry) <= 100


async def test_an_idempotency_key_keeps_its_meaning(queue: JobQueue, leases: LeaseQueue) -> None:
    """The same key and body give the job that the first call found; another body is refused, though the job is not
    this request's own."""
    await queue.enqueue(submission("job_1", body="one"))
    await end(leases)
    assert (await queue.enqueue(submission("job_2", key="k", body="two"))).job_id == "job_1"
    again = await queue.enqueue(submission("job_3", key="k", body="two"))
    assert (again.job_id, again.outcome) == ("job_1", Outcome.KNOWN)
    with pytest.raises(KeyReused):
        await queue.enqueue(submission("job_4", key="k", body="three"))
