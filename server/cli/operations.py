"""What operators run beside a service: `fluid doctor`, `fluid dlq` and `fluid reload`."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

from server.cli import doctor
from server.cli.flags import _command
from server.errors import ConfigError, ReloadRefused, UnhealthyService
from server.launcher import embedded_valkey
from server.queue.dead_letters import DeadLetter, DeadLetters
from server.queue.job_queue import JobQueue
from server.queue.redis_client import PATIENT_TIMEOUT_S, connect
from server.queue.registry import Registry
from server.settings import Settings

RELOAD_POLL_S = 0.2


@asynccontextmanager
async def service(settings: Settings) -> AsyncIterator[tuple[Settings, JobQueue, Registry]]:
    """The running one: at FLUID_REDIS_URL, else the embedded Valkey of FLUID_DATA_DIR."""
    url = settings.redis_url or embedded_valkey.running_url(settings.data_path)
    if url is None:
        raise ConfigError(
            f"Nothing runs in {settings.data_path}. Start `fluid serve`, or set FLUID_REDIS_URL to a running queue."
        )
    own = replace(settings, redis_url=url)
    async with connect(url, PATIENT_TIMEOUT_S) as redis:
        yield own, JobQueue(redis, own), Registry(redis, own.namespace)


async def examine(settings: Settings) -> None:
    async with service(settings) as (own, queue, registry):
        findings = [finding async for finding in doctor.examine(own, queue, registry)]
    for finding in findings:
        print(f"{finding.level:<5} {finding.what}")
        if finding.remedy:
            print(f"      -> {finding.remedy}")
    failed = sum(finding.level is doctor.Level.FAIL for finding in findings)
    if failed:
        raise UnhealthyService(f"{failed} of {len(findings)} findings need somebody to act.")


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


def _add_operations(commands: Any) -> None:
    doctor = _command(
        commands,
        "doctor",
        "Say whether a running service is well, whether its books balance, and what to do.",
        "Exit status 0: nothing needs anybody to act.",
    )
    doctor.set_defaults(run=_doctor)
    dlq = _command(
        commands,
        "dlq",
        "Look at jobs that failed for good (dead letters), draw them again, or drop them.",
        "examples:\n  fluid dlq list\n  fluid dlq show job_0123\n  fluid dlq replay all\n  fluid dlq drop job_0123",
    )
    actions = dlq.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="one line each, oldest first")
    for name, help in (
        ("show", "everything about them, as JSON"),
        ("replay", "queue them again, as new jobs with the same seeds"),
        ("drop", "forget them"),
    ):
        action = actions.add_parser(name, help=help)
        action.add_argument("job_ids", nargs="+", metavar="JOB_ID", help='job ids, or "all"')
    dlq.set_defaults(run=_dlq, job_ids=[])
    keys = _command(
        commands,
        "keys",
        "Make API keys. Only their hashes are kept; without keys anybody who reaches the service may use it.",
        "The line goes into the file that FLUID_API_KEYS_FILE names (or, by semicolons, into FLUID_API_KEYS). Running\n"
        "gateways read the file again within a second. After the hash a line may have rate_limit=NUMBER (requests a\n"
        "minute), max_jobs=NUMBER (jobs that wait or run), or disabled.\n"
        "example:\n  fluid keys new alice >> keys.txt      # the key itself is shown on the terminal, once",
    )
    keys_actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = keys_actions.add_parser("new", help="print a new key, and its line for the file")
    new.add_argument("name", metavar="NAME", help="whose key it is: letters, digits, '.', '_', '-'")
    keys.set_defaults(run=_keys)
    reload = _command(
        commands,
        "reload",
        "Swap the checkpoint of all running workers without dropping a request.",
        "The new one is loaded beside the old one, so memory must hold both; on failure the old one goes on.\n"
        "example:\n  fluid reload --to runs/scenes-128/checkpoint",
    )
    reload.add_argument("--checkpoint", help="what the workers were started with (FLUID_CHECKPOINT)")
    reload.add_argument("--to", help="checkpoint name or folder; omitted: load the same one again")
    reload.add_argument("--timeout", type=float, default=600.0, help="seconds to wait for all workers")
    reload.set_defaults(run=_reload)


def _doctor(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import operations

    asyncio.run(operations.examine(settings))


def _dlq(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import operations

    asyncio.run(operations.dead_letters(settings, args.action, args.job_ids))


def _keys(settings: Settings, args: argparse.Namespace) -> None:
    from server.gateway import api_keys

    api_keys.print_new_key(args.name)


def _reload(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import operations

    asyncio.run(operations.reload(settings, args.to or settings.checkpoint, args.timeout))
