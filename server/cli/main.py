"""The `fluid` command: parses flags, then calls one function."""

import argparse
import logging
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from server import __version__
from server.cli import client_commands
from server.cli.flags import _command
from server.cli.generate import _add_generate
from server.cli.operations import _add_operations
from server.cli.serve import _add_demo, _add_roles, _add_serve
from server.errors import EngineBroken, FluidError, OperatorError
from server.settings import Settings

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


def _add_import(commands: Any) -> None:
    parser = _command(
        commands,
        "import",
        "Make a checkpoint of weights that others published; `fluid import mar --help` tells more.",
        "example:\n  fluid import mar checkpoint-last.pth mar-b",
    )
    # `main` hands "import mar" on before this parser sees it.
    parser.add_argument("kind", choices=("mar",), help="official MAR weights (LTH14/mar)")
