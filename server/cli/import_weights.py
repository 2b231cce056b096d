"""`fluid import`: convert published weights into a checkpoint folder."""

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
        "The kind is found from the names inside SRC. A missing, misshapen or surplus tensor is an error that names\n"
        "its key, and the folder appears only once it is complete.\n\n"
        "examples:\n  fluid import checkpoint-last.pth mar-b               MAR, with kl16.ckpt in the same folder\n"
        "  fluid import mar-large.safetensors mar-l --vae kl16.safetensors\n"
        '  fluid generate --checkpoint mar-b "golden retriever"',
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="the downloaded file or folder")
    parser.add_argument("target", type=Path, metavar="DST", help="checkpoint folder to create")
    # `fluid import mar SRC DST`, the form of earlier versions.
    parser.add_argument("shifted", type=Path, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--kind", help="kind of the weights, if SRC does not reveal it")
    parser.add_argument(
        "--vae", type=Path, help="file or folder of the autoencoder (default: the one in or beside SRC)"
    )
    parser.add_argument(
        "--text", default="", metavar="FOLDER",
        help="folder or hub name of the text encoder (default: the one in SRC, or the one of the model's authors)",
    )  # fmt: skip
    parser.add_argument("--heads", type=int, help="attention heads; needed only for widths that were never released")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "int8"), default="float32",
        help="precision of the stored weights: bfloat16 halves their size, int8 halves it again (default: float32)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(settings: Settings, args: argparse.Namespace) -> None:
    """Raise ConfigError if the weights do not fit or the target exists."""
    # A conversion needs the model but not the service; imported here so that --help works without torch.
    try:
        from model.checkpoint import CheckpointError
        from model.config import ConfigError as ModelConfigError
        from model.conversion.kinds import import_weights
        from model.conversion.options import Options
        from model.inference.precision import DTYPES
    except ImportError as error:
        raise ConfigError(f"{error}. Install what converts: pip install '.[worker,mar]' in a clone.") from error

    source, target, kind = args.source, args.target, args.kind
    if args.shifted is not None:
        source, target, kind = args.target, args.shifted, str(args.source)
    options = Options(vae=args.vae, text=args.text, heads=args.heads, dtype=DTYPES[args.dtype])
    try:
        prompt = import_weights(source, target, kind, options)
    except (CheckpointError, ModelConfigError, OSError) as error:
        raise ConfigError(str(error)) from error
    if prompt:
        print(f'Try it: fluid generate --checkpoint {target} "{prompt}"')
    else:
        print(f"Train with it: python -m model.training --tokenizer {target} (docs/training.md)")
