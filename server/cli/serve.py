"""fluid serve, gateway, worker, demo: the commands that start processes."""

import argparse
import asyncio
from pathlib import Path
from typing import Any

from server.cli.flags import _address_flags, _command, _model_flags
from server.settings import Settings, describe


def _settings_table() -> str:
    lines = [f"  {name} = {default!r}\n      {help}" for name, default, help in describe()]
    return "settings, as environment variables:\n" + "\n".join(lines)


def _add_serve(commands: Any) -> None:
    parser = _command(
        commands, "serve", "Start Redis, gateway and worker; Ctrl-C stops all of them.", _settings_table()
    )
    _address_flags(parser)
    parser.add_argument("--data-dir", help="where the queue keeps its data (FLUID_DATA_DIR)")
    _model_flags(parser)
    parser.add_argument("--quiet", action="store_true", help="no banner")
    parser.set_defaults(run=_serve)


def _add_roles(commands: Any) -> None:
    gateway = _command(
        commands,
        "gateway",
        "Start only the HTTP gateway, for a Redis at FLUID_REDIS_URL.",
        "example:\n  FLUID_REDIS_URL=redis://db:6379 fluid gateway --port 8000",
    )
    _address_flags(gateway)
    gateway.set_defaults(run=_gateway)
    worker = _command(
        commands,
        "worker",
        "Start only a worker, for a Redis at FLUID_REDIS_URL. Start as many as there are devices.",
        "example:\n  FLUID_REDIS_URL=redis://db:6379 CUDA_VISIBLE_DEVICES=1 fluid worker",
    )
    _model_flags(worker)
    worker.set_defaults(run=_worker)


def _add_demo(commands: Any) -> None:
    parser = _command(
        commands,
        "demo",
        "Start the whole service, send one request as a client would, save the picture, stop.",
        "example:\n  fluid demo 'a red apple, 3d style' --out out/apple.png --seed 7",
    )
    parser.add_argument("prompt")
    parser.add_argument("--out", type=Path, default=Path("out/demo.png"), help="where the PNG goes")
    parser.add_argument("--seed", type=int, help="same seed, same picture")
    _model_flags(parser)
    parser.set_defaults(run=_demo)


def _serve(settings: Settings, args: argparse.Namespace) -> None:
    from server.launcher.supervisor import Supervisor

    asyncio.run(Supervisor(settings, banner=not args.quiet).run())


def _gateway(settings: Settings, args: argparse.Namespace) -> None:
    from server.gateway import app

    app.serve(settings)


def _worker(settings: Settings, args: argparse.Namespace) -> None:
    from server.worker import main

    asyncio.run(main.serve(settings))


def _demo(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import demo

    demo.run(settings, args.prompt, args.out, args.seed)
