"""Flags that several commands share."""

import argparse
from typing import Any


def add_command(commands: Any, name: str, summary: str, epilog: str) -> argparse.ArgumentParser:
    """Add a subcommand; `epilog` is printed verbatim and ends with examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_model_flags(parser: argparse.ArgumentParser, *alias: str, several: bool = False) -> None:
    """`alias`: further names of --checkpoint; `several`: it may be repeated."""
    if several:
        parser.add_argument(
            "--checkpoint", action="append", metavar="CHECKPOINT",
            help="checkpoint name or folder, once for each model (default: FLUID_CHECKPOINT)",
        )  # fmt: skip
    else:
        parser.add_argument("--checkpoint", *alias, help="checkpoint name or folder (default: FLUID_CHECKPOINT)")
    parser.add_argument("--device", help="auto, cpu or cuda (default: FLUID_DEVICE)")
    parser.add_argument(
        "--tensor-parallel", metavar="N", help="devices that share one model (default: FLUID_TENSOR_PARALLEL)"
    )


def add_address_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (default: FLUID_HOST)")
    parser.add_argument("--port", help="port to listen on (default: FLUID_PORT)")


def add_service_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="model of the service (default: its default model)")
    parser.add_argument("--url", help="base URL of the service (default: from FLUID_HOST and FLUID_PORT)")
    parser.add_argument("--api-key", help="API key, if the service requires one (default: FLUID_API_KEY)")


#: Names of the API parameters that `add_image_flags` sets.
IMAGE_PARAMETERS = ("negative_prompt", "n", "seed", "quality", "background", "num_inference_steps", "guidance_scale")


def add_image_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--negative-prompt", metavar="TEXT", help="what guidance steers away from")
    parser.add_argument("--n", type=int, help="number of images (default: 1); image i uses seed + i")
    parser.add_argument("--seed", type=int, help="the same seed gives the same image (default: random)")
    parser.add_argument("--quality", choices=("low", "medium", "high"), help="preset for the step counts")
    parser.add_argument(
        "--background", choices=("auto", "opaque", "transparent"),
        help="transparent: an image with alpha, of a model that has it; opaque by default",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, dest="num_inference_steps", metavar="N", help="autoregressive steps")
    parser.add_argument(
        "--guidance", type=float, dest="guidance_scale", metavar="SCALE", help="classifier-free guidance; 1 disables it"
    )


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The named flags that were set, by the API's parameter names."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
