"""`fluid import mar`: convert published MAR weights into a checkpoint folder."""

import argparse
from pathlib import Path
from typing import Any

from server.cli.flags import add_command
from server.errors import ConfigError
from server.settings import Settings


def add_parser(commands: Any) -> None:
    parser = add_command(
        commands,
        "import",
        "Convert published weights into a checkpoint.",
        "example:\n  fluid import mar checkpoint-last.pth mar-b\n\nRun `fluid import mar --help` for its flags.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    mar = add_command(
        kinds,
        "mar",
        "Convert an official MAR checkpoint (LTH14/mar) into a checkpoint folder.",
        "Sizes are read from the tensors' shapes. A missing, misshapen or surplus tensor is an error that names its\n"
        "key, and the folder appears only once it is complete.\n\n"
        "examples:\n  fluid import mar checkpoint-last.pth mar-b               with kl16.ckpt in the same folder\n"
        "  fluid import mar mar-large.safetensors mar-l --vae kl16.safetensors\n"
        '  fluid generate --checkpoint mar-b "golden retriever"',
    )
    mar.add_argument("source", type=Path, metavar="SOURCE", help="official checkpoint, .pth or .safetensors")
    mar.add_argument("target", type=Path, metavar="TARGET", help="checkpoint folder to create")
    mar.add_argument("--vae", type=Path, help="kl16.ckpt or kl16.safetensors (default: the one beside SOURCE)")
    mar.add_argument("--heads", type=int, help="attention heads; needed only for widths that were never released")
    mar.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32",
        help="precision of the stored weights; bfloat16 halves the size and rounds them (default: float32)",
    )  # fmt: skip
    mar.set_defaults(run=run)


def run(settings: Settings, args: argparse.Namespace) -> None:
    """Raise ConfigError if the weights do not fit or the target exists."""
    # A conversion needs the model but not the service; imported here so that --help works without torch.
    try:
        from model.checkpoint import CheckpointError
        from model.config import ConfigError as ModelConfigError
        from model.conversion.import_mar import import_mar
        from model.inference.precision import DTYPES
    except ImportError as error:
        raise ConfigError(f"{error}. Install what converts: pip install 'fluid-serve[worker,mar]'.") from error

    try:
        import_mar(args.source, args.target, args.vae, args.heads, DTYPES[args.dtype])
    except (CheckpointError, ModelConfigError, OSError) as error:
        raise ConfigError(str(error)) from error
    print(f'Try it: fluid generate --checkpoint {args.target} "golden retriever"')
