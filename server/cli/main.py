"""The `fluid` command: parses flags, then calls one function."""

import argparse
import asyncio
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server import __version__
from server.cli import client_commands
from server.errors import EngineBroken, FluidError, OperatorError
from server.settings import Settings, describe

EXAMPLES = """examples:
  fluid demo "a red apple, 3d style" --out apple.png    the whole service for one picture
  fluid serve                                           everything, on http://127.0.0.1:8000/
  fluid generate "a sleeping cat" --out cat.png         in this process, no server
  FLUID_REDIS_URL=redis://db:6379 fluid worker          one more worker for an existing service

`fluid COMMAND --help` tells more; `fluid serve --help` lists every setting."""


def main(argv: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:2] == ["import", "mar"]:
        # A tool of the model's own, with its own flags and help; nothing of the service is needed for it.
        return subprocess.call([sys.executable, "-m", "model.conversion.import_mar", *given[2:]])
    args = _parser().parse_args(given)
    try:
        settings = Settings.from_env(
            host=getattr(args, "host", None),
            port=getattr(args, "port", None),
            data_dir=getattr(args, "data_dir", None),
            checkpoint=getattr(args, "checkpoint", None),
            device=getattr(args, "device", None),
        )
        logging.basicConfig(
            level="WARNING" if getattr(args, "quiet", False) else settings.log_level.upper(),
            format=f"%(asctime)s {args.command} %(levelname)s %(message)s",
        )
        logging.getLogger("httpx").setLevel(logging.WARNING)
        args.run(settings, args)
    except FluidError as error:
        print(f"fluid {args.command}: {error}", file=sys.stderr)
        return (
            1 if isinstance(error, (EngineBroken, OperatorError)) else 2
        )  # 2 tells `fluid serve` that a restart cures nothing
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fluid",
        description="Text to image by a Fluid-style model, as a service.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fluid-serve {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_roles(commands)
    _add_generate(commands)
    client_commands.add_commands(_command, commands)
    _add_demo(commands)
    _add_import(commands)
    _add_operations(commands)
    return parser


def _command(commands: Any, name: str, help: str, epilog: str = "") -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return added


def _model_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help="checkpoint name or folder (FLUID_CHECKPOINT)")
    parser.add_argument("--device", help="auto, cpu or cuda (FLUID_DEVICE)")


def _address_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (FLUID_HOST)")
    parser.add_argument("--port", help="port to listen on (FLUID_PORT)")


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


def _add_generate(commands: Any) -> None:
    parser = _command(
        commands,
        "generate",
        "Draw in this process, without server or queue.",
        "example:\n  fluid generate 'a red apple, 3d style' --out apple.png --seed 7 --quality high\n"
        "  fluid generate --like apple.png --out again.png",
    )
    parser.add_argument("prompt", nargs="?")
    parser.add_argument("--like", type=Path, help="a picture that was drawn here; other options change its recipe")
    parser.add_argument("--out", type=Path, default=Path("out.png"), help=".png, .webp or .jpg")
    _model_flags(parser)
    client_commands.picture_flags(parser)
    parser.add_argument("--diffusion-steps", type=int, help="diffusion steps per token")
    parser.add_argument("--schedule", choices=("linear", "constant"), dest="guidance_schedule")
    parser.add_argument("--temperature", type=float, help="spread of the sampling")
    parser.add_argument("--order", choices=("random", "halton"), help="in which order tokens are decided")
    parser.add_argument("--diffusion-steps-final", type=int, help="of the last autoregressive step (annealing)")
    parser.add_argument(
        "--guidance-interval", type=float, nargs=2, metavar=("FROM", "TO"), help="shares of the steps, e.g. 0.2 0.8"
    )
    parser.set_defaults(run=_generate)


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


def _add_import(commands: Any) -> None:
    parser = _command(
        commands,
        "import",
        "Make a checkpoint of weights that others published; `fluid import mar --help` tells more.",
        "example:\n  fluid import mar checkpoint-last.pth mar-b",
    )
    # `main` hands "import mar" on before this parser sees it.
    parser.add_argument("kind", choices=("mar",), help="official MAR weights (LTH14/mar)")


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


def _serve(settings: Settings, args: argparse.Namespace) -> None:
    from server.launcher.supervisor import Supervisor

    asyncio.run(Supervisor(settings, banner=not args.quiet).run())


def _gateway(settings: Settings, args: argparse.Namespace) -> None:
    from server.gateway import app

    app.serve(settings)


def _worker(settings: Settings, args: argparse.Namespace) -> None:
    from server.worker import loop

    asyncio.run(loop.serve(settings))


def _generate(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import generate
    from server.gateway.requests.validation import validated
    from server.gateway.schemas.images import ImageRequest
    from server.images.codec import format_of
    from server.images.recipe import load_recipe, request_of

    recipe = load_recipe(args.like) if args.like else None
    # Which checkpoint draws is said by --checkpoint; `run` tells if it is another one.
    again = {name: value for name, value in request_of(recipe or {}).items() if name != "model"}
    given = {name: getattr(args, name, None) for name in ImageRequest.model_fields}
    given["output_format"] = format_of(args.out)
    request = validated(ImageRequest, again | {k: v for k, v in given.items() if v is not None})
    generate.run(settings, request, args.out, recipe)


def _demo(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import demo

    demo.run(settings, args.prompt, args.out, args.seed)


def _doctor(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import operations

    asyncio.run(operations.examine(settings))


def _dlq(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import operations

    asyncio.run(operations.dead_letters(settings, args.action, args.job_ids))


def _keys(settings: Settings, args: argparse.Namespace) -> None:
    from server.gateway import api_keys

    api_keys.make(args.name)


def _reload(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import operations

    asyncio.run(operations.reload(settings, args.to or settings.checkpoint, args.timeout))
