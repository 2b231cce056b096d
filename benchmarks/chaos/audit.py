"""Comparison at the end of a run: read every job from Redis, fetch every image over HTTP, ask the ledger."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx
from redis.exceptions import TimeoutError as RedisTimeoutError

from benchmarks.chaos.ledger import Ledger, Submission, Verdict
from server.cli.doctor import Level, check_counters
from server.errors import UnknownJob
from server.jobs import JobRecord, JobState
from server.queue.job_queue import JobQueue
from server.queue.registry import Registry
from server.queue.statistics import queue_counts

FETCHES = 2  # per image: it must not change between them
CONCURRENT_FETCHES = 16
PATIENCE_S = 60.0  # with a gateway whose Redis does not answer in time, as on a machine with a load of 20


async def get_patiently(http: httpx.AsyncClient, path: str, patience_s: float = PATIENCE_S) -> httpx.Response:
    """Repeat a request that is answered with 503, as every client does: it says that nothing was lost."""
    deadline = time.monotonic() + patience_s
    while (response := await http.get(path)).status_code == 503 and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    return response


async def all_jobs(queue: JobQueue, patience_s: float = 30.0) -> list[JobRecord]:
    """Read all jobs from their keys, not through the API, so that jobs which the API forgot count too.

    A read that times out is repeated: a busy disk keeps Redis waiting for seconds, and what is lost shows all the same.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return await _read_jobs(queue)
        except RedisTimeoutError:
            if time.monotonic() > deadline:
                raise


async def _read_jobs(queue: JobQueue) -> list[JobRecord]:
    found = []
    async for key in queue.redis.scan_iter(queue.keys.job_hash("*"), count=1000):
        try:
            found.append(await queue.get(key.rpartition(":")[2]))
        except UnknownJob:  # it expired after the scan
            continue
    return list({record.id: record for record in found}.values())  # a scan may name a key twice


async def settle(queue: JobQueue, timeout_s: float) -> float:
    """Wait until every job has ended, at most `timeout_s`; return the seconds waited."""
    began = time.monotonic()
    while (waited := time.monotonic() - began) < timeout_s:
        if all(record.state.terminal for record in await all_jobs(queue)):
            break
        await asyncio.sleep(0.2)
    return waited


async def audit(ledger: Ledger, queue: JobQueue, address: Callable[[], str]) -> tuple[Verdict, list[str]]:
    """Return the ledger's verdict, and the inconsistencies among the service's own counters."""
    records = await all_jobs(queue)
    limit = asyncio.Semaphore(CONCURRENT_FETCHES)
    async with httpx.AsyncClient(trust_env=False, base_url=address(), timeout=30) as http:

        async def fetch(entry: Submission, record: JobRecord, index: int) -> None:
            async with limit:
                for _ in range(FETCHES):
                    response = await get_patiently(http, f"/v1/jobs/{record.id}/images/{index}")
                    if response.is_success:
                        entry.observe_image(index, response.content)
                    else:
                        entry.missing.add(index)

        await asyncio.gather(
            *(
                fetch(entry, record, index)
                for record in records
                if record.state is JobState.SUCCEEDED and (entry := ledger.entries.get(record.input.user or ""))
                for index in range(record.input.n)
            )
        )
    model = (await Registry(queue.redis, queue.keys.namespace).models())["fake"]
    inconsistent = [
        finding.text for finding in check_counters(await queue_counts(queue)) if finding.level is not Level.OK
    ]
    return ledger.judge(records, model), inconsistent
