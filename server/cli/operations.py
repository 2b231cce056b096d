"""What operators run beside a service: `fluid doctor`, `fluid dlq` and `fluid reload`."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace

from server.cli import doctor
from server.errors import ConfigError, NotWell, ReloadRefused
from server.launcher import embedded_valkey
from server.queue.dead_letters import DeadLetter, DeadLetters
from server.queue.job_queue import Queue
from server.queue.redis_client import PATIENT_TIMEOUT_S, connect
from server.queue.registry import Registry
from server.settings import Settings

RELOAD_POLL_S = 0.2


@asynccontextmanager
async def service(settings: Settings) -> AsyncIterator[tuple[Settings, Queue, Registry]]:
    """The running one: at FLUID_REDIS_URL, else the embedded Valkey of FLUID_DATA_DIR."""
    url = settings.redis_url or embedded_valkey.running_url(settings.data_path)
    if url is None:
        raise ConfigError(
            f"Nothing runs in {settings.data_path}. Start `fluid serve`, or set FLUID_REDIS_URL to a running queue."
        )
    own = replace(settings, redis_url=url)
    async with connect(url, PATIENT_TIMEOUT_S) as redis:
        yield own, Queue(redis, own), Registry(redis, own.namespace)


async def examine(settings: Settings) -> None:
    async with service(settings) as (own, queue, registry):
        findings = [finding async for finding in doctor.examine(own, queue, registry)]
    for finding in findings:
        print(f"{finding.level:<5} {finding.what}")
        if finding.remedy:
            print(f"      -> {finding.remedy}")
    failed = sum(finding.level is doctor.Level.FAIL for finding in findings)
    if failed:
        raise NotWell(f"{failed} of {len(findings)} findings need somebody to act.")


async def dead_letters(settings: Settings, action: str, job_ids: list[str]) -> None:
    """`list` takes no ids; `all` stands for every letter."""
    async with service(settings) as (_, queue, _):
        letters = DeadLetters(queue)
        if action == "list":
            async for letter in letters.all():
                print(_line(letter))
            return
        if job_ids == ["all"]:
            chosen = [letter async for letter in letters.all()]
        else:
            chosen = [await letters.find(job_id) for job_id in job_ids]
        for letter in chosen:
            if action == "show":
                print(json.dumps(asdict(letter), indent=2))
            elif action == "replay":
                print(f"{letter.job_id} -> {await letters.replay(letter)}")
            else:
                await letters.drop(letter)
                print(f"{letter.job_id} dropped")


def _line(letter: DeadLetter) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.died_at))
    reason = f"{letter.error.code}: {letter.error.message}"
    return f"{letter.job_id}  {when}  {letter.attempt} tries  {reason[:80]}  {letter.input.prompt[:40]!r}"


async def reload(settings: Settings, checkpoint: str, timeout_s: float) -> None:
    """Ask every worker that was configured for FLUID_CHECKPOINT, and wait until all have done it."""
    async with service(settings) as (own, _, registry):
        before = {w.id for w in await registry.workers()}
        if not before:
            raise ConfigError("No live worker. Start one: `fluid serve --checkpoint ...` loads it right away.")
        request = await registry.request_reload(own.checkpoint, checkpoint)
        deadline = time.monotonic() + timeout_s
        shown: dict[str, str] = {}
        while True:
            workers = [w for w in await registry.workers() if w.id in before]
            for w in workers:
                done = w.reloads >= request.number
                state = w.note or (f"draws with {w.checkpoint[:12]}" if done else "loading beside its work")
                if shown.get(w.id) != state:
                    print(f"{w.id}: {state}", file=sys.stderr)
                    shown[w.id] = state
            if all(w.reloads >= request.number for w in workers):
                break
            if time.monotonic() > deadline:
                raise ReloadRefused(f"Not all workers have {checkpoint} after {timeout_s:g} s; they go on trying.")
            await asyncio.sleep(RELOAD_POLL_S)
    failed = [w.note for w in workers if w.note]
    if failed:
        raise ReloadRefused(f"{len(failed)} of {len(workers)} workers go on with what they had: {failed[0]}")
