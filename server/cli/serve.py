"""`fluid serve`, `fluid gateway`, `fluid worker`: the long-running processes.

Each `run` imports only its own code: a worker without FastAPI starts sooner, and a gateway must not load torch.
"""

import argparse
import asyncio
import gc
import os
from textwrap import fill, indent
from typing import Any

from server.cli.flags import add_address_flags, add_command, add_model_flags, given
from server.errors import ConfigError
from server.setting_values import split_checkpoints
from server.settings import Settings, describe

# Flag of `serve --on ray` -> its field of on_ray.Scale, which has the defaults.
OF_RAY = {"min_workers": "minimum", "max_workers": "maximum", "row_steps": "row_steps", "cooldown": "cooldown_s"}


def add_parser(commands: Any) -> None:
    serve = add_command(
        commands,
        "serve",
        "Start a whole service: Redis, gateway and worker. Ctrl-C stops all of them.",
        "Without FLUID_REDIS_URL an embedded Valkey is started, which keeps its data in FLUID_DATA_DIR.\n\n"
        "Several models: --checkpoint once for each; requests choose by `model`, and get the first one without.\n\n"
        "examples:\n  fluid serve\n  fluid serve --port 9000 --device cuda --workers auto\n"
        "  fluid serve --checkpoint atlas-128 --checkpoint runs/scenes-128/checkpoint\n"
        "  FLUID_LOG_LEVEL=debug fluid serve --data-dir /srv/fluid\n\n" + _settings_table(),
    )
    add_address_flags(serve)
    serve.add_argument("--data-dir", help="folder of the embedded Valkey (default: FLUID_DATA_DIR)")
    add_model_flags(serve, several=True)
    serve.add_argument(
        "--workers",
        metavar="N|auto",
        help="workers of each model; auto: one per GPU, or per 4 (FLUID_THREADS) CPU cores, shared by the models",
    )
    serve.add_argument("--on", choices=("host", "ray"), default="host",
                       help="where workers run: here, or on the Ray cluster at RAY_ADDRESS (%(default)s)")  # fmt: skip
    ray = serve.add_argument_group("on Ray", "the number of workers follows the waiting work")
    ray.add_argument("--min-workers", type=int, metavar="N", help="fewest of each model (1)")
    ray.add_argument("--max-workers", type=int, metavar="N", help="most of each model (4)")
    ray.add_argument("--row-steps", type=int, metavar="N",
                     help="a worker for each so many waiting images times their steps (2048)")  # fmt: skip
    ray.add_argument("--cooldown", type=float, metavar="SECONDS",
                     help="how long fewer workers must be enough before one is drained (300)")  # fmt: skip
    serve.add_argument("--quiet", action="store_true", help="log warnings and errors only, and print no banner")
    serve.set_defaults(run=run)
    gateway = add_command(
        commands,
        "gateway",
        "Start only the HTTP gateway, with the Redis at FLUID_REDIS_URL.",
        "Any number of gateways can share one Redis.\n\n"
        "example:\n  FLUID_REDIS_URL=redis://db:6379 fluid gateway --port 8000",
    )
    add_address_flags(gateway)
    gateway.set_defaults(run=run_gateway)
    worker = add_command(
        commands,
        "worker",
        "Start only a worker, with the Redis at FLUID_REDIS_URL.",
        "Start one worker per device, or one for N devices that share the model (--tensor-parallel N): then this\n"
        "command starts and watches N processes, unless torchrun started it as one of them.\n\n"
        "examples:\n  FLUID_REDIS_URL=redis://db:6379 CUDA_VISIBLE_DEVICES=1 fluid worker\n"
        "  FLUID_REDIS_URL=redis://db:6379 fluid worker --tensor-parallel 2",
    )
    add_model_flags(worker)
    worker.set_defaults(run=run_worker)


def _settings_table() -> str:
    text = "settings, as environment variables:\n"
    for name, default, meaning in describe():
        text += f"  {name} (default: {default or 'empty'})\n{indent(fill(meaning, 100), ' ' * 6)}\n"
    return text


def run(settings: Settings, args: argparse.Namespace) -> None:
    from server.launcher.supervisor import Supervisor

    if args.on == "ray":
        _run_on_ray(settings, args)
        return
    if unused := given(args, *OF_RAY):
        flag = next(iter(unused)).replace("_", "-")
        raise ConfigError(f"--{flag} is for --on ray: here the number of workers is --workers.")
    plan = None
    if args.workers or settings.tensor_parallel > 1 or len(split_checkpoints(settings.checkpoint)) > 1:
        from server.launcher.workers import plan_workers
        from server.worker.engine.loader import survey_host

        plan = plan_workers(settings, args.workers or "1", survey_host(settings))
    asyncio.run(Supervisor(settings, banner=not args.quiet, plan=plan).run())


def _run_on_ray(settings: Settings, args: argparse.Namespace) -> None:
    from server.launcher.on_ray import RaySupervisor, Scale
    from server.worker.engine.loader import survey_host

    if args.workers:
        raise ConfigError("--workers is for --on host: on Ray give --min-workers and --max-workers.")
    scale = Scale(**{OF_RAY[name]: value for name, value in given(args, *OF_RAY).items()})
    checkpoints = split_checkpoints(settings.checkpoint)
    found = (
        survey_host(settings)["models"]
        if checkpoints[1:]
        else [{"id": settings.checkpoint, "checkpoint": checkpoints[0]}]
    )
    models = {model["id"]: model["checkpoint"] for model in found}
    asyncio.run(RaySupervisor(settings, scale, banner=not args.quiet, models=models).run())


def run_gateway(settings: Settings, args: argparse.Namespace) -> None:
    from server.gateway import app

    _collect_less_often()
    app.serve(settings)


def run_worker(settings: Settings, args: argparse.Namespace) -> None:
    rank = os.environ.get("RANK", "") if settings.tensor_parallel > 1 else "0"
    if not rank:
        _run_group(settings)
        return
    if rank != "0":
        from server.worker.engine.loader import follow_model

        follow_model(settings)
        return
    from server.background import new_event_loop
    from server.worker import main

    _collect_less_often()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main.serve(settings))


def _run_group(settings: Settings) -> None:
    """Start and watch the processes that share a worker's model."""
    from server.launcher.supervisor import WorkerSupervisor
    from server.launcher.workers import plan_workers
    from server.worker.engine.loader import check_checkpoint, survey_host

    check_checkpoint(settings)
    asyncio.run(WorkerSupervisor(settings, banner=False, plan=plan_workers(settings, "1", survey_host(settings))).run())


def _collect_less_often() -> None:
    """Search for reference cycles less often than Python does by itself, which takes 4 % of the time per request."""
    gc.set_threshold(20_000, 20, 100)
