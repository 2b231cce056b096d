"""`fluid dlq`, `fluid keys`, `fluid reload`, `fluid forget`: commands for operators."""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

from redis.exceptions import RedisError

from server.addresses import without_password
from server.cli.flags import add_command
from server.errors import ConfigError, OperatorError, ReloadRefused
from server.gateway import api_keys
from server.launcher import embedded_valkey
from server.queue.connection.retry import through_outages
from server.queue.dead_letters import DeadLetter, DeadLetters, UnreadableLetter
from server.queue.job_queue import JobQueue
from server.queue.redis_client import SOCKET_TIMEOUT_S, connect, explain
from server.queue.registry import Registry, WorkerInfo
from server.queue.statistics import unserved_models
from server.settings import Settings

RELOAD_POLL_S = 0.2
RELOAD_FAILED = ("reload ", "serving the configured ")  # how notes of server/worker/reload.py begin that tell of one


def add_parser(commands: Any) -> None:
    _add_dlq(commands)
    _add_keys(commands)
    _add_reload(commands)
    forget = add_command(
        commands,
        "forget",
        "Take models off the list of GET /v1/models that no worker serves any more.",
        "Requests for them get 404 from then on. A model comes back when a worker serves it again. One that a live\n"
        "worker serves, or that jobs wait for, is refused.\n\n"
        "example:\n  fluid forget portraits-256",
    )
    forget.add_argument("models", metavar="MODEL", nargs="+", help="id of the model, as GET /v1/models tells it")
    forget.set_defaults(run=run_forget)


def _add_dlq(commands: Any) -> None:
    parser = add_command(
        commands,
        "dlq",
        "Inspect, replay or drop dead letters: jobs that failed on every attempt.",
        "The queue keeps their requests and errors until they are replayed or dropped.\n\n"
        "examples:\n  fluid dlq list\n  fluid dlq show job_0123\n  fluid dlq replay all\n  fluid dlq drop job_0123",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_command(actions, "list", "Print one line per dead letter, oldest first.", "example:\n  fluid dlq list")
    for name, summary in (
        ("show", "Print dead letters as JSON."),
        ("replay", "Queue dead letters again, as new jobs with the same seeds."),
        ("drop", "Delete dead letters."),
    ):
        examples = f"examples:\n  fluid dlq {name} job_0123\n  fluid dlq {name} all"
        action = add_command(actions, name, summary, examples)
        action.add_argument("job_ids", nargs="+", metavar="JOB_ID", help="job ids, or `all`")
    parser.set_defaults(run=run_dlq, job_ids=[])


def _add_keys(commands: Any) -> None:
    parser = add_command(
        commands,
        "keys",
        "Create API keys; without any, the service is open to everyone who can reach it.",
        "A key's line goes into the file at FLUID_API_KEYS_FILE, which holds only hashes. Running gateways reread the\n"
        "file within a second. After the hash a line may have rate_limit=NUMBER (requests per minute),\n"
        "max_jobs=NUMBER (jobs waiting or running), max_priority=high (keys may use normal and low otherwise), or\n"
        "disabled.\n\n"
        "example:\n  fluid keys new alice >> keys.txt      # the key itself is shown once, on the terminal",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = add_command(
        actions,
        "new",
        "Create a key: print it on standard error, and its line for the key file on standard output.",
        "example:\n  fluid keys new alice >> keys.txt",
    )
    new.add_argument("name", metavar="NAME", help="the caller's name: letters, digits, '.', '_', '-'")
    parser.set_defaults(run=run_keys)


def _add_reload(commands: Any) -> None:
    parser = add_command(
        commands,
        "reload",
        "Load another checkpoint into all running workers of a model without dropping a request.",
        "Each worker loads the new checkpoint beside the old one, so its memory must hold both. If loading fails, the\n"
        "worker keeps the old one. Workers of other models are left alone.\n\n"
        "examples:\n  fluid reload --to runs/atlas-128/checkpoint\n"
        "  fluid reload --checkpoint runs/portraits --to runs/portraits-2",
    )
    parser.add_argument(
        "--checkpoint", help="checkpoint the workers were started with, or their model (default: FLUID_CHECKPOINT)"
    )
    parser.add_argument(
        "--to", metavar="CHECKPOINT", help="checkpoint name or folder to load (default: the same one again)"
    )
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="SECONDS", help="time for all workers to finish (default: 600)"
    )
    parser.set_defaults(run=run_reload)


def run_dlq(settings: Settings, args: argparse.Namespace) -> None:
    asyncio.run(_dead_letters(settings, args.action, args.job_ids))


def run_keys(settings: Settings, args: argparse.Namespace) -> None:
    api_keys.print_new_key(args.name)


def run_reload(settings: Settings, args: argparse.Namespace) -> None:
    asyncio.run(_reload(settings, args.to, args.timeout))


def run_forget(settings: Settings, args: argparse.Namespace) -> None:
    """Raise ConfigError for a model that is unknown, served or waited for."""
    asyncio.run(_forget(settings, args.models))


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[tuple[Settings, JobQueue, Registry]]:
    """Connect to a running service: the Redis at FLUID_REDIS_URL, or else the embedded Valkey of FLUID_DATA_DIR.

    Raises:
        ConfigError: neither is available.
        OperatorError: Redis fails.
    """
    url = settings.redis_url or embedded_valkey.running_url(settings.data_path)
    if url is None:
        raise ConfigError(
            f"No service is running with its data in {settings.data_path}. Start `fluid serve`, or set "
            "FLUID_REDIS_URL (or FLUID_DATA_DIR) to that of a running service."
        )
    own = replace(settings, redis_url=url)
    try:
        async with connect(url, SOCKET_TIMEOUT_S) as redis:
            yield own, JobQueue(redis, own), Registry(redis, own.namespace)
    except RedisError as error:
        meaning, remedy = explain(error)
        raise OperatorError(f"the queue at {without_password(url)} {meaning}. {remedy}") from error


async def _dead_letters(settings: Settings, action: str, job_ids: list[str]) -> None:
    async with open_service(settings) as (_, queue, _):
        letters = DeadLetters(queue)
        if action == "list":
            async for letter in letters.entries():
                print(_line(letter))
            return
        if job_ids == ["all"]:
            chosen = [letter async for letter in letters.entries()]
        else:
            chosen = [await letters.find(job_id) for job_id in job_ids]
        for letter in chosen:
            if action == "show":
                print(json.dumps(asdict(letter), indent=2))
            elif action == "drop":
                await letters.drop(letter)
                print(f"{letter.job_id} dropped")
            elif isinstance(letter, DeadLetter):
                print(f"{letter.job_id} -> {await letters.replay(letter)}")
            elif job_ids == ["all"]:
                print(f"{letter.job_id} cannot be replayed: {letter.reason}", file=sys.stderr)
            else:
                raise OperatorError(f"{letter.job_id} cannot be replayed: {letter.reason}")


async def _forget(settings: Settings, models: list[str]) -> None:
    async with open_service(settings) as (_, queue, registry):
        known, unserved = await registry.models(), await unserved_models(queue, registry)
        for model in models:
            if model not in known:
                raise ConfigError(f"No model has the id {model!r}. Known: {', '.join(sorted(known)) or 'none'}.")
            if model not in unserved:
                raise ConfigError(f"A live worker serves {model}, or jobs need it: stop it, or cancel them.")
        await registry.forget_models(models)


def _line(letter: DeadLetter | UnreadableLetter) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.died_at))
    if isinstance(letter, UnreadableLetter):
        return f"{letter.job_id}  {when}  cannot be read by this version: {letter.reason[:80]}"
    reason = f"{letter.error.code}: {letter.error.message}"
    return f"{letter.job_id}  {when}  {letter.attempt} attempts  {reason[:80]}  {letter.input.prompt[:40]!r}"


def _configured(wanted: str, live: list[WorkerInfo]) -> str:
    """The checkpoint with which the workers of `wanted`, a checkpoint or a model, were started."""
    if not live:
        raise ConfigError("No live worker. Start one with the new weights: `fluid serve --checkpoint ...`.")
    if any(w.configured in ("", wanted) for w in live):
        return wanted
    of_model = sorted({w.configured for w in live if w.model == wanted})
    if len(of_model) == 1:
        return of_model[0]
    known = ", ".join(sorted({w.configured for w in live}))
    raise ConfigError(f"No live worker was started with {wanted!r}. Choose by --checkpoint: {known}.")


async def _reload(settings: Settings, to: str | None, timeout_s: float) -> None:
    """Request a reload of every worker that was started for FLUID_CHECKPOINT, and wait for all of them."""
    async with open_service(settings) as (own, _, registry):
        live = await registry.workers()
        configured = _configured(own.checkpoint, live)
        checkpoint = to or configured
        requested = {w.id for w in live if w.configured in ("", configured)}
        request = await registry.request_reload(configured, checkpoint)
        deadline = time.monotonic() + timeout_s
        shown: dict[str, str] = {}
        while True:
            workers = [w for w in await through_outages(registry.workers, deadline, RELOAD_POLL_S) if w.id in requested]
            for w in workers:
                done = w.reloads >= request.number
                state = w.note or (f"serving {w.checkpoint[:12]}" if done else "loading, and still serving the old one")
                if shown.get(w.id) != state:
                    print(f"{w.id}: {state}", file=sys.stderr)
                    shown[w.id] = state
            if all(w.reloads >= request.number for w in workers):
                break
            if time.monotonic() > deadline:
                raise ReloadRefused(
                    f"Some workers have not loaded {checkpoint} after {timeout_s:g} s; they keep trying."
                )
            await asyncio.sleep(RELOAD_POLL_S)
        carried_out = await through_outages(lambda: registry.last_reload(configured), deadline, RELOAD_POLL_S)
    gone = requested - {w.id for w in workers}
    if gone and (carried_out is None or carried_out.number < request.number):
        raise ReloadRefused(
            f"{len(gone)} of {len(requested)} workers ended while they loaded {checkpoint}, and start again with the "
            "old one. Was their memory too small for both? Their log tells."
        )
    failed = [w.note for w in workers if w.note.startswith(RELOAD_FAILED)]  # other notes are about its store or queue
    if failed:
        raise ReloadRefused(f"{len(failed)} of {len(workers)} workers keep the old checkpoint: {failed[0]}")
