"""One run: clients under load while the primary is lost, its disk too, again and again; then calm, then the audit."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import httpx
from tqdm import trange

from benchmarks.chaos.audit import audit, settle
from benchmarks.chaos.cast import Cast
from benchmarks.chaos.crowd import Crowd
from benchmarks.chaos.ledger import Ledger, Submission
from benchmarks.chaos.primary.sentinels import DOWN_AFTER_MS, ReplicatedNode, Trio
from benchmarks.chaos.report import failures, figures, percentile
from benchmarks.chaos.storm import REQUESTS_PER_S, SETTLE_S, Outcome, scrape, wait_ready
from server import background
from server.launcher.embedded_valkey import EmbeddedValkey
from server.queue.job_queue import JobQueue
from server.queue.redis_client import SOCKET_TIMEOUT_S, connect

#: What is observed this long before a loss may be undone by it: results are not waited for, only requests.
UNSAFE_S = 1.0
RECOVERY_S = 60.0
ASK_EVERY_S = 0.1


class SentinelCast(Cast):
    """The processes with a primary behind Sentinel, and FLUID_REPLICAS."""

    def __init__(self, data_dir: Path, lease_s: float, random: Random, replicas: int, down_after_ms: int) -> None:
        super().__init__(data_dir, lease_s, random)
        self.replicas, self._down_after_ms = replicas, down_after_ms

    def _further_settings(self) -> dict[str, Any]:
        return {"replicas": self.replicas}

    def _start_valkey(self, stack: ExitStack) -> None:
        self.trio = stack.enter_context(Trio(self._data_dir, self._down_after_ms))

    @property
    def url(self) -> str:
        return self.trio.url

    @property
    def valkey(self) -> EmbeddedValkey:
        return self.trio.primary()


async def run(
    times: int, seed: int, lease_s: float, data_dir: Path, replicas: int = 1, down_after_ms: int = DOWN_AFTER_MS
) -> Outcome:
    """Lose the primary `times` times under load, then audit.

    Args:
        replicas: FLUID_REPLICAS, 1 or 2. With 2 nothing is accepted until the lost node is back.
        down_after_ms: after which silence Sentinel takes a primary for dead.
    """
    ledger, random = Ledger(replicated=True), Random(seed)
    accepted_s, image_s = list[float](), list[float]()
    with SentinelCast(data_dir, lease_s, random, replicas, down_after_ms) as cast:
        async with connect(cast.settings.redis_url, SOCKET_TIMEOUT_S) as redis:
            queue = JobQueue(redis, cast.settings)
            crowd, stop = Crowd(cast, ledger, Random(seed + 1), REQUESTS_PER_S), asyncio.Event()
            began = time.monotonic()
            async with asyncio.TaskGroup() as group:  # a failing task ends the run
                keeping = group.create_task(cast.keep_alive())
                try:
                    await wait_ready(cast)
                    clients = group.create_task(crowd.run(stop))
                    for _ in trange(times, desc="primaries", unit="lost"):
                        await asyncio.sleep(random.uniform(1.0, 3.0))
                        await _lose(cast, ledger, random, accepted_s, image_s)
                    stop.set()
                    await clients
                    await wait_ready(cast)
                    while ledger.in_rollback():  # what the audit sees must count
                        await asyncio.sleep(ASK_EVERY_S)
                    settled_s = await settle(queue, SETTLE_S)
                    verdict, inconsistent = await audit(ledger, queue, cast.address)
                    scraped = await scrape(cast)
                finally:
                    await background.cancel_and_wait(keeping)
            unasked = cast.unasked + [node.failure() for node in cast.trio.nodes if node.exited]
    result: dict[str, object] = {"losses": len(accepted_s), "replicas": replicas, "seed": seed, "lease_s": lease_s}
    result |= figures(verdict, inconsistent, [], [], scraped)
    result |= {
        "minutes": round((time.monotonic() - began) / 60, 1),
        "client_errors": crowd.errors,
        "not_replicated": crowd.not_replicated,
        "accepting_again_p50_s": percentile(accepted_s, 50),
        "accepting_again_max_s": percentile(accepted_s, 100),
        "image_again_p50_s": percentile(image_s, 50),
        "image_again_max_s": percentile(image_s, 100),
        "unasked_ends": len(unasked),
        "settled_s": round(settled_s, 1),
    }
    return Outcome(result, failures(verdict, inconsistent, unasked, crowd.bugs), [], verdict.unexpected)


async def _lose(
    cast: SentinelCast, ledger: Ledger, random: Random, accepted_s: list[float], image_s: list[float]
) -> None:
    """Lose the primary, note the seconds until a job is accepted and until its image is there, and replace the node."""
    with ledger.rollback():
        await asyncio.sleep(UNSAFE_S)
        cast.kills["primary"] += 1
        lost = await asyncio.to_thread(cast.trio.lose_primary)
        began = time.monotonic()
        if cast.replicas > 1:
            await _replace(cast, lost)
        job_id = await _insist(cast, ledger, random)
        accepted_s.append(time.monotonic() - began)
        await _wait_for_image(cast, job_id)
        image_s.append(time.monotonic() - began)
        if cast.replicas == 1:
            await _replace(cast, lost)
        await asyncio.to_thread(cast.trio.wait_until_whole)


async def _replace(cast: SentinelCast, lost: ReplicatedNode) -> None:
    await asyncio.to_thread(cast.trio.wait_for_failover, lost)
    await asyncio.to_thread(cast.trio.replace, lost)


async def _insist(cast: SentinelCast, ledger: Ledger, random: Random) -> str:
    """Repeat one request with its Idempotency-Key until it is accepted; return the job's id."""
    body = {"prompt": "an apple", "seed": random.randrange(2**40), "num_inference_steps": 4, "priority": "high"}
    entry = ledger.add(Submission(uuid.UUID(int=random.getrandbits(128)).hex, body))
    async with asyncio.timeout(RECOVERY_S), httpx.AsyncClient(trust_env=False, timeout=RECOVERY_S) as http:
        while True:
            try:
                response = await http.post(
                    f"{cast.address()}/v1/jobs", json=entry.body, headers={"Idempotency-Key": entry.label}
                )
            except httpx.TransportError:
                continue
            if response.is_success:
                job_id: str = response.json()["id"]
                entry.observe_acceptance(job_id)
                return job_id
            await asyncio.sleep(ASK_EVERY_S)


async def _wait_for_image(cast: SentinelCast, job_id: str) -> None:
    async with asyncio.timeout(RECOVERY_S), httpx.AsyncClient(trust_env=False, timeout=RECOVERY_S) as http:
        while True:
            try:
                response = await http.get(f"{cast.address()}/v1/jobs/{job_id}")
            except httpx.TransportError:
                continue
            if response.is_success and response.json()["status"] == "succeeded":
                return
            await asyncio.sleep(ASK_EVERY_S)
