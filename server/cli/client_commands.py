"""Commands of `fluid` that talk to a running service: batch, edit, vary."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.settings import Settings

if TYPE_CHECKING:  # httpx is loaded only by the commands that need it
    from server.client import FluidClient

Command = Callable[..., argparse.ArgumentParser]


def add_commands(command: Command, commands: Any) -> None:
    _add_batch(command, commands)
    _add_edit(command, commands)
    _add_vary(command, commands)


def _service_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", help="of the service; default: what FLUID_HOST and FLUID_PORT say")
    parser.add_argument("--api-key", help="if the service asks for one (FLUID_API_KEY)")


def image_flags(parser: argparse.ArgumentParser) -> None:
    """What `fluid generate` has in common with edits and variations."""
    parser.add_argument("--n", type=int, help="how many; picture i uses seed + i")
    parser.add_argument("--seed", type=int, help="same seed, same picture")
    parser.add_argument("--quality", choices=("low", "medium", "high"), help="preset of the step counts")
    parser.add_argument("--steps", type=int, dest="num_inference_steps", help="autoregressive steps for what is drawn")
    parser.add_argument("--guidance", type=float, dest="guidance_scale", help="how hard the prompt pulls")


def _output_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--out", type=Path, required=True, help=".png, .webp or .jpg")
    image_flags(parser)
    _service_flags(parser)


def _add_batch(command: Command, commands: Any) -> None:
    parser = command(
        commands,
        "batch",
        "Draw a file of prompts into a folder, through a running service, behind everybody else's requests.",
        "PROMPTS is a .txt with a prompt on each line, or .jsonl with an object of API parameters on each line.\n"
        "Stop it and run it again at will: it goes on where it was, and the service draws meanwhile.\n"
        "example:\n  fluid batch prompts.jsonl -o out/ --quality high",
    )
    parser.add_argument("prompts", type=Path, metavar="PROMPTS")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--quality", choices=("low", "medium", "high"), help="of lines that do not say")
    parser.add_argument("--output-format", choices=("png", "webp", "jpeg"), help="of lines that do not say")
    parser.add_argument("--cancel", action="store_true", help="stop the folder's batch; what was drawn is fetched")
    _service_flags(parser)
    parser.set_defaults(run=_batch)


def _add_edit(command: Command, commands: Any) -> None:
    parser = command(
        commands,
        "edit",
        "Draw a part of a picture anew, through a running service; in PNG all other pixels stay as they are.",
        "The part is what is transparent in --mask, what lies in --box, or what is transparent in the picture.\n"
        "examples:\n  fluid edit face.png 'a grinning face, noto style' --box 0 32 64 64 -o grin.png\n"
        "  fluid edit face.png 'a hat, flat style' --mask hole.png --n 4 -o hat.png",
    )
    parser.add_argument("picture", type=Path, metavar="PICTURE")
    parser.add_argument("prompt", metavar="PROMPT")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--mask", type=Path, help="a picture of the same size; what is transparent is drawn")
    part.add_argument("--box", type=int, nargs=4, metavar=("LEFT", "TOP", "RIGHT", "BOTTOM"), help="in pixels")
    parser.add_argument("--feather", type=int, help="pixels inside the mask over which old goes over into new")
    _output_flags(parser)
    parser.set_defaults(run=_edit)


def _add_vary(command: Command, commands: Any) -> None:
    parser = command(
        commands,
        "vary",
        "Draw a picture again around a random part of it, through a running service.",
        "A picture that was drawn here brings its prompt along.\n"
        "example:\n  fluid vary apple.png --n 4 --keep 0.3 -o apple-again.png",
    )
    parser.add_argument("picture", type=Path, metavar="PICTURE")
    parser.add_argument("--prompt", help="what to draw; default: what the picture's file says")
    parser.add_argument("--keep", type=float, help="share of the picture that stays, 0 to below 1; 0.5 if omitted")
    _output_flags(parser)
    parser.set_defaults(run=_vary)


def _options(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What was given, by the API's names."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _client(settings: Settings, args: argparse.Namespace, **options: Any) -> "FluidClient":
    from server.client import FluidClient

    return FluidClient(args.url or settings.base_url, api_key=args.api_key or settings.api_key, **options)


_OF_PICTURES = ("n", "seed", "quality", "num_inference_steps", "guidance_scale")


def _batch(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import batch

    options = _options(args, "quality", "output_format")
    with _client(settings, args, max_retries=8) as client:
        batch.run(client, args.prompts, args.out, options, cancel=args.cancel)


def _edit(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import edit
    from server.images.codec import format_of

    options = _options(args, *_OF_PICTURES, "feather") | {"output_format": format_of(args.out)}
    box = tuple(args.box) if args.box else None
    with _client(settings, args) as client:
        edit.edit(client, args.picture, args.prompt, args.out, options, mask=args.mask, box=box)


def _vary(settings: Settings, args: argparse.Namespace) -> None:
    from server.cli import edit
    from server.images.codec import format_of

    options = _options(args, *_OF_PICTURES, "prompt", "keep") | {"output_format": format_of(args.out)}
    with _client(settings, args) as client:
        edit.vary(client, args.picture, args.out, options)
